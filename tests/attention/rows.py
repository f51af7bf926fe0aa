"""Rows that try a quantiser: bit patterns of every kind that its formula treats in a way of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagedattn import dtypes

Array = np.ndarray[Any, Any]

KINDS = (
    "random",
    "outlier",
    "constant",
    "zeros",
    "minus-zero",
    "two-zeros",
    "neighbours",
    "tiny-range",
    "no-inverse",
    "huge",
    "extremes",
    "subnormal",
    "nan",
    "infinite",
    "any-bits",
)


def patterns(rng: np.random.Generator, kind: str, count: int, head_dim: int, dtype: str) -> Array:
    """`count` rows of one kind, uint16 (count, head_dim)."""
    element = dtypes.of(dtype).numpy
    shape = (count, head_dim)
    x = rng.standard_normal(shape).astype(np.float32)
    largest = np.uint16(0x7BFF if dtype == "float16" else 0x7F7F)  # and its lowest bits are its neighbours'
    if kind == "outlier":
        x[np.arange(count), rng.integers(0, head_dim, count)] *= 300
    elif kind == "constant":
        x[...] = x[:, :1] * np.exp2(rng.integers(-14, 14, (count, 1)))
    elif kind == "zeros":
        x[...] = 0
    elif kind == "minus-zero":
        x[...] = -0.0
    elif kind == "two-zeros":
        x = np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.maximum(x, 0))
    elif kind == "tiny-range":
        x = 8 + x * np.float32(2.0**-6)
    elif kind == "no-inverse":
        x *= np.float32(2.0**-13 if dtype == "float16" else 2.0**-122)
    elif kind == "huge":
        x *= np.float32(10000 if dtype == "float16" else 2.0**124)
    bits = x.astype(element).view(np.uint16)
    if kind == "neighbours":  # one pattern and the next: the scale of most such rows rounds to zero
        bits = bits[:, :1] + rng.integers(0, 2, shape, np.uint16)
    elif kind == "extremes":
        bits = largest - rng.integers(0, 4, shape, np.uint16) + (rng.integers(0, 2, shape, np.uint16) << 15).astype(np.uint16)
    elif kind == "subnormal":
        bits = rng.integers(0, 40, shape, np.uint16) | (rng.integers(0, 2, shape, np.uint16) << 15).astype(np.uint16)
    elif kind in ("nan", "infinite"):
        special = {"nan": (0x7FFF, 0xFFC1, 0x7FC0), "infinite": (largest + 1, 0x8001 + largest, largest + 1)}[kind]
        bits[np.arange(count), rng.integers(0, head_dim, count)] = np.array(special, np.uint16)[np.arange(count) % 3]
    elif kind == "any-bits":
        bits = rng.integers(0, 2**16, shape, np.uint16)
    return np.ascontiguousarray(bits)


def mixture(rng: np.random.Generator, count: int, head_dim: int, dtype: str) -> Array:
    """`count` rows of all kinds in turn, uint16 (count, head_dim)."""
    each = [patterns(rng, kind, -(-count // len(KINDS)), head_dim, dtype) for kind in KINDS]
    return np.ascontiguousarray(np.stack(each, axis=1).reshape(-1, head_dim)[:count])
