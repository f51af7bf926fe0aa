"""The bounds are tight: they refuse what a wrong kernel would give."""

from __future__ import annotations

import numpy as np
import pytest

from pagedattn import dtypes, reference
from tests.attention.cases import CASES
from tests.attention.tolerance import UNIT, bounds, bounds_of_codes, worst


def rows(dtype: str, num_keys: int, heads: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(num_keys)
    kind = dtypes.of(dtype).numpy
    return tuple(rng.standard_normal((n, h, 128)).astype(kind).astype(np.float64) for n, h in ((1, heads), (num_keys, 1), (num_keys, 1)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("num_keys", [2, 17, 65, 300])
def test_a_dropped_key_is_seen(dtype: str, num_keys: int) -> None:
    q, k, v = rows(dtype, num_keys)
    whole = reference.attention(q, k, v)
    limit = bounds(whole, dtype, num_keys, float(np.abs(v).max()))
    for dropped in range(num_keys):
        rest = np.delete(np.arange(num_keys), dropped)
        part = reference.attention(q, k[rest], v[rest], causal=False)
        assert worst(part.lse, whole.lse, limit.lse)[0] > 10, f"lse without key {dropped}"
        if dtype == "float16" or num_keys < 100:
            assert worst(part.out, whole.out, limit.out)[0] > 1, f"output without key {dropped}"


@pytest.mark.parametrize("num_keys", [1000, 4000])
def test_a_dropped_tile_is_seen_in_long_sequences(num_keys: int) -> None:
    q, k, v = rows("float16", num_keys)
    whole = reference.attention(q, k, v)
    limit = bounds(whole, "float16", num_keys, float(np.abs(v).max()))
    for first in range(0, num_keys, 16 * 9):
        rest = np.delete(np.arange(num_keys), slice(first, first + 16))
        part = reference.attention(q, k[rest], v[rest], causal=False)
        assert worst(part.out, whole.out, limit.out)[0] > 1, f"output without keys {first} .. {first + 15}"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("num_keys", [1, 17, 1000])
def test_a_correct_rounding_passes(dtype: str, num_keys: int) -> None:
    q, k, v = rows(dtype, num_keys)
    whole = reference.attention(q, k, v)
    limit = bounds(whole, dtype, num_keys, float(np.abs(v).max()))
    rounded = whole.out.astype(dtypes.of(dtype).numpy).astype(np.float64)
    assert worst(rounded, whole.out, limit.out)[0] <= 1
    assert worst(whole.lse.astype(np.float32), whole.lse, limit.lse)[0] <= 1


Array = np.ndarray


def codes_of(rows: Array, bits: int, dtype: str) -> tuple[Array, Array, Array]:
    """Codes, (scale, zero), and what they read back as."""
    codes, params = reference.quantise(rows.astype(dtypes.of(dtype).numpy).view(np.uint16), bits, dtype)
    return codes.astype(np.float64), reference.decode(params, dtype), reference.dequantise(codes, params, dtype)


def decoded(q: Array, k: tuple[Array, Array], v: tuple[Array, Array], bits: int, dtype: str) -> tuple[Array, Array]:
    """Decode of one KV head as kernels do it: scale and zero act on scores and on P; P * scale and zero + middle * scale are rounded."""

    def rounded(x: Array) -> Array:
        return x.astype(np.float32).astype(dtypes.of(dtype).numpy).astype(np.float64)

    (k_codes, k_params), (v_codes, v_params) = ((x[:, 0], p[:, 0]) for x, p in (k, v))
    scores = (q[0] @ k_codes.T * k_params[:, 0] + q[0].sum(axis=1, keepdims=True) * k_params[:, 1]) * q.shape[2] ** -0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True)) * 16
    p, middle = rounded(weights), 2.0 ** (bits - 1)
    zeros = rounded(v_params[:, 1] + middle * v_params[:, 0])
    out = rounded(p * v_params[:, 0]) @ (v_codes - middle) + (p @ zeros)[:, None]
    total = p.sum(axis=1)
    return rounded(out / total[:, None])[None], (scores.max(axis=1) + np.log(total / 16))[None]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("num_keys", [1, 17, 300, 4000])
@pytest.mark.parametrize("gain", [1.0, 2.0**-9, 4000.0])
def test_codes(dtype: str, bits: int, num_keys: int, gain: float) -> None:
    """What decode does passes, and what prefill does; wrong nibbles, a wrong scale, a row's neighbour and a dropped tile do not."""
    q, k, v = rows(dtype, num_keys)
    k_codes, k_params, k = codes_of(k, bits, dtype)
    v_codes, v_params, v = codes_of(v * gain, bits, dtype)
    whole = reference.attention(q, k, v)
    limit = bounds_of_codes(whole, dtype, bits, q, k, v, k_params, v_params)
    out, lse = decoded(q, (k_codes, k_params), (v_codes, v_params), bits, dtype)
    assert worst(out, whole.out, limit.out)[0] <= 1
    assert worst(lse, whole.lse, limit.lse)[0] <= 1
    element = dtypes.of(dtype).numpy
    dense = reference.attention(q, k.astype(element).astype(np.float64), v.astype(element).astype(np.float64))
    assert worst(dense.out, whole.out, limit.out)[0] <= 1
    assert worst(dense.lse, whole.lse, limit.lse)[0] <= 1

    swapped = v_codes.reshape(num_keys, 1, -1, 2)[..., ::-1].reshape(v_codes.shape) * v_params[..., :1] + v_params[..., 1:]
    assert worst(reference.attention(q, k, swapped).out, whole.out, limit.out)[0] > 10
    assert worst(reference.attention(q, k, v * (1 + 64 * UNIT[dtype])).out, whole.out, limit.out)[0] > 1, "one scale or zero for all"
    if num_keys > 1:
        assert worst(reference.attention(q, k, np.roll(v, 1, axis=0)).out, whole.out, limit.out)[0] > 1
        rest = np.delete(np.arange(num_keys), slice(0, 16) if num_keys > 16 else slice(0, 1))
        dropped = reference.attention(q, k[rest], v[rest], causal=False)
        assert max(worst(dropped.out, whole.out, limit.out)[0], worst(dropped.lse, whole.lse, limit.lse)[0]) > 1


def test_a_nan_is_seen() -> None:
    expected, bound = np.zeros(3), np.ones(3)
    assert worst(np.array([0.0, np.nan, 0.0]), expected, bound) == (np.inf, (1,))
    assert worst(expected, np.array([0.0, 0.0, -np.inf]), bound) == (np.inf, (2,))


def test_ids_are_unique() -> None:
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids)
    assert all(case.why for case in CASES)
