"""merge: attention over parts of the keys makes attention over all of them."""

from __future__ import annotations

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes, reference
from tests.attention.tolerance import UNIT, bounds, worst

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [64, 96, 256])
def test_parts_make_the_whole(device: str, dtype: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    kind, where = dtypes.of(dtype).numpy, pa.devices.get(device)
    parts = (100, 1, 0, 333)  # a part without keys weighs nothing
    k, v = (rng.standard_normal((sum(parts), 2, head_dim)).astype(kind) for _ in "kv")
    q = rng.standard_normal((5, 8, head_dim)).astype(kind)
    sinks = rng.standard_normal(8).astype(np.float32)
    outs, lses, start = [], [], 0
    for count in parts:
        cache = pa.KVCache(40, num_kv_heads=2, head_dim=head_dim, block_len=16, dtype=dtype, device=device)
        # five decode queries over the same keys: five forks
        first = cache.new_sequence()
        batch = cache.extend([first], [count])
        rows = slice(start, start + count)
        start = rows.stop
        pa.append(where.asarray(k[rows]), where.asarray(v[rows]), cache, batch)
        if count:
            keywords = {"sinks": where.asarray(sinks)} if count == 1 else {}
            forks = [first, *(cache.fork(first) for _ in range(4))]
            out, lse = pa.paged_attention(where.asarray(q), cache, cache.batch(forks), return_lse=True, **keywords)
        else:
            out, lse = where.asarray(np.full_like(q, np.nan)), where.asarray(np.full(q.shape[:2], -np.inf, np.float32))
        outs.append(out)
        lses.append(lse)
    out, lse = (where.to_host(x).astype(np.float64) for x in pa.merge(outs, lses))
    wide = [x.astype(np.float64) for x in (q, k, v)]
    whole = reference.attention(wide[0], wide[1], wide[2], causal=False, sinks=sinks)
    limit = bounds(whole, dtype, sum(parts), float(np.abs(wide[2]).max()))
    assert worst(out, whole.out, limit.out + UNIT[dtype] * whole.mass)[0] <= 1, "each part was rounded once more"
    assert worst(lse, whole.lse, 2 * limit.lse)[0] <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_against_the_reference(device: str) -> None:
    rng = np.random.default_rng(3)
    where = pa.devices.get(device)
    outs = list(rng.standard_normal((3, 7, 4, 64)).astype(np.float16))
    lses = [x.astype(np.float32) for x in 30 * rng.standard_normal((3, 7, 4))]
    lses[0][2] = -np.inf
    for part in lses:
        part[5] = -np.inf  # no part has a key
    out, lse = (where.to_host(x) for x in pa.merge([where.asarray(x) for x in outs], [where.asarray(x) for x in lses]))
    expected, expected_lse = reference.merge(outs, lses)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2.0**-10, atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-5)
    assert (out[5] == 0).all()
    assert np.isneginf(lse[5]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_one_part_and_no_rows(device: str) -> None:
    where = pa.devices.get(device)
    one = where.asarray(np.random.default_rng(0).standard_normal((3, 2, 128)).astype(np.float16))
    weight = where.asarray(np.ones((3, 2), np.float32))
    out, lse = pa.merge([one], [weight])
    np.testing.assert_array_equal(where.to_host(out), where.to_host(one))
    np.testing.assert_array_equal(where.to_host(lse), where.to_host(weight))
    out, lse = pa.merge([one[:0]] * 2, [weight[:0]] * 2)
    assert (out.shape, lse.shape) == ((0, 2, 128), (0, 2))


@pytest.mark.parametrize(
    ("outs", "lses", "text"),
    [
        (5, 5, "`outs` must be a sequence of arrays; got int"),
        ([np.zeros((1, 1, 64), np.float16)], None, "`lses` must be a sequence of arrays; got NoneType"),
        ([], [], "same length, at least 1; got 0 and 0"),
        ([np.zeros((1, 1, 64), np.float16)], [], "got 1 and 0"),
        ([[0.0]], [np.zeros((1, 1), np.float32)], r"`outs\[0\]` must be an array .*got list"),
        ([np.zeros((1, 64), np.float16)], [np.zeros((1, 1), np.float32)], "3 dimensions"),
        ([np.zeros((1, 1, 64), np.float32)], [np.zeros((1, 1), np.float32)], "float16, bfloat16"),
        ([np.zeros((1, 1, 64), np.float16), np.zeros((2, 1, 64), np.float16)], [np.zeros((1, 1), np.float32)] * 2, r"outs\[1\]"),
        ([np.zeros((1, 1, 64), np.float16)], [np.zeros((1, 2), np.float32)], r"lses\[0\]"),
        ([np.zeros((1, 1, 64), np.float16)], [np.zeros((1, 1))], r"lses\[0\].*float32.*float64"),
    ],
)
def test_bad_parts(outs: list, lses: list, text: str) -> None:
    with pytest.raises(pa.ArgumentError, match=text):
        pa.merge(outs, lses)
