"""Integer and bit instructions that NumPy has no operator for."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_U4, _U8 = np.uint32, np.uint64


def divide(a: Array, b: Array) -> Array:
    """div of integers, toward zero; by zero gives all ones."""
    a, b = np.broadcast_arrays(a, b)
    zero = b == 0
    if a.dtype.kind == "u":
        return np.where(zero, a.dtype.type(np.iinfo(a.dtype).max), a // np.where(zero, a.dtype.type(1), b))
    quotient = a // np.where(zero, a.dtype.type(1), b)
    rest = a - quotient * b
    quotient = quotient + ((rest != 0) & ((a < 0) != (b < 0)))
    result: Array = np.where(zero, a.dtype.type(-1), quotient).astype(a.dtype)
    return result


def remainder(a: Array, b: Array) -> Array:
    """rem of integers: the sign of `a`; by zero gives `a`."""
    a, b = np.broadcast_arrays(a, b)
    return np.where(b == 0, a, (a - divide(a, b) * b).astype(a.dtype))


def mul_hi(a: Array, b: Array) -> Array:
    """The upper half of a product."""
    bits = a.dtype.itemsize * 8
    if bits < 64:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return ((a.astype(wide) * b.astype(wide)) >> wide(bits)).astype(a.dtype)
    x, y = a.view(_U8), b.view(_U8)
    m, s = _U8(0xFFFFFFFF), _U8(32)
    x0, x1, y0, y1 = x & m, x >> s, y & m, y >> s
    middle = x1 * y0 + ((x0 * y0) >> s)
    other = x0 * y1 + (middle & m)
    high = x1 * y1 + (middle >> s) + (other >> s)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, _U8(0)) - np.where(b < 0, x, _U8(0))
    result: Array = high.view(a.dtype)
    return result


def reverse(a: Array) -> Array:
    """brev."""
    bits = a.dtype.itemsize * 8
    result = np.zeros_like(a)
    one = a.dtype.type(1)
    for i in range(bits):
        result |= ((a >> a.dtype.type(i)) & one) << a.dtype.type(bits - 1 - i)
    return result


def count_ones(a: Array) -> Array:
    """popc."""
    return np.bitwise_count(a).astype(_U4)


def leading_zeros(a: Array) -> Array:
    """clz."""
    bits = a.dtype.itemsize * 8
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < bits:
            a = a | (a >> a.dtype.type(shift))
    return (bits - np.bitwise_count(a).astype(np.int64)).astype(_U4)


def find_bit(a: Array, shift_amount: bool) -> Array:
    """bfind: the place of the most significant bit that is not the sign; .shiftamt: how far it is from the top; none: all ones."""
    bits = a.dtype.itemsize * 8
    x = np.where(a < 0, ~a, a).view(f"u{a.dtype.itemsize}") if a.dtype.kind == "i" else a
    zeros = leading_zeros(x)
    place = zeros if shift_amount else _U4(bits - 1) - zeros
    return np.where(zeros == bits, _U4(0xFFFFFFFF), place)


def extract_bits(a: Array, start: Array, length: Array) -> Array:
    """bfe: `length` bits from `start`, sign-extended for signed types."""
    bits = a.dtype.itemsize * 8
    pos, count = np.broadcast_arrays(np.minimum(start & _U4(255), _U4(bits)), length & _U4(255))
    count = np.minimum(count, _U4(bits) - np.minimum(pos, _U4(bits)))
    unsigned = a.view(f"u{a.dtype.itemsize}")
    kind = unsigned.dtype.type
    mask = (kind(1) << count.astype(kind)) - kind(1)
    result = (unsigned >> pos.astype(kind)) & mask
    if a.dtype.kind == "i":
        last = np.minimum(pos + np.maximum(length & _U4(255), _U4(1)) - _U4(1), _U4(bits - 1))
        negative = ((unsigned >> last.astype(kind)) & kind(1)).astype(bool) & ((length & _U4(255)) != 0)
        result = np.where(negative, result | ~mask, result)
    answer: Array = result.view(a.dtype)
    return answer


def insert_bits(a: Array, b: Array, start: Array, length: Array) -> Array:
    """bfi: the low `length` bits of `a` into `b` at `start`."""
    kind = b.dtype.type
    pos, count = (start & _U4(255)).astype(kind), (length & _U4(255)).astype(kind)
    bits = b.dtype.itemsize * 8
    ones = np.where(count >= bits, kind(np.iinfo(b.dtype).max), (kind(1) << count) - kind(1)).astype(b.dtype)
    mask = ones << pos
    answer: Array = (b & ~mask) | ((a << pos) & mask)
    return answer


def permute(a: Array, b: Array, selector: Array, mode: str = "") -> Array:
    """prmt: four bytes of {b, a}; bit 3 of a selector copies the byte's sign into all of it."""
    pair = np.atleast_1d(a).astype(_U8) | (np.atleast_1d(b).astype(_U8) << _U8(32))
    choice = np.atleast_1d(selector).astype(_U8)
    if choice.size > 1 and (choice == choice[0]).all():
        choice = choice[:1]
    low = choice & _U8(3)
    result = np.zeros(1, _U8)
    for i in range(4):
        if mode == "":
            nibble = (choice >> _U8(4 * i)) & _U8(15)
        else:
            n = int(i)
            nibble = {
                "f4e": low + _U8(n),
                "b4e": (low - _U8(n)) & _U8(7),
                "rc8": low,
                "rc16": ((low & _U8(1)) << _U8(1)) + _U8(n & 1),
                "ecl": np.maximum(low, _U8(n)),
                "ecr": np.minimum(low, _U8(n)),
            }[mode]
        byte = (pair >> ((nibble & _U8(7)) << _U8(3))) & _U8(255)
        if mode == "" and (nibble & _U8(8)).any():
            sign = np.where((byte & _U8(128)) != 0, _U8(255), _U8(0))
            byte = np.where((nibble & _U8(8)) != 0, sign, byte)
        result = result | (byte << _U8(8 * i))
    return result.astype(_U4)


def lop3(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: any function of three bits, by its truth table."""
    result = a & _U4(0)
    for i in range(8):
        if table >> i & 1:
            result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return result


def funnel(low: Array, high: Array, amount: Array, left: bool, wrap: bool) -> Array:
    """shf: 32 bits of {high, low} shifted."""
    n = (amount & _U4(31) if wrap else np.minimum(amount, _U4(32))).astype(_U8)
    pair = (np.atleast_1d(high).astype(_U8) << _U8(32)) | np.atleast_1d(low).astype(_U8)
    return ((pair << n) >> _U8(32) if left else pair >> n).astype(_U4)
