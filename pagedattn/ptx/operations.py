"""Instructions that touch memory or other lanes, as calls of the machine: their text (`code`)."""

from __future__ import annotations

from pagedattn.ptx.isa import SIZES, TYPES, Coder
from pagedattn.ptx.program import Address, Imm, Instruction, Operand, Reg, Symbol

COLLECTIVE = ("shfl", "vote", "redux", "ldmatrix", "movmatrix", "mma", "match")
_SPACES = ("global", "shared", "local", "param", "const")
# Hints and orders that change nothing here: lanes run one instruction after the other.
_IGNORED = {
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "volatile",
    "weak",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "gpu",
    "sys",
    "cluster",
    "L1",
    "L2",
}
_ATOMIC = ("add", "min", "max", "and", "or", "xor", "exch", "inc", "dec", "cas")


def code(c: Coder, i: Instruction) -> str | None:
    """The line of an instruction; None if it is none of these; ValueError for a form that is not defined."""
    name = i.op[0]
    if name in ("membar", "fence", "prefetch", "prefetchu", "nanosleep", "discard", "griddepcontrol"):
        return "pass"
    if name in ("ld", "ldu"):
        return _load(c, i)
    if name == "st":
        return _store(c, i)
    if name in ("atom", "red"):
        return _atomic(c, i)
    if name == "cp":
        return _copy(c, i)
    if name == "mbarrier":
        return _mbarrier(c, i)
    if i.op[:2] == ("bar", "warp"):
        return f"m.warp_barrier({_mask(c, i.operands[0])}, {c.keep(i)}, w)"
    if name == "activemask":
        return c.put(i.operands[0], "m.activemask(w)", "u4")
    return _warp(c, i) if name in COLLECTIVE else None


def _place(c: Coder, x: Operand) -> str:
    """An address as int64."""
    if not isinstance(x, Address):
        raise ValueError("an address must look like [a+b]")
    if isinstance(x.base, Symbol):
        return f"broadcast(m.symbol({x.base.name!r}, {x.offset}), w.n)"
    if isinstance(x.base, Imm):
        return f"broadcast({c.constant(int(x.base.value) + x.offset, 'i8')}, w.n)"
    text = f"f[{x.base.number}].view(i8)" if SIZES[x.base.kind] == 8 else f"f[{x.base.number}].astype(i8)"
    return f"{text} + {c.constant(x.offset, 'i8')}" if x.offset else text


def _space(i: Instruction, *allowed: str) -> tuple[str, int]:
    """State space and vector length; every other modifier must be known."""
    space, count = "generic", 1
    for part in i.op[1:-1]:
        if part in _SPACES:
            space = part
        elif part in ("v2", "v4"):
            count = int(part[1])
        elif part.split("::")[0] not in _IGNORED and part not in allowed:
            raise ValueError(f"modifier .{part} is not defined")
    return space, count


def _load(c: Coder, i: Instruction) -> str:
    space, count = _space(i)
    kind = TYPES[i.op[-1]]
    text = f"m.load({space!r}, {_place(c, i.operands[1])}, {SIZES[kind] * count}, {c.keep(i)}, w)"
    whole = kind if kind[0] == "i" else f"u{SIZES[kind]}"
    target = i.operands[0]
    if type(target) is not tuple:
        return c.put(target, f"{text}.view({whole})", whole)
    lines = [f"t = {text}.view({whole}).reshape(-1, {count})"]
    lines += [c.put(x, f"t[:, {n}].copy()", whole) for n, x in enumerate(target) if x != ("_",)]
    return "; ".join(lines)


def _values(c: Coder, x: Operand, kind: str) -> str:
    bits = f"u{SIZES[kind]}"
    if type(x) is tuple:
        return f"interleave([{', '.join(f'broadcast({c.use(y, bits)}, w.n)' for y in x)}])"
    return f"broadcast({c.use(x, bits)}, w.n)"


def _store(c: Coder, i: Instruction) -> str:
    space, count = _space(i)
    kind = TYPES[i.op[-1]]
    return f"m.store({space!r}, {_place(c, i.operands[0])}, {_values(c, i.operands[1], kind)}, {SIZES[kind] * count}, {c.keep(i)}, w)"


def _atomic(c: Coder, i: Instruction) -> str:
    space, count = _space(i, *_ATOMIC)
    names = [p for p in i.op[1:-1] if p in _ATOMIC]
    kind = TYPES[i.op[-1]]
    if space not in ("global", "shared", "generic") or count != 1 or len(names) != 1 or i.op[-1] in ("f16", "f16x2", "bf16", "bf16x2"):
        raise ValueError("this atomic is not defined")
    first = 1 if i.op[0] == "atom" else 0
    values = ", ".join(f"broadcast({c.use(x, kind)}, w.n)" for x in i.operands[first + 1 :])
    text = f"m.atomic({space!r}, {names[0]!r}, {_place(c, i.operands[first])}, [{values}], {c.keep(i)}, w)"
    return c.put(i.operands[0], text, kind) if first else text


def _copy(c: Coder, i: Instruction) -> str:
    if i.op[:3] == ("cp", "async", "commit_group"):
        return "m.commit(w)"
    if i.op[:3] == ("cp", "async", "wait_group"):
        assert isinstance(i.operands[0], Imm)
        return f"m.wait({int(i.operands[0].value)}, w)"
    if i.op[:3] == ("cp", "async", "wait_all"):
        return "m.wait(None, w)"
    if i.op[:2] != ("cp", "async") or i.op[2] not in ("ca", "cg") or i.op[3:5] != ("shared", "global"):
        raise ValueError("this copy is not defined")
    if any(not p.startswith("L2::") for p in i.op[5:]):
        raise ValueError("this modifier is not defined")
    size, *rest = i.operands[2:]
    if "L2::cache_hint" in i.op:
        policy = rest.pop() if rest else None
        if not isinstance(policy, Reg) or SIZES[policy.kind] != 8:
            raise ValueError("a cache hint wants a policy, 64 bits of a register")
    if not isinstance(size, Imm) or size.value not in ((16,) if i.op[2] == "cg" else (4, 8, 16)):
        raise ValueError("the size of a cp.async is 4, 8 or 16")
    valid = f"broadcast({c.use(rest[0], 'u4')}, w.n)" if rest else "None"
    return f"m.copy({_place(c, i.operands[0])}, {_place(c, i.operands[1])}, {int(size.value)}, {valid}, {c.keep(i)}, w)"


def _mbarrier(c: Coder, i: Instruction) -> str:
    what, o, me = ".".join(i.op[1:]), i.operands, c.keep(i)
    if what == "init.shared.b64":
        return f"m.mbarrier_init({_place(c, o[0])}, broadcast({c.use(o[1], 'u4')}, w.n), {me}, w)"
    if what == "arrive.shared.b64":
        return c.put(o[0], f"m.mbarrier_arrive({_place(c, o[1])}, {me}, w)", "u8")
    if what == "test_wait.parity.shared.b64":
        return c.put(o[0], f"m.mbarrier_complete({_place(c, o[1])}, broadcast({c.use(o[2], 'u4')}, w.n), {me}, w)", "?")
    raise ValueError("only init, arrive and test_wait.parity of .shared.b64 are defined")


def _mask(c: Coder, x: Operand) -> str:
    return c.use(x, "u4")


def _warp(c: Coder, i: Instruction) -> str:
    name, o = i.op[0], i.operands
    me = c.keep(i)
    if name == "shfl":
        if i.op[1] != "sync" or i.op[2] not in ("up", "down", "bfly", "idx"):
            raise ValueError("only shfl.sync is defined")
        a, b, bound, mask = (c.use(x, "u4") for x in o[1:5])
        line = f"t, p = m.shuffle({i.op[2]!r}, broadcast({a}, w.n), {b}, {bound}, {mask}, {me}, w)"
        if type(o[0]) is tuple and o[0][0] == "|":
            return "; ".join([line, *(c.put(x, v, k) for x, v, k in zip(o[0][1:], "tp", ("u4", "?"), strict=True) if x != ("_",))])
        return f"{line}; {c.put(o[0], 't', 'u4')}"
    if name == "vote":
        if i.op[1] != "sync" or i.op[2] not in ("all", "any", "uni", "ballot"):
            raise ValueError("only vote.sync is defined")
        source = f"broadcast({c.use(o[1], '?')}, w.n)"
        return c.put(o[0], f"m.vote({i.op[2]!r}, {source}, {_mask(c, o[2])}, {me}, w)", "u4" if i.op[2] == "ballot" else "?")
    if name == "redux":
        kind = TYPES[i.op[-1]]
        if i.op[1] != "sync" or i.op[2] not in ("add", "min", "max", "and", "or", "xor") or kind[0] not in "iu":
            raise ValueError("this redux is not defined")
        return c.put(o[0], f"m.reduce({i.op[2]!r}, broadcast({c.use(o[1], kind)}, w.n), {_mask(c, o[2])}, {me}, w)", kind)
    if name == "movmatrix":
        if i.op[1:] != ("sync", "aligned", "m8n8", "trans", "b16"):
            raise ValueError("only m8n8.trans.b16 is defined")
        return c.put(o[0], f"m.movmatrix({c.use(o[1], 'u4')}, {me}, w)", "u4")
    if name == "ldmatrix":
        mods = set(i.op[1:])
        count = next((n for n in (1, 2, 4) if f"x{n}" in mods), 0)
        if (
            not count
            or not {"sync", "aligned", "m8n8", "b16"} <= mods
            or mods - {"sync", "aligned", "m8n8", "b16", f"x{count}", "trans", "shared"}
        ):
            raise ValueError("only m8n8.x1, .x2 and .x4 of .b16 are defined")
        targets = o[0] if type(o[0]) is tuple else (o[0],)
        line = f"t = m.ldmatrix({_place(c, o[1])}, {count}, {'trans' in mods}, {me}, w)"
        return "; ".join([line, *(c.put(x, f"t[{n}]", "u4") for n, x in enumerate(targets))])
    if name == "mma":
        return _mma(c, i, me)
    raise ValueError("this instruction is not defined")


def _mma(c: Coder, i: Instruction, me: str) -> str:
    op = i.op
    if (
        op[1:3] != ("sync", "aligned")
        or op[3] not in ("m16n8k16", "m16n8k8", "m8n8k4")
        or (op[6], op[9]) != ("f32", "f32")
        or op[7] != op[8]
    ):
        raise ValueError("only m16n8k16, m16n8k8 and m8n8k4 with float32 sums are defined")
    if (
        op[7] not in ("f16", "bf16")
        or (op[3] != "m8n8k4" and op[4:6] != ("row", "col"))
        or (op[3] == "m8n8k4" and op[7] != "f16")
        or len(op) != 10
    ):
        raise ValueError("this form is not defined")
    d, a, b, sums = i.operands
    parts = []
    for x, kind in ((a, "u4"), (b, "u4"), (sums, "f4")):
        assert type(x) is tuple
        parts.append(", ".join(f"broadcast({c.use(y, kind)}, w.n)" for y in x))
    text = f"t = m.mma({op[3]!r}, {op[7]!r}, {op[4:6]!r}, [{parts[0]}], [{parts[1]}], [{parts[2]}], {me}, w)"
    assert type(d) is tuple
    return "; ".join([text, *(c.put(x, f"t[{n}]", "f4") for n, x in enumerate(d))])
