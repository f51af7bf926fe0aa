"""Tensor-core instructions: fragments by the ISA's formulas, products summed exactly and rounded once.

PTX leaves the order and the rounding of the sum open ("at least single precision"); silicon truncates. Here the sum is float64, so the two
differ by at most 2^-22 (|c| + sum |a b|) for each k-step of 8 or 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx.floats import from_bf16, from_f16

Array = NDArray[Any]


def _halves(words: Array, kind: str) -> Array:
    """(warps, 8, 8) of a register that holds two elements in each lane: lane l -> row l/4, columns 2*(l%4) and 2*(l%4) + 1."""
    bits = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)
    return from_f16(bits) if kind == "f16" else from_bf16(bits).astype(np.float64)


def m16n8(a: list[Array], b: list[Array], c: list[Array], kind: str) -> list[Array]:
    """mma.m16n8k8 and m16n8k16 .row.col.f32.T.T.f32; registers are uint32 (a, b) and float32 (c, d), (warps, 32).

    A 16xk: lane l, element i -> row l/4 + 8*(i/2%2), column 2*(l%4) + i%2 + 8*(i/4)
    B kx8:  lane l, element i -> row 2*(l%4) + i%2 + 8*(i/2), column l/4
    C 16x8: lane l, element i -> row l/4 + 8*(i/2), column 2*(l%4) + i%2
    """
    warps, steps = len(a[0]), len(b)
    left = np.empty((warps, 16, 8 * steps))
    right = np.empty((warps, 8 * steps, 8))
    for k in range(steps):
        left[:, :8, 8 * k : 8 * k + 8] = _halves(a[2 * k], kind)
        left[:, 8:, 8 * k : 8 * k + 8] = _halves(a[2 * k + 1], kind)
        right[:, 8 * k : 8 * k + 8] = _halves(b[k], kind).transpose(0, 2, 1)
    product = np.matmul(left, right)
    d = []
    for row in range(2):
        quad = product[:, 8 * row : 8 * row + 8].reshape(warps, 32, 2)
        for column in range(2):
            d.append((quad[:, :, column] + c[2 * row + column]).astype(np.float32))
    return d


_LANE = np.arange(32)
_PAIR = _LANE % 16 // 4  # quad pair of a lane: lanes 4p .. 4p + 3 and 4p + 16 .. 4p + 19
_UPPER = _LANE // 16


def m8n8k4(a: list[Array], b: list[Array], c: list[Array], a_order: str, b_order: str) -> list[Array]:
    """mma.m8n8k4.f32.f16.f16.f32: four products, one for each quad pair p; a, b: 2 registers of uint32, c, d: 8 of float32, (warps, 32).

    A 8x4 row: lane l, element i -> row l%4 + 4*(l/16), column i;               col: row i%4 + 4*(l/16), column l%4
    B 4x8 col: lane l, element i -> row i, column l%4 + 4*(l/16);               row: row l%4, column i%4 + 4*(l/16)
    C 8x8:     lane l, element i -> row (l%2) + (i&2) + 4*(l/16), column (i&4) + (l&2) + (i&1)
    """
    warps = len(a[0])
    elements = {}
    for name, words in (("a", a), ("b", b)):
        bits = np.stack(words, axis=2).view(np.uint16).reshape(warps, 32, 4)
        elements[name] = from_f16(bits)
    left, right = np.empty((warps, 4, 8, 4)), np.empty((warps, 4, 4, 8))
    outer, inner = _LANE % 4 + 4 * _UPPER, _LANE % 4
    for i in range(4):
        if a_order == "row":
            left[:, _PAIR, outer, i] = elements["a"][:, :, i]
        else:
            left[:, _PAIR, i + 4 * _UPPER, inner] = elements["a"][:, :, i]
        if b_order == "col":
            right[:, _PAIR, i, outer] = elements["b"][:, :, i]
        else:
            right[:, _PAIR, inner, i + 4 * _UPPER] = elements["b"][:, :, i]
    product = np.matmul(left, right)
    d = []
    for i in range(8):
        row, column = _LANE % 2 + (i & 2) + 4 * _UPPER, (i & 4) + (_LANE & 2) + (i & 1)
        d.append((product[:, _PAIR, row, column] + c[i]).astype(np.float32))
    return d


def ldmatrix(rows: Array, count: int, transposed: bool) -> list[Array]:
    """ldmatrix: `rows` (warps, 8 * count, 4) uint32 are the 16-byte rows that the lanes point to; one register (warps, 32) for each matrix.

    Lane l gets row l/4, elements 2*(l%4) and 2*(l%4) + 1; .trans: column l/4.
    """
    matrices = np.ascontiguousarray(rows).view(np.uint16).reshape(-1, count, 8, 8)
    if transposed:
        matrices = np.ascontiguousarray(matrices.transpose(0, 1, 3, 2))
    words = matrices.view(np.uint32).reshape(-1, count, 32)
    return [np.ascontiguousarray(words[:, i]) for i in range(count)]


def movmatrix(words: Array) -> Array:
    """movmatrix.m8n8.trans.b16: the transpose of the matrix that a warp holds in one register (warps, 32)."""
    matrix = np.ascontiguousarray(words).view(np.uint16).reshape(-1, 8, 8)
    return np.ascontiguousarray(matrix.transpose(0, 2, 1)).view(np.uint32).reshape(-1, 32)
