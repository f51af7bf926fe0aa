"""Instructions without memory, as NumPy text: each becomes a line of Python over arrays of lanes (PTX ISA 9.7.1 to 9.7.5 and 9.7.9)."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagedattn.ptx import floats, integers
from pagedattn.ptx.faults import UnknownInstruction
from pagedattn.ptx.program import KINDS, Imm, Instruction, Operand, Program, Reg, Special, Symbol

# PTX type -> NumPy type of the arithmetic
TYPES = {
    **KINDS,
    "s8": "i1",
    "s16": "i2",
    "s32": "i4",
    "s64": "i8",
}
SIZES = {"?": 1, "u1": 1, "u2": 2, "u4": 4, "u8": 8, "i1": 1, "i2": 2, "i4": 4, "i8": 8, "f4": 4, "f8": 8}
ROUNDINGS = ("rn", "rz", "rm", "rp")
# Lowest target of an instruction (PTX ISA, "Target ISA Notes"), by the dots-joined beginning of its opcode; the longest that fits counts.
NEEDS = {
    "cp.async": 80,
    "redux": 80,
    "ldmatrix": 75,
    "movmatrix": 75,
    "mma.sync.aligned.m8n8k4": 70,
    "mma.sync.aligned.m16n8k8": 75,
    "mma.sync.aligned.m16n8k16": 80,
    "cvt.rn.bf16x2": 80,
    "cvt.rz.bf16x2": 80,
    "cvt.rn.relu": 80,
    "cvt.rn.f16x2": 80,
    "cvt.rz.f16x2": 80,
    "cvt.rn.bf16": 80,
    "tanh.approx": 75,
    "ex2.approx.f16": 75,
    "ex2.approx.ftz.bf16": 90,
    "ex2.approx.atype": 75,
    "stmatrix": 90,
    "cp.async.bulk": 90,
    "mbarrier": 80,
    "elect": 90,
    "griddepcontrol": 90,
    "match": 70,
    "fence": 70,
    "barrier.cluster": 90,
    "wgmma": 90,
    "dp4a": 61,
}
_BY_TYPE = {
    "fma.f16": 53,
    "fma.f16x2": 53,
    "fma.bf16": 80,
    "fma.bf16x2": 80,
    "add.bf16": 90,
    "add.bf16x2": 90,
    "sub.bf16": 90,
    "sub.bf16x2": 90,
    "mul.bf16": 90,
    "mul.bf16x2": 90,
    "min.f16": 80,
    "max.f16": 80,
    "min.f16x2": 80,
    "max.f16x2": 80,
    "min.bf16": 80,
    "max.bf16": 80,
    "min.bf16x2": 80,
    "max.bf16x2": 80,
    "mma.bf16": 80,
}


def only_modifiers(op: tuple[str, ...], *allowed: str) -> set[str]:
    """The modifiers between an opcode and its type, all of which must be known."""
    found = set(op[1:-1])
    if found - set(allowed):
        raise ValueError(f"modifier .{' .'.join(sorted(found - set(allowed)))} is not defined")
    return found


def needed_target(op: tuple[str, ...]) -> int:
    """The lowest target that has an instruction; 0 where every one has."""
    found = _BY_TYPE.get(f"{op[0]}.{op[-1]}", 0)
    for n in range(len(op), 0, -1):
        if (number := NEEDS.get(".".join(op[:n]))) is not None:
            return max(found, number)
    return found


class Coder:
    """Turns instructions into lines of Python. `f` maps register indices to arrays, `w` is the set of lanes, `m` the machine.

    Attributes
    ----------
    names : dict
        What the lines refer to: constants, functions and instructions.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[str, Any] = {
            **{t: np.dtype(t) for t in SIZES},
            **{
                n: getattr(np, n)
                for n in (
                    "where",
                    "minimum",
                    "maximum",
                    "sqrt",
                    "signbit",
                    "abs",
                    "copysign",
                    "isnan",
                    "rint",
                    "trunc",
                    "floor",
                    "ceil",
                )
            },
            **{n: getattr(floats, n) for n in _FLOATS},
            **{n: getattr(integers, n) for n in _INTEGERS},
            **{n.__name__: n for n in (broadcast, clamp, exp2_wide)},
        }
        self._count = 0

    def keep(self, value: Any) -> str:
        """A name for a Python object."""
        self._count += 1
        name = f"k{self._count}"
        self.names[name] = value
        return name

    def constant(self, value: int | float, kind: str) -> str:
        number = np.dtype(kind).type
        if kind[0] == "f":
            if isinstance(value, int):
                raise UnknownInstruction(str(value), 0, why=": a float constant must look like 0f...")
            return self.keep(number(value))
        if kind == "?":
            return self.keep(np.bool_(value))
        if isinstance(value, float):  # bits of a float where a .b type is moved
            value = int(np.array(value, f"f{SIZES[kind]}").view(f"u{SIZES[kind]}"))
        bits = 8 * SIZES[kind]
        value &= (1 << bits) - 1
        return self.keep(number(value - (1 << bits) if kind[0] == "i" and value >> (bits - 1) else value))

    def use(self, x: Operand, kind: str) -> str:
        """An operand as text, of NumPy type `kind`; constants are scalars."""
        if isinstance(x, Reg):
            if x.kind == kind:
                return f"f[{x.number}]"
            if SIZES[x.kind] == SIZES[kind] and "?" not in (x.kind, kind):
                return f"f[{x.number}].view({kind})"
            if SIZES[x.kind] > SIZES[kind]:  # st, cvt: the low part
                return f"f[{x.number}].view(u{SIZES[x.kind]}).astype(u{SIZES[kind]}).view({kind})"
            raise ValueError(f"a register of {SIZES[x.kind]} bytes is too narrow for {kind}")
        if isinstance(x, Imm):
            return self.constant(x.value, kind)
        if isinstance(x, Special):
            return f"w.special({x.name!r}).astype({kind})"
        if isinstance(x, Symbol):
            return f"m.symbol({x.name!r}, {x.offset}).astype({kind})"
        if type(x) is tuple and x[0] == "!":
            return f"~{self.use(x[1], kind)}"
        raise ValueError(f"no operand is {x!r}")

    def full(self, x: Operand, kind: str) -> str:
        """An operand as an array of its own."""
        return (
            f"{self.use(x, kind)}.copy()" if isinstance(x, Reg) and SIZES[x.kind] == SIZES[kind] else f"broadcast({self.use(x, kind)}, w.n)"
        )

    def put(self, target: Operand, text: str, kind: str) -> str:
        """An assignment of an array of type `kind`; wider registers are extended by its sign."""
        if not isinstance(target, Reg):
            if target == ("_",):
                return text
            raise ValueError(f"no destination is {target!r}")
        if SIZES[target.kind] > SIZES[kind] and kind != "?":
            wide = kind[0] if kind[0] in "iu" else "u"
            text = f"({text}).view({wide}{SIZES[kind]}).astype({wide}{SIZES[target.kind]})"
            kind = f"{wide}{SIZES[target.kind]}"
        return f"f[{target.number}] = " + (text if target.kind == kind else f"({text}).view({target.kind})")

    def simple(self, i: Instruction) -> str | None:
        """The line of an instruction; None if it is none of these."""
        from pagedattn.ptx.rules import RULES

        rule = RULES.get(i.op[0])
        if rule is None:
            return None
        operands = i.operands
        if i.op[0] not in ("mov", "cvt", "cvta") and not any(isinstance(x, (Reg, Special)) for x in operands[1:]):
            raise ValueError("at least one operand must be a register")
        return rule(self, i.op, operands)


def broadcast(x: Any, n: int) -> Any:
    """`x` as an array of n lanes."""
    return x if np.size(x) == n and np.ndim(x) else np.full(n, x)


def clamp(x: Any, kind: Any) -> Any:
    """cvt.sat between integers."""
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    here = np.iinfo(x.dtype)
    return np.clip(x, x.dtype.type(max(low, here.min)), x.dtype.type(min(high, here.max))).astype(kind)


def exp2_wide(x: Any) -> Any:
    """2^x in float64."""
    return np.exp2(x)


_FLOATS = (
    "fmin",
    "fmax",
    "ftz",
    "sat",
    "fma",
    "fma64",
    "directed",
    "narrow32",
    "odd32",
    "from_f16",
    "from_bf16",
    "to_f16",
    "to_bf16",
    "pack2",
    "arithmetic16",
    "to_int",
    "approximate",
)
_INTEGERS = (
    "divide",
    "remainder",
    "mul_hi",
    "reverse",
    "count_ones",
    "leading_zeros",
    "find_bit",
    "extract_bits",
    "insert_bits",
    "permute",
    "lop3",
    "funnel",
)
