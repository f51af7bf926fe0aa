"""Quantised rows: codes of 8 or 4 bits with one (scale, zero) a row. Every bit is defined here; the kernels make the same ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Bit patterns of T: the infinity, and the quiet NaN that both parameters of a row hold that is not finite.
_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80}
_NAN = {"float16": 0x7E00, "bfloat16": 0x7FC0}

_ELEMENTS = 1 << 15  # of a step: what lies between the formula's operations stays in the processor's cache


def quantise(rows: Array, bits: int) -> tuple[Array, Array]:
    """Codes and parameters of rows; each row has its own scale and zero.

    Parameters
    ----------
    rows : float16 or bfloat16 (..., head_dim)
        `head_dim` is a multiple of 8.
    bits : int
        8 or 4.

    Returns
    -------
    codes : uint8 (..., head_dim * bits / 8)
        As they lie in a block, see `pack`.
    params : like `rows` (..., 2)
        (scale, zero): scale = (max - min) / (2**bits - 1), zero = min.

    Notes
    -----
    Each step is a float32 operation that is rounded to the type of `rows`, half to even:

        scale = T((max - min) * (1 / (2**bits - 1)))    zero = T(min)    inv_scale = T(1 / scale)
        code  = clamp(round(T(T(x - zero) * inv_scale)), 0, 2**bits - 1)

    A row whose scale is 0 (a constant one, or nearly) has codes 0 and reads back as its zero. A row with an infinity or a NaN has NaN for
    parameters, and reads back as NaN everywhere; so does a bfloat16 row whose range float32 cannot hold.

    Limits of float16 show in three places. A scale below 1/65504 has no finite inverse: every element but the minimum takes the last code,
    an error of at most the row's range, which is then below 0.004 with 8 bits and 0.0003 with 4 (and the rounding of T, which may exceed a
    range of subnormals). Elements more than 65504 above the minimum
    take the last code, too. And since scale is rounded, the largest element of a row may read back as an infinity if it is near 65504.

    Examples
    --------
    >>> codes, params = quantise(np.array([0, 1, 2, 3, 4, 5, 6, 15], np.float16), 4)
    >>> params.tolist(), codes.tolist()
    ([1.0, 0.0], [32, 100, 49, 245])
    >>> quantise(np.full(8, 0.3, np.float16), 8)[0].tolist()
    [0, 0, 0, 0, 0, 0, 0, 0]
    """
    *shape, size = rows.shape
    codes, params = np.empty((*shape, size * bits // 8), np.uint8), np.empty((*shape, 2), rows.dtype)
    flat, packed, pairs = _flat(rows), _flat(codes), _flat(params)
    for part in _parts(len(flat), size):
        packed[part], pairs[part] = _quantise(flat[part], bits)
    return codes, params


def dequantise(codes: Array, params: Array, bits: int) -> Array:
    """The rows that codes and parameters stand for: code * scale + zero, rounded once to the parameters' type.

    Parameters
    ----------
    codes : uint8 (..., head_dim * bits / 8)
    params : float16 or bfloat16 (..., 2)
    bits : int

    Returns
    -------
    array (..., head_dim), of the parameters' type

    Examples
    --------
    >>> row = np.array([0, 1, 2, 3, 4, 5, 6, 15], np.float16)
    >>> dequantise(*quantise(row, 4), 4).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 15.0]
    """
    rows = np.empty((*codes.shape[:-1], codes.shape[-1] * 8 // bits), params.dtype)
    flat, packed, pairs = _flat(rows), _flat(codes), _flat(params)
    for part in _parts(len(flat), rows.shape[-1]):
        wide = pairs[part].astype(np.float64)
        with np.errstate(all="ignore"):
            flat[part] = _sum(unpack(packed[part], bits) * wide[:, :1], wide[:, 1:], params.dtype)
    return rows


def to_float32(codes: Array, params: Array, bits: int) -> Array:
    """The same in float32, not rounded to the parameters' type; faster.

    >>> to_float32(np.array([0, 1, 255], np.uint8), np.array([0.5, -1], np.float16), 8).tolist()
    [-1.0, -0.5, 126.5]
    """
    wide = params.astype(np.float32)
    rows = unpack(codes, bits).astype(np.float32, order="C")
    with np.errstate(all="ignore"):
        rows *= wide[..., :1]
        rows += wide[..., 1:]
    return rows


def pack(codes: Array, bits: int) -> Array:
    """Codes, one a byte (..., head_dim), as a block holds them.

    8 bits: byte i is code i. 4 bits: eight codes make a little-endian 32-bit word of the nibbles 0 2 4 6 1 3 5 7, the lowest first.

    >>> [hex(byte) for byte in pack(np.arange(8, dtype=np.uint8), 4)]
    ['0x20', '0x64', '0x31', '0x75']
    """
    if bits == 8:
        return codes
    *shape, size = codes.shape
    nibbles = codes.reshape(*shape, size // 8, 4, 2).swapaxes(-1, -2).reshape(*shape, size // 2, 2)
    packed: Array = nibbles[..., 0] | nibbles[..., 1] << 4
    return packed


def unpack(packed: Array, bits: int) -> Array:
    """The inverse of `pack`.

    >>> unpack(np.array([0x20, 0x64, 0x31, 0x75], np.uint8), 4).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if bits == 8:
        return packed
    nibbles = np.stack((packed & 15, packed >> 4), axis=-1)
    *shape, size = packed.shape
    return nibbles.reshape(*shape, size // 4, 2, 4).swapaxes(-1, -2).reshape(*shape, 2 * size)


def _flat(rows: Array) -> Array:
    """(rows, elements), a view where the memory permits."""
    return rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])


def _parts(count: int, size: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS // size)
    return (slice(i, i + step) for i in range(0, count, step))


def _quantise(rows: Array, bits: int) -> tuple[Array, Array]:
    kind, top = rows.dtype, 2**bits - 1
    pattern = rows.view(np.int16)
    order = pattern ^ (pattern >> 15 & 0x7FFF)  # integers in the order of the numbers; -0 is less than 0
    lowest, highest = order.min(axis=-1, keepdims=True), order.max(axis=-1, keepdims=True)
    finite = (highest < _INFINITY[kind.name]) & (lowest > ~_INFINITY[kind.name])
    zero, most = ((x ^ (x >> 15 & 0x7FFF)).view(kind) for x in (lowest, highest))
    with np.errstate(all="ignore"):
        low = zero.astype(np.float32)
        scale = ((most.astype(np.float32) - low) * (np.float32(1) / np.float32(top))).astype(kind)
        inv_scale = (np.float32(1) / scale.astype(np.float32)).astype(kind).astype(np.float32)
        steps = (rows.astype(np.float32) - low).astype(kind).astype(np.float32)
        steps = (steps * inv_scale).astype(kind).astype(np.float32)
    # 0 * infinity, where the scale has no finite inverse, is a NaN: fmax makes it code 0
    codes = np.fmin(np.rint(np.fmax(steps, np.float32(0))), np.float32(top)).astype(np.uint8)
    codes *= finite & (scale != 0)
    params = np.concatenate((scale, zero), axis=-1)
    params.view(np.uint16)[~finite[..., 0]] = _NAN[kind.name]
    return pack(codes, bits), params


def _sum(a: Array, b: Array, kind: np.dtype[Any]) -> Array:
    """a + b, of float64 numbers, rounded once to `kind`.

    The way there is float32 rounded to odd (Boldo and Melquiond, 2008): with two bits more than `kind`, the last one set wherever anything
    was lost, the second rounding cannot err.
    """
    total = a + b
    part = total - a
    # what float64 could not hold, by Knuth's two-sum; it holds all there is of float16
    lost = 0.0 if kind.name == "float16" else (a - (total - part)) + (b - part)
    near = total.astype(np.float32)
    rest = total - near
    rest = np.where(rest != 0, rest, lost)
    bits = near.view(np.int32)
    inexact = (bits & 1 == 0) & (rest != 0) & np.isfinite(total)
    outward = (rest > 0) == (near > 0)
    bits += np.where(inexact, np.where(outward, np.int32(1), np.int32(-1)), np.int32(0))
    rounded: Array = near.astype(kind)
    return rounded
