"""quantise and dequantise: the reference's bits, the promises of the format, and one rounding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes, quant, reference
from tests.attention.rows import KINDS, mixture, patterns

Array = np.ndarray[Any, Any]

DTYPES = ("float16", "bfloat16")


def quantised(bits: Array, width: int, dtype: str) -> tuple[Array, Array]:
    return quant.quantise(bits.view(dtypes.of(dtype).numpy), width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_the_references(kind: str, width: int, dtype: str) -> None:
    for head_dim in (64, 96, 256):
        rows = patterns(np.random.default_rng(head_dim), kind, 200, head_dim, dtype)
        codes, params = quantised(rows, width, dtype)
        expected, pairs = reference.quantise(rows, width, dtype)
        np.testing.assert_array_equal(codes, reference.pack(expected, width))
        np.testing.assert_array_equal(params.view(np.uint16), pairs)
        np.testing.assert_array_equal(quant.unpack(codes, width), expected)
        np.testing.assert_array_equal(reference.unpack(codes, width), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 4])
def test_the_references_formula_one_element_at_a_time(width: int, dtype: str) -> None:
    """The formula with exact fractions, each step rounded by search among all finite numbers of the type."""
    values = reference.decode(np.arange(0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16), dtype)

    def nearest(x: Fraction) -> Fraction:
        size = abs(x)
        above = int(np.searchsorted(values, float(size)))
        above = min(range(max(above - 2, 0), min(above + 3, len(values))), key=lambda i: (abs(Fraction(values[i]) - size), i % 2))
        return Fraction(values[above]) * (1 if x >= 0 else -1)

    for kind in ("random", "outlier", "tiny-range"):
        row = patterns(np.random.default_rng(0), kind, 1, 64, dtype)[0]
        x = [Fraction(v) for v in reference.decode(row, dtype)]
        steps = 2**width - 1
        # float32's part of the formula: the constant, and products and quotients in which no second rounding shows
        scale = nearest(Fraction(float(np.float32(float(max(x) - min(x))) * (np.float32(1) / np.float32(steps)))))
        inverse = nearest(1 / scale)
        codes, params = reference.quantise(row, width, dtype)
        assert [Fraction(v) for v in reference.decode(params, dtype)] == [scale, min(x)]
        assert codes.tolist() == [min(max(round(nearest(nearest(v - min(x)) * inverse)), 0), steps) for v in x]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 4])
def test_promises(width: int, dtype: str) -> None:
    rng, element = np.random.default_rng(3), dtypes.of(dtype).numpy

    def back(kind: str) -> tuple[Array, Array]:
        rows = patterns(rng, kind, 100, 128, dtype)
        return rows.view(element).astype(np.float64), quant.dequantise(*quantised(rows, width, dtype), width).astype(np.float64)

    for kind in ("constant", "zeros", "minus-zero"):
        rows, found = back(kind)
        np.testing.assert_array_equal(found, rows)
    for kind in ("nan", "infinite"):
        assert np.isnan(back(kind)[1]).all()
    for kind in ("random", "outlier"):
        rows, found = back(kind)
        span = np.ptp(rows, axis=1, keepdims=True)
        unit = 2.0**-11 if dtype == "float16" else 2.0**-8
        step = span / (2**width - 1)
        assert (np.abs(found - rows) <= step / 2 + 3 * unit * span + unit * np.abs(rows)).all()
        np.testing.assert_array_equal(found.min(axis=1), rows.min(axis=1))
    _, found = back("neighbours")
    assert np.isfinite(found).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 4])
def test_dequantise_rounds_once(width: int, dtype: str) -> None:
    """Against exact fractions: also where two roundings, through float32, would differ."""
    rng = np.random.default_rng(width)
    count = 4000
    codes = rng.integers(0, 2**width, (count, 8)).astype(np.uint8)
    element, top = dtypes.of(dtype).numpy, 0x7C00 if dtype == "float16" else 0x7F80
    params = rng.integers(0, 2**16, (count, 2), np.uint16)
    near = rng.random(count) < 0.7  # parameters of the same size, so that sums fall on and beside the middle of two numbers
    exponent = 3 if dtype == "float16" else 0
    params[near] = (0x3C00 >> exponent) + rng.integers(-(1 << 11), 1 << 11, (int(near.sum()), 2)) & 0x7FFF
    params[params & 0x7FFF >= top] = 0
    params[:, 0] &= 0x7FFF
    found = quant.dequantise(quant.pack(codes, width), params.view(element), width)
    assert found.dtype == element
    scale, zero = reference.decode(params, dtype).T
    values = reference.decode(found.view(np.uint16), dtype)
    largest = float(reference.decode(np.array([top - 1], np.uint16), dtype)[0])
    for i in rng.choice(count, 500, replace=False).tolist():
        for code, value, pattern in zip(codes[i].tolist(), values[i].tolist(), found[i].view(np.uint16).tolist(), strict=True):
            exact = code * Fraction(scale[i]) + Fraction(zero[i])
            if not np.isfinite(value):
                assert abs(exact) > largest
                continue
            error = abs(exact - Fraction(value))
            for other in (pattern + 1, pattern - 1):
                if 0 <= other & 0x7FFF < top and (pattern & 0x7FFF or other & 0x7FFF == 1):
                    beside = abs(exact - Fraction(float(reference.decode(np.array([other & 0xFFFF], np.uint16), dtype)[0])))
                    assert error < beside or (error == beside and pattern % 2 == 0)


@pytest.mark.parametrize("width", [8, 4])
def test_to_float32_and_the_reference_agree(width: int) -> None:
    rows = mixture(np.random.default_rng(0), 300, 96, "float16")
    codes, params = quantised(rows, width, "float16")
    expected = reference.dequantise(quant.unpack(codes, width), params.view(np.uint16), "float16")
    np.testing.assert_allclose(quant.to_float32(codes, params, width), expected, rtol=1e-5, atol=1e-3)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(quant.dequantise(codes, params, width), expected.astype(np.float16))


def test_rows_in_any_place_and_none() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 7, 3, 64)).astype(np.float16)
    codes, params = quant.quantise(rows[:, ::2], 4)
    again = quant.quantise(np.ascontiguousarray(rows[:, ::2]), 4)
    np.testing.assert_array_equal(codes, again[0])
    np.testing.assert_array_equal(params, again[1])
    for width in (8, 4):
        codes, params = quant.quantise(rows[:0], width)
        assert (codes.shape, params.shape) == ((0, 7, 3, 8 * width), (0, 7, 3, 2))
        assert quant.dequantise(codes, params, width).shape == (0, 7, 3, 64)


@pytest.mark.parametrize("block_len", [16, 256])
@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_the_references_offsets_are_the_layouts(kv_dtype: str, block_len: int) -> None:
    layout = pa.BlockLayout(num_kv_heads=3, head_dim=96, block_len=block_len, num_layers=2, kv_dtype=kv_dtype)
    shape = reference.Shape(3, 96, block_len, 2, "float16", dtypes.of(kv_dtype).bits)
    assert shape.block_bytes == layout.block_bytes
    for place in ((0, 0, 0), (1, 2, 7), (0, 1, block_len - 1)):
        for name in ("k_data", "v_data", "k_param", "v_param"):
            assert getattr(layout, name)(*place) == getattr(shape, name.replace("data", "offset").replace("param", "param_offset"))(*place)
