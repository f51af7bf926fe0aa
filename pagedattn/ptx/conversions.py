"""The text of the instructions that move a value or make another type of it."""

from __future__ import annotations

from pagedattn.ptx.isa import ROUNDINGS, SIZES, TYPES, Coder, only_modifiers
from pagedattn.ptx.program import Operand, Reg


def mov(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    only_modifiers(op)
    kind = TYPES[op[-1]]
    target, source = o
    if type(source) is tuple and source[0] != "!":
        width = SIZES[kind] // len(source)
        parts = [f"({c.use(x, f'u{width}')}).astype({kind}) << {c.constant(8 * width * n, kind)}" for n, x in enumerate(source)]
        return c.put(target, " | ".join(f"({p})" for p in parts), kind)
    if type(target) is tuple:
        width = SIZES[kind] // len(target)
        parts = [
            c.put(x, f"(t >> {c.constant(8 * width * n, kind)}).astype(u{width})", f"u{width}") for n, x in enumerate(target) if x != ("_",)
        ]
        return "; ".join([f"t = {c.full(source, kind)}", *parts])
    return c.put(target, c.full(source, kind), kind)


def cvta(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    space = next(s for s in op if s in ("global", "shared", "local", "const", "param"))
    window = {"shared": 1 << 60, "local": 1 << 61}.get(space, 0)
    if space in ("const", "param"):
        raise ValueError("generic addresses of this space are not defined")
    if not window:
        return c.put(o[0], c.full(o[1], "u8"), "u8")
    sign = "-" if "to" in op else "+"
    return c.put(o[0], f"broadcast({c.use(o[1], 'u8')}, w.n) {sign} {c.constant(window, 'u8')}", "u8")


def cvt(c: Coder, op: tuple[str, ...], o: list[Operand]) -> str:
    to, source = op[-2], op[-1]
    mods = only_modifiers((*op[:-2], op[-1]), *ROUNDINGS, "rni", "rzi", "rmi", "rpi", "ftz", "sat", "relu", "satfinite")
    if "satfinite" in mods:
        raise ValueError(".satfinite is not defined")
    relu = "relu" in mods
    mode = next((r for r in ROUNDINGS if r in mods), "rn")
    if to in ("f16x2", "bf16x2"):
        low, high = (f"to_{to[:-2]}({c.use(x, 'f4')}, {mode!r}, {relu})" for x in (o[2], o[1]))
        return c.put(o[0], f"broadcast(pack2({low}, {high}), w.n)", "u4")
    x = c.use(o[1], TYPES[source] if source not in ("f16", "bf16") else "u2")
    if not isinstance(o[1], Reg):
        x = f"broadcast({x}, w.n)"
    if source in ("f16", "bf16"):
        wide = f"from_{source}({x})"
        if to == "f32":
            return c.put(o[0], f"{wide}.astype(f4)" if "sat" not in mods else f"sat({wide}.astype(f4))", "f4")
        x, source = f"{wide}.astype(f8)", "f64"
    if source == "f32" and "ftz" in mods:
        x = f"ftz({x})"
    integer = next((r for r in ("rni", "rzi", "rmi", "rpi") if r in mods), None)
    a, b = TYPES[source], TYPES.get(to, "")
    if to in ("f16", "bf16"):
        if a[0] != "f":
            x = f"{x}.astype(f8)"
        if to == "bf16" and a == "f8":
            x = f"odd32({x})"
        if "sat" in mods:
            x = f"sat({x})"
        return c.put(o[0], f"to_{to}({x}, {mode!r}, {relu})", "u2")
    if a[0] == "f" and b[0] == "f":
        if integer:
            text = f"{ {'rni': 'rint', 'rzi': 'trunc', 'rmi': 'floor', 'rpi': 'ceil'}[integer] }({x})"
        else:
            text = x if a == b else f"{x}.astype({b})" if b == "f8" else f"narrow32({x}, {mode!r})"
        return c.put(o[0], f"sat({text}) + {c.constant(0.0, b)}" if "sat" in mods else f"({text}).astype({b})", b)
    if a[0] == "f":
        if integer is None:
            raise ValueError("a conversion to an integer names its rounding")
        return c.put(o[0], f"to_int({x}, {b}.type, {integer!r})", b)
    if b[0] == "f":
        if SIZES[a] == 8 and mode != "rn":
            raise ValueError("only .rn is defined from 64-bit integers")
        text = f"{x}.astype({b})" if mode == "rn" or b == "f8" else f"narrow32({x}.astype(f8), {mode!r})"
        return c.put(o[0], f"sat({text})" if "sat" in mods else text, b)
    if "sat" in mods:
        return c.put(o[0], f"clamp({x}, {b})", b)
    return c.put(o[0], f"{x}.astype({b})", b)
