"""Floating point as PTX defines it: rounding modes, .ftz, .sat, 16-bit types, conversions, and the approximate functions.

float32 +, -, *, / and sqrt of NumPy are IEEE 754 round-to-nearest-even and are used as they are. Everything else goes through float64
rounded to odd, from which any rounding to 24 bits or fewer is exact (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums",
2008). NaNs are NaNs, not the GPU's bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# What the approximate functions promise (PTX ISA 9.7.3, and the CUDA Programming Guide's table of intrinsic functions). Here each is the
# float64 value rounded to float32, so silicon and this differ by at most these: units in the last place of the result, or an absolute
# difference where that is more.
ULPS = {"ex2": 2, "rcp": 1, "rsqrt": 2, "sqrt": 1, "div": 2, "lg2": 3}
ABSOLUTE = {"lg2": 2.0**-22, "tanh": 2.0**-11}

_TINY = np.float32(2.0**-126)
_F16 = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)


def ftz(x: Array) -> Array:
    """Subnormals to a zero of their sign."""
    return np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x)


def fmin(a: Array, b: Array) -> Array:
    """The lesser number; -0 is less than 0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def fmax(a: Array, b: Array) -> Array:
    """The greater number; 0 is greater than -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def sat(x: Array) -> Array:
    """Into [0, 1]; NaN to 0."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    result: Array = np.fmax(np.minimum(np.where(np.isnan(x), zero, x), one), zero) + zero
    return result


def odd_sum(a: Array, b: Array) -> Array:
    """a + b in float64, rounded to odd: truncated, and the last bit set where anything was lost."""
    s = a + b
    v = s - a
    lost = (a - (s - v)) + (b - v)
    inexact = (lost != 0) & np.isfinite(s)
    if inexact.any():
        bits = s.view(np.int64)
        even = inexact & ((bits & 1) == 0)
        # toward zero is one step down where what was lost has the other sign; the neighbour of an even number is odd
        bits += np.where(even, np.where((lost > 0) == (s > 0), 1, -1), 0)
    return s


def narrow32(x: Array, mode: str = "rn") -> Array:
    """float64 to float32; exact in every mode if `x` was rounded to odd or is exact."""
    y = x.astype(np.float32)
    if mode == "rn":
        return y
    back = y.astype(np.float64)
    if mode == "rz":
        wrong, to = np.abs(back) > np.abs(x), np.float32(0)
    elif mode == "rm":
        wrong, to = back > x, np.float32(-np.inf)
    else:
        wrong, to = back < x, np.float32(np.inf)
    return np.where(wrong, np.nextafter(y, to), y)


def odd32(x: Array) -> Array:
    """float64 to float32, rounded to odd."""
    y = narrow32(x, "rz")
    return np.where((y.astype(np.float64) != x) & np.isfinite(x), (y.view(np.uint32) | np.uint32(1)).view(np.float32), y)


def _wide(x: Array) -> Array:
    return np.atleast_1d(x).astype(np.float64)


def _sum(x: Array, y: Array, mode: str) -> Array:
    """x + y rounded to odd; an exact zero of unlike terms is -0 where rounding goes down (IEEE 754, 6.3)."""
    s = odd_sum(x, y)
    if mode != "rm":
        return s
    return np.where((s == 0) & (np.signbit(x) | np.signbit(y)), -0.0, s)


def fma(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """fma.rnd.f32: one rounding. The product of two float32 is exact in float64."""
    p, q = np.broadcast_arrays(_wide(a) * _wide(b), _wide(c))
    return narrow32(_sum(p, q, mode), mode)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """fma.rn.f64 by Dekker's product and three-term sum; not exact where the product leaves float64's range."""
    split = np.float64(2**27 + 1)
    ah, bh = (a * split) - ((a * split) - a), (b * split) - ((b * split) - b)
    al, bl = a - ah, b - bh
    p = a * b
    e = ((ah * bh - p) + ah * bl + al * bh) + al * bl
    high = p + c
    v = high - p
    low = (p - (high - v)) + (c - v)
    exact = high + odd_sum(np.atleast_1d(low), np.atleast_1d(e))
    return np.where(np.isfinite(exact), exact, p + c)


def directed(op: str, a: Array, b: Array, mode: str) -> Array:
    """add, sub or mul of float32 in any rounding mode."""
    x, y = np.broadcast_arrays(_wide(a), _wide(b))
    if op == "mul":
        return narrow32(x * y, mode)
    return narrow32(_sum(x, y if op == "add" else -y, mode), mode)


def from_f16(bits: Array) -> Array:
    """float64 of float16 bits."""
    found: Array = _F16[bits]
    return found


def from_bf16(bits: Array) -> Array:
    """float32 of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_f16(x: Array, mode: str = "rn", relu: bool = False) -> Array:
    """float32 or float64 to float16 bits; NaN becomes 0x7fff."""
    y = np.atleast_1d(x).astype(np.float16)
    if mode == "rz":
        wide = y.astype(np.float64)
        y = np.where(np.abs(wide) > np.abs(x), np.nextafter(y, np.float16(0)), y)
    bits = y.view(np.uint16)
    bits = np.where(np.isnan(y), np.uint16(0x7FFF), bits)
    return np.where((bits & 0x8000) != 0, np.uint16(0), bits) if relu else bits


def to_bf16(x: Array, mode: str = "rn", relu: bool = False) -> Array:
    """float32 to bfloat16 bits; NaN becomes 0x7fff."""
    u = np.atleast_1d(x).astype(np.float32, copy=False).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1)) if mode == "rn" else np.uint32(0)
    bits = ((u + rounding) >> np.uint32(16)).astype(np.uint16)
    bits = np.where((u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), np.uint16(0x7FFF), bits)
    return np.where((bits & 0x8000) != 0, np.uint16(0), bits) if relu else bits


def pack2(low: Array, high: Array) -> Array:
    """Two 16-bit values in 32 bits."""
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def arithmetic16(op: str, kind: str, operands: list[Array], saturate: bool = False, relu: bool = False) -> Array:
    """add, sub, mul, fma, min, max, neg or abs of float16 or bfloat16 bits (uint16): one rounding."""
    if op in ("neg", "abs"):
        return operands[0] ^ np.uint16(0x8000) if op == "neg" else operands[0] & np.uint16(0x7FFF)
    values = [np.atleast_1d(from_f16(x) if kind == "f16" else from_bf16(x).astype(np.float64)) for x in operands]
    a, b = values[:2]
    if op == "fma":
        result = odd_sum(*np.broadcast_arrays(a * b, values[2]))
    elif op in ("min", "max"):
        result = (fmin if op == "min" else fmax)(a, b)
    else:
        result = a * b if op == "mul" else odd_sum(*np.broadcast_arrays(a, b if op == "add" else -b))
    if saturate:
        result = sat(result)
    return to_f16(result, relu=relu) if kind == "f16" else to_bf16(odd32(result), relu=relu)


def to_int(x: Array, kind: Any, mode: str) -> Array:
    """cvt to an integer type: rounded (rni, rzi, rmi, rpi), clamped to its range; NaN becomes 0 (64 bits: 2^63)."""
    y = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x.astype(np.float64))
    info = np.iinfo(kind)
    nan = np.isnan(y)
    high, low = y >= float(info.max), y <= float(info.min)
    result = np.where(nan | high | low, 0.0, y).astype(kind)
    result = np.where(high, kind(info.max), np.where(low, kind(info.min), result))
    return np.where(nan, kind(0), result) if info.bits < 64 else np.where(nan, np.uint64(1 << 63).astype(kind), result)


def approximate(name: str, x: Array, flush: bool = True) -> Array:
    """ex2, lg2, rcp, rsqrt, sqrt or tanh .approx of float32, within `ULPS` and `ABSOLUTE` of silicon."""
    wide = (ftz(x) if flush else x).astype(np.float64)
    if name == "ex2":
        wide = np.exp2(wide)
    elif name == "lg2":
        wide = np.log2(wide)
    elif name == "rcp":
        wide = 1.0 / wide
    elif name == "rsqrt":
        wide = 1.0 / np.sqrt(wide)
    else:
        wide = {"sqrt": np.sqrt, "tanh": np.tanh}[name](wide)
    result = wide.astype(np.float32)
    return ftz(result) if flush else result
