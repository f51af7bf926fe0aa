"""The text of each instruction without memory, by opcode; ValueError for a form that has no definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pagedattn.ptx import conversions
from pagedattn.ptx.isa import ROUNDINGS, SIZES, TYPES, Coder, only_modifiers
from pagedattn.ptx.program import Imm, Operand

_SIXTEEN = ("f16", "f16x2", "bf16", "bf16x2")


def _sixteen(c: Coder, op: tuple[str, ...], o: list[Operand], mods: set[str]) -> str:
    wide = op[-1].endswith("x2")
    kind = op[-1].removesuffix("x2")
    operands = ", ".join(f"broadcast({c.use(x, 'u4' if wide else 'u2')}, w.n).view(u2)" for x in o[1:])
    text = f"arithmetic16({op[0]!r}, {kind!r}, [{operands}], {'sat' in mods}, {'relu' in mods})"
    return c.put(o[0], f"{text}.view(u4)" if wide else text, "u4" if wide else "u2")


def _add(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    name, t = op[0], op[-1]
    mods = only_modifiers(op, *ROUNDINGS, "ftz", "sat", "lo", "hi", "wide", "relu")
    if t in _SIXTEEN:
        return _sixteen(c, op, o, mods)
    kind = TYPES[t]
    sign = {"add": "+", "sub": "-", "mul": "*"}[name]
    if kind == "f4":
        a, b = c.use(o[1], kind), c.use(o[2], kind)
        if "ftz" in mods:
            a, b = f"ftz({a})", f"ftz({b})"
        mode = next((r for r in ROUNDINGS if r in mods), "rn")
        text = f"{a} {sign} {b}" if mode == "rn" else f"directed({name!r}, {a}, {b}, {mode!r})"
        text = f"ftz({text})" if "ftz" in mods else text
        return c.put(o[0], f"sat({text})" if "sat" in mods else text, kind)
    if kind == "f8":
        if mods - {"rn"}:
            raise ValueError("only .rn is defined for .f64")
        return c.put(o[0], f"{c.use(o[1], kind)} {sign} {c.use(o[2], kind)}", kind)
    if name == "mul":
        return c.put(o[0], *_product(c, t, mods, o[1], o[2]))
    if mods:
        raise ValueError("integer add and sub have no modifier here")
    kind = "u" + kind[1]
    return c.put(o[0], f"{c.use(o[1], kind)} {sign} {c.use(o[2], kind)}", kind)


def _product(c: Coder, t: str, mods: set[str], a: Operand, b: Operand) -> tuple[str, str]:
    kind = TYPES[t]
    if "wide" in mods:
        wide = f"{kind[0]}{2 * SIZES[kind]}"
        return f"{c.use(a, kind)}.astype({wide}) * {c.use(b, kind)}.astype({wide})", wide
    if "hi" in mods:
        return f"mul_hi({c.use(a, kind)}, {c.use(b, kind)})", kind
    if "lo" not in mods:
        raise ValueError("an integer product is .lo, .hi or .wide")
    kind = "u" + kind[1]
    return f"{c.use(a, kind)} * {c.use(b, kind)}", kind


def _mad(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    mods = only_modifiers(op, "lo", "hi", "wide", *ROUNDINGS, "ftz", "sat")
    if TYPES[op[-1]][0] == "f":
        return _fma(c, op, o)
    text, kind = _product(c, op[-1], mods, o[1], o[2])
    return c.put(o[0], f"({text}) + {c.use(o[3], kind)}", kind)


def _fma(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    mods = only_modifiers(op, *ROUNDINGS, "ftz", "sat", "relu")
    if op[-1] in _SIXTEEN:
        return _sixteen(c, op, o, mods)
    kind = TYPES[op[-1]]
    operands = [c.use(x, kind) for x in o[1:]]
    if kind == "f8":
        return c.put(o[0], f"fma64({', '.join(operands)})", kind)
    if "ftz" in mods:
        operands = [f"ftz({x})" for x in operands]
    text = f"fma({', '.join(operands)}, {next((r for r in ROUNDINGS if r in mods), 'rn')!r})"
    text = f"ftz({text})" if "ftz" in mods else text
    return c.put(o[0], f"sat({text})" if "sat" in mods else text, kind)


def _min(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    mods = only_modifiers(op, "ftz", "NaN")
    if op[-1] in _SIXTEEN:
        return _sixteen(c, op, o, mods)
    kind = TYPES[op[-1]]
    a, b = c.use(o[1], kind), c.use(o[2], kind)
    if kind[0] != "f":
        return c.put(o[0], f"{op[0]}imum({a}, {b})", kind)
    if "ftz" in mods:
        a, b = f"ftz({a})", f"ftz({b})"
    text = f"f{op[0]}({a}, {b})"
    return c.put(o[0], f"where(isnan({a}) | isnan({b}), {a} + {b}, {text})" if "NaN" in mods else text, kind)


def _divide(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    mods = only_modifiers(op, "rn", "ftz", "full", "approx")
    kind = TYPES[op[-1]]
    a, b = c.use(o[1], kind), c.use(o[2], kind)
    if kind[0] != "f":
        return c.put(o[0], f"divide({a}, {b})" if op[0] == "div" else f"remainder({a}, {b})", kind)
    return c.put(o[0], f"ftz(ftz({a}) / ftz({b}))" if "ftz" in mods else f"{a} / {b}", kind)


def _unary(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    name, t = op[0], op[-1]
    mods = only_modifiers(op, "ftz", "approx", "rn", "shiftamt")
    if t in _SIXTEEN:
        if name == "ex2":
            wide = t.endswith("x2")
            x = f"broadcast({c.use(o[1], 'u4' if wide else 'u2')}, w.n).view(u2)"
            half = t.startswith("f16")
            text = f"to_f16(exp2_wide(from_f16({x})))" if half else f"to_bf16(odd32(exp2_wide(from_bf16({x}).astype(f8))))"
            return c.put(o[0], f"{text}.view(u4)" if wide else text, "u4" if wide else "u2")
        return _sixteen(c, op, o, mods)
    kind = TYPES[t]
    if kind == "f4" and name in ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh") and "approx" in mods:
        return c.put(o[0], f"approximate({name!r}, {c.use(o[1], kind)}, {'ftz' in mods})", kind)
    if kind[0] == "f" and name in ("rcp", "sqrt") and "rn" in mods:
        x = c.use(o[1], kind)
        x = f"ftz({x})" if "ftz" in mods else x
        text = f"sqrt({x})" if name == "sqrt" else f"{c.constant(1.0, kind)} / {x}"
        return c.put(o[0], f"ftz({text})" if "ftz" in mods else text, kind)
    if name in ("neg", "abs"):
        x = c.use(o[1], kind)
        x = f"ftz({x})" if "ftz" in mods else x
        return c.put(o[0], f"-{x}" if name == "neg" else f"abs({x})", kind)
    if name == "not":
        return c.put(o[0], f"~{c.use(o[1], kind)}", kind)
    if name == "bfind":
        return c.put(o[0], f"find_bit({c.use(o[1], kind)}, {'shiftamt' in mods})", "u4")
    function = {"popc": "count_ones", "clz": "leading_zeros", "brev": "reverse"}.get(name)
    if function is None or mods:
        raise ValueError("this form is not defined")
    return c.put(o[0], f"{function}({c.use(o[1], kind)})", "u4" if name != "brev" else kind)


def _logic(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    only_modifiers(op)
    kind = TYPES[op[-1]]
    return c.put(o[0], f"{c.use(o[1], kind)} { {'and': '&', 'or': '|', 'xor': '^'}[op[0]] } {c.use(o[2], kind)}", kind)


def _shift(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    only_modifiers(op)
    kind = TYPES[op[-1]]
    kind = "u" + kind[1] if op[0] == "shl" else kind
    amount = (
        c.constant(min(int(o[2].value), 255), kind)
        if isinstance(o[2], Imm)
        else f"minimum({c.use(o[2], 'u4')}, {c.constant(100, 'u4')}).astype({kind})"
    )
    return c.put(o[0], f"{c.use(o[1], kind)} {'<<' if op[0] == 'shl' else '>>'} {amount}", kind)


def _bits(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    name, kind = op[0], TYPES[op[-1]]
    if name == "bfe":
        return c.put(o[0], f"extract_bits({c.use(o[1], kind)}, {c.use(o[2], 'u4')}, {c.use(o[3], 'u4')})", kind)
    if name == "bfi":
        return c.put(o[0], f"insert_bits({c.use(o[1], kind)}, {c.use(o[2], kind)}, {c.use(o[3], 'u4')}, {c.use(o[4], 'u4')})", kind)
    if name == "prmt":
        mode = op[2] if len(op) > 2 else ""
        return c.put(o[0], f"broadcast(permute({c.use(o[1], 'u4')}, {c.use(o[2], 'u4')}, {c.use(o[3], 'u4')}, {mode!r}), w.n)", "u4")
    if name == "lop3":
        if len(op) > 2 or not isinstance(o[4], Imm):
            raise ValueError("lop3 wants .b32 and a constant table")
        return c.put(o[0], f"lop3({c.use(o[1], 'u4')}, {c.use(o[2], 'u4')}, {c.use(o[3], 'u4')}, {int(o[4].value)})", "u4")
    return c.put(o[0], f"funnel({c.use(o[1], 'u4')}, {c.use(o[2], 'u4')}, {c.use(o[3], 'u4')}, {op[1] == 'l'}, {op[2] == 'wrap'})", "u4")


_COMPARE = {
    "eq": "({a} == {b})",
    "ne": "({a} != {b})",
    "lt": "({a} < {b})",
    "le": "({a} <= {b})",
    "gt": "({a} > {b})",
    "ge": "({a} >= {b})",
}
_UNSIGNED = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_FLOAT = {
    **_COMPARE,
    "ne": "(({a} < {b}) | ({a} > {b}))",
    "equ": "~(({a} < {b}) | ({a} > {b}))",
    "neu": "({a} != {b})",
    "ltu": "~({a} >= {b})",
    "leu": "~({a} > {b})",
    "gtu": "~({a} <= {b})",
    "geu": "~({a} < {b})",
    "num": "~(isnan({a}) | isnan({b}))",
    "nan": "(isnan({a}) | isnan({b}))",
}


def _setp(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    compare, t = op[1], op[-1]
    mods = only_modifiers((op[0], *op[2:]), "ftz", "and", "or", "xor")
    if t in ("f16", "bf16"):
        a, b = (f"from_{t}({c.use(x, 'u2')})" for x in o[1:3])
        text = _FLOAT[compare].format(a=a, b=b)
    else:
        kind = TYPES[t]
        a, b = c.use(o[1], kind), c.use(o[2], kind)
        if "ftz" in mods:
            a, b = f"ftz({a})", f"ftz({b})"
        text = (_FLOAT if kind[0] == "f" else _COMPARE)[compare if kind[0] == "f" else _UNSIGNED.get(compare, compare)].format(a=a, b=b)
    sign = next(({"and": "&", "or": "|", "xor": "^"}[b] for b in ("and", "or", "xor") if b in mods), None)
    if not (type(o[0]) is tuple and o[0][0] == "|"):
        return c.put(o[0], f"{text} {sign} {c.use(o[3], '?')}" if sign else text, "?")
    other = c.use(o[3], "?") if sign else None
    first, second = (f"{x} {sign} {other}" if sign else x for x in ("t", "~t"))
    return f"t = {text}; {c.put(o[0][1], first, '?')}; {c.put(o[0][2], second, '?')}"


def _selp(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    kind = TYPES[op[-1]]
    return c.put(o[0], f"where({c.use(o[3], '?')}, {c.use(o[1], kind)}, {c.use(o[2], kind)})", kind)


_Rule = Callable[[Coder, tuple[str, ...], list[Any]], str]
RULES: dict[str, _Rule] = {
    **dict.fromkeys(("add", "sub", "mul"), _add),
    **dict.fromkeys(("min", "max"), _min),
    **dict.fromkeys(("div", "rem"), _divide),
    **dict.fromkeys(("neg", "abs", "not", "popc", "clz", "brev", "bfind", "ex2", "lg2", "rcp", "rsqrt", "sqrt", "tanh"), _unary),
    **dict.fromkeys(("and", "or", "xor"), _logic),
    **dict.fromkeys(("shl", "shr"), _shift),
    **dict.fromkeys(("bfe", "bfi", "prmt", "lop3", "shf"), _bits),
    "mad": _mad,
    "fma": _fma,
    "setp": _setp,
    "selp": _selp,
    "mov": conversions.mov,
    "cvta": conversions.cvta,
    "cvt": conversions.cvt,
}
