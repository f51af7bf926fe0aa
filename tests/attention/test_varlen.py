"""varlen_attention: contiguous keys and values, against the reference and against the paged cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from tests.attention.cases import HEAD_DIMS, MIXED, PREFILL, Case
from tests.attention.test_attention import changing, compare
from tests.attention.world import make

DEVICES = ("cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.cuda))
SHORT = tuple((min(new, 33), min(length, 150 if new < 34 else 33)) for new, length in MIXED)
CASES = [
    *(Case(f"d{dim}", "every head_dim has a kernel", SHORT, num_heads=4, head_dim=dim) for dim in HEAD_DIMS),
    Case("d64-bf16", "and every dtype", SHORT, head_dim=64, dtype="bfloat16"),
    Case("prefill", "whole prompts, and chunks", PREFILL[::3], num_heads=6, num_kv_heads=1, head_dim=64),
    Case("single", "single queries only", ((1, 100), (1, 1), (1, 64)), fused=True),
    Case("fused", "k and v are views of a fused buffer", SHORT, fused=True, sinks=True, keywords={"window_size": 30, "softcap": 9.0}),
    Case("mask", "options that act on q and on scores", SHORT, mask="random", alibi=0.2, keywords={"causal": False}),
    Case("empty", "nothing to do", ((0, 0), (0, 5)), head_dim=64),
]


def cumulative(lengths: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, device: str) -> None:
    world, where = make(case), pa.devices.get(device)
    k, v = (np.concatenate([rows[i] for rows in world.dense]) for i in (0, 1))
    if case.fused:  # NaN around them: what lies between tokens is nobody's
        buffer = where.asarray(np.concatenate([np.full_like(k, np.nan), k, np.full_like(k[:, :1], np.nan), v], axis=1))
        heads = case.num_kv_heads
        keys, values = buffer[:, heads : 2 * heads], buffer[:, 2 * heads + 1 :]
    else:
        keys, values = where.asarray(k), where.asarray(v)
    keywords = dict(case.keywords, **changing(world, where))
    if case.sinks:
        keywords["sinks"] = where.asarray(world.sinks)
    lengths = (cumulative(world.seqlens_q), where.asarray(cumulative(world.seqlens_k)))
    found, lse = pa.varlen_attention(where.asarray(world.q), keys, values, *lengths, return_lse=True, device=device, **keywords)
    assert type(found) is where.array_type
    compare(world, where.to_host(found), where.to_host(lse))


@pytest.mark.parametrize("target", ["sm_70", "sm_75"])
def test_the_other_family(target: str) -> None:
    test_case(next(case for case in CASES if case.id == "d64"), f"interpreter:{target}")


@pytest.mark.parametrize("device", DEVICES)
def test_rope_turns_keys_too(device: str) -> None:
    rng, where = np.random.default_rng(0), pa.devices.get(device)
    q, k, v = (where.asarray(rng.standard_normal((70, heads, 64)).astype(np.float16)) for heads in (4, 2, 2))
    rope, starts = pa.Rope("linear", factor=2.0, interleaved=True), [0, 20, 70]
    found = pa.varlen_attention(q, k, v, starts, starts, rope=rope, device=device)
    cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, device=device)
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 50])
    expected = pa.paged_attention(q, cache, batch, k=k, v=v, rope=rope)
    np.testing.assert_array_equal(where.to_host(found), where.to_host(expected))
    assert not np.array_equal(where.to_host(found), where.to_host(pa.varlen_attention(q, k, v, starts, starts, device=device)))


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({"causal": "no"}, "`causal` must be True or False"),
        ({"return_lse": "no"}, "`return_lse` must be True or False; got 'no'"),
        ({"out": np.zeros((3, 2, 64), np.float32)}, "`out` must have k's dtype, float16; got float32. Convert it."),
        ({"mask": [[True], [True, False]]}, "`mask` must"),
        ({"alibi_slopes": np.array([1.0, np.nan], np.float32)}, "`alibi_slopes` must be finite"),
        ({"logn_max_position": np.array([4, 5])}, "`logn_max_position` must be an integer"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], text: str) -> None:
    rows = np.zeros((3, 2, 64), np.float16)
    with pytest.raises(pa.ArgumentError, match=text):
        pa.varlen_attention(rows, rows, rows, [0, 3], [0, 3], **keywords)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["q_bias", "logn_max_position"])
def test_queries_change_without_a_rope(name: str, device: str) -> None:
    rng, where = np.random.default_rng(0), pa.devices.get(device)
    q, k, v = (where.asarray(rng.standard_normal((20, heads, 64)).astype(np.float16)) for heads in (4, 2, 2))
    keywords: dict[str, Any] = {
        name: 5 if name == "logn_max_position" else where.asarray(rng.standard_normal((4, 64)).astype(np.float16)),
        "window_size": 9,
    }
    found = where.to_host(pa.varlen_attention(q, k, v, [0, 20], [0, 20], device=device, **keywords))
    cache = pa.KVCache(1, num_kv_heads=2, head_dim=64, device=device)
    expected = pa.paged_attention(q, cache, cache.extend([cache.new_sequence()], [20]), k=k, v=v, **keywords)
    np.testing.assert_array_equal(found, where.to_host(expected))
    assert not np.array_equal(found, where.to_host(pa.varlen_attention(q, k, v, [0, 20], [0, 20], window_size=9, device=device)))


def test_refused() -> None:
    q = k = v = np.ones((5, 2, 64), np.float16)
    good = [0, 3, 5]
    for arguments, keywords, text in (
        ((q, k, v, [0, 3, 4], good), {}, r"`q.shape\[0\]` must equal the total of cu_seqlens_q, 4; got 5"),
        ((q, k, v, good, [0, 3, 6]), {}, r"`k.shape\[0\]` must equal the total of cu_seqlens_k, 6; got 5"),
        ((q, k, v.astype(np.float32), good, good), {}, "`v` must have k's dtype, float16; got float32. Convert it."),
        ((q, k, v, good, [0, 5]), {}, "`cu_seqlens_q` and `cu_seqlens_k` must be of the same sequences; got 2 and 1 of them"),
        (
            (np.ones((5, 3, 64), np.float16), k, v, good, good),
            {},
            r"`q.shape\[1\]`, the query heads, must be a multiple of k's 2 KV heads; got 3",
        ),
        ((q, k, v, [1, 3, 5], good), {}, "`cu_seqlens_q` must be integers that rise from 0"),
        ((q, k, v, good, [0, 6, 5]), {}, "`cu_seqlens_k` must be integers that rise from 0"),
        ((q, k, v, [0.0, 5.0], [0, 5]), {}, "`cu_seqlens_q` must be integers"),
        ((q, k, v, 3, good), {}, r"`cu_seqlens_q` must be integers that rise from 0.*got int64 of shape \(\): \[3\]"),
        ((q, k, v, good, None), {}, "`cu_seqlens_k` must be integers that rise from 0.*got object"),
        ((q, k, v, "abc", good), {}, "`cu_seqlens_q` must be integers that rise from 0.*'abc'"),
        ((q, k, v, [[0, 3], [5]], good), {}, "`cu_seqlens_q` must hold integers, in one row; NumPy says"),
        ((q, k, v, good, [0, 2, 5]), {}, "seqlens_q <= seqlens_k must hold; sequence 0 has 3 new tokens of 2"),
        ((q, k[:, :, :32], v, good, good), {}, "`head_dim` must be one of"),
        ((q, k, v[:, :1], good, good), {}, r"`v.shape\[1\]` must equal the KV heads, 2; got 1"),
        ((q, k, v, good, good), {"mask": np.ones(3, bool)}, r"`mask` must be bool of shape \(13,\)"),
        ((q, k, v, good, good), {"rope": "yarn"}, "`rope` of varlen_attention must be a Rope"),
        ((q, k, v, good, good), {"cp": 1}, "`cp` must be None: ranks share the keys of a paged cache"),
    ):
        with pytest.raises(pa.PagedAttnError, match=text):
            pa.varlen_attention(*arguments, **keywords)
