"""Batch: what it holds, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.batch import Batch


def batch(table: Any, seqlens_q: Any, seqlens_k: Any, **keywords: Any) -> Batch:
    return Batch(table, seqlens_q, seqlens_k, device="cpu", **keywords)


def layout(block_len: int = 16) -> pa.BlockLayout:
    return pa.BlockLayout(num_kv_heads=1, head_dim=64, block_len=block_len)


def test_attributes() -> None:
    b = batch([[3, 1, -1], [2, -1, -1], [0, 0, 0]], [1, 4, 0], [17, 4, 0])
    assert b.block_table.tolist() == [[3, 1, -1], [2, -1, -1], [0, 0, 0]]
    assert b.cu_seqlens_q.tolist() == [0, 1, 5, 5]
    assert b.cu_seqlens_k.tolist() == [0, 17, 21, 21]
    assert [x.dtype for x in (b.block_table, b.cu_seqlens_q, b.cu_seqlens_k)] == [np.int32] * 3
    assert [x.dtype for x in (b.seqlens_q, b.seqlens_k)] == [np.int64] * 2
    assert (b.batch_size, b.max_blocks, b.max_seqlen_q, b.max_seqlen_k, b.num_tokens, b.total_k) == (3, 3, 4, 17, 5, 21)
    assert (b.num_decode, b.num_prefill) == (1, 1)
    assert b.device is pa.devices.get("cpu")


def test_one_buffer_and_no_way_to_change_it() -> None:
    table = np.array([[3, 1]], np.int32)
    b = batch(table, [1], [20])
    table[0, 0] = 5
    assert b.block_table[0, 0] == 3
    assert b.block_table.base is not None
    assert b.block_table.base is b.cu_seqlens_q.base is b.cu_seqlens_k.base
    for x in (b.block_table, b.cu_seqlens_q, b.cu_seqlens_k, b.seqlens_q, b.seqlens_k):
        with pytest.raises(ValueError, match="read-only"):
            x[...] = 0


@pytest.mark.parametrize(
    ("table", "lengths"),
    [([], []), (np.zeros((0, 4), np.int32), []), (np.zeros((0, 4)), np.array([])), ([[], []], [0, 0]), ([[-1], [7]], [0, 0])],
)
def test_empty(table: Any, lengths: Any) -> None:
    b = batch(table, lengths, lengths)
    assert (b.num_tokens, b.total_k, b.max_seqlen_q, b.max_seqlen_k, b.num_decode, b.num_prefill) == (0,) * 6
    assert b.cu_seqlens_k.tolist() == [0] * (len(lengths) + 1)
    b.check_width(16)
    b.check_cache(layout(), 1)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_any_integers(kind: Any) -> None:
    b = batch(np.array([[3, 1]], kind), np.array([1], kind), np.array([20], kind))
    assert b.block_table.tolist() == [[3, 1]]
    assert (b.num_tokens, b.total_k) == (1, 20)


@pytest.mark.parametrize("entry", [2**32, 2**33 + 1, -(2**40)])
def test_an_entry_too_wide_for_int32_stays_wrong(entry: int) -> None:
    b = batch(np.array([[entry]], np.int64), [1], [1])
    with pytest.raises(pa.ArgumentError, match=r"block_table\[0, 0\]"):
        b.check_cache(layout(), 100)
    batch(np.array([[0, entry]], np.int64), [1], [16]).check_cache(layout(), 100)  # not used


@pytest.mark.parametrize(
    ("table", "seqlens_q", "seqlens_k", "text"),
    [
        ([0, 1], [1], [1], r"`block_table` must have the shape \(batch_size, max_blocks\); got \(2,\)"),
        ([[[0]]], [1], [1], "`block_table` must have the shape"),
        ([[0], [1, 2]], [1, 1], [1, 1], "`block_table` must hold integers, in rows of equal length"),
        ([[0.5]], [1], [1], "`block_table` must hold integers; got float64"),
        ([["a"]], [1], [1], "`block_table` must hold integers"),
        ([[True]], [1], [1], "`block_table` must hold integers; got bool"),
        ([[0]], [1, 1], [1, 1], "`block_table` must have a row for each of the 2 sequences; got 1"),
        ([[0]], [1], [1, 1], "must have the same length; got 1 and 2"),
        ([[0]], 1, [1], r"`seqlens_q` must have the shape \(batch_size,\); got \(\)"),
        ([[0]], [1], [[1]], "`seqlens_k` must have the shape"),
        ([[0]], [1.0], [1], "`seqlens_q` must hold integers"),
        ([[0]], [-1], [1], "`seqlens_q` must not be negative; sequence 0 has -1"),
        ([[0], [0]], [0, 0], [1, -5], "`seqlens_k` must not be negative; sequence 1 has -5"),
        ([[0], [0]], [1, 3], [1, 2], "seqlens_q <= seqlens_k must hold; sequence 1 has 3 new tokens of 2"),
        ([[0], [0]], [1, 1], [2**30, 2**30 + 2**30], r"`seqlens_k` must sum to less than 2\*\*31"),
        ([[0]], [1], None, "`seqlens_k`"),
        (None, [1], [1], "`block_table`"),
    ],
)
def test_refused(table: Any, seqlens_q: Any, seqlens_k: Any, text: str) -> None:
    with pytest.raises(pa.ArgumentError, match=text):
        batch(table, seqlens_q, seqlens_k)


def test_unknown_device() -> None:
    with pytest.raises(pa.ArgumentError, match="tpu"):
        Batch([[0]], [1], [1], device="tpu")


@pytest.mark.parametrize(
    ("tokens", "columns", "block_len", "fits"), [(32, 2, 16, True), (33, 2, 16, False), (33, 2, 32, True), (1, 0, 16, False)]
)
def test_width(tokens: int, columns: int, block_len: int, fits: bool) -> None:
    b = batch(np.zeros((1, columns), np.int32), [1], [tokens])
    if fits:
        b.check_width(block_len)
        b.check_cache(layout(block_len), 1)
        return
    for check in (lambda: b.check_width(block_len), lambda: b.check_cache(layout(block_len), 1)):
        with pytest.raises(pa.ArgumentError, match=f"`block_table` must have {-(-tokens // block_len)} columns.*got {columns}"):
            check()


def test_only_used_entries_are_checked() -> None:
    b = batch([[4, -1, 99], [-7, 8, 8]], [1, 0], [16, 0])
    b.check_cache(layout(), 5)
    with pytest.raises(pa.ArgumentError, match=r"must lie in 0\.\.3, .*block_table\[0, 0\] is 4"):
        b.check_cache(layout(), 4)


def test_repr() -> None:
    assert repr(batch([[0, 1]], [2], [20])) == "Batch(1 sequences on cpu: 2 new of 20 tokens, longest 20; 2 blocks a row)"


@pytest.mark.cuda
def test_a_table_on_the_gpu_is_used_as_it_is() -> None:
    device = pa.devices.get("cuda")
    table = device.asarray(np.array([[3, 1], [2, -1]], np.int32))
    b = Batch(table, device.asarray(np.array([1, 2])), [20, 5])
    assert b.device is device
    assert b.block_table is table
    assert b.seqlens_q.tolist() == [1, 2]
    assert device.to_host(b.cu_seqlens_k).tolist() == [0, 20, 25]
    b.check_cache(layout(), 4)
    table[1, 0] = 9
    with pytest.raises(pa.ArgumentError, match=r"block_table\[1, 0\] is 9"):
        b.check_cache(layout(), 4)
    wide = Batch(device.asarray(np.array([[3, 1]])), [1], [20])
    assert wide.block_table.dtype == np.int32


def room() -> Batch:
    return batch(np.zeros((2, 4), np.int32), [1, 3], [64, 64])


def test_assign() -> None:
    b, other = room(), batch([[3, 1, -1], [2, -1, -1]], [1, 3], [17, 4])
    arrays = b.block_table, b.cu_seqlens_q, b.cu_seqlens_k
    b.assign(other)
    assert all(x is y for x, y in zip((b.block_table, b.cu_seqlens_q, b.cu_seqlens_k), arrays, strict=True))
    assert b.block_table.tolist() == [[3, 1, -1, 0], [2, -1, -1, 0]]
    assert (b.cu_seqlens_q.tolist(), b.cu_seqlens_k.tolist(), b.seqlens_k.tolist()) == ([0, 1, 4], [0, 17, 21], [17, 4])
    assert (b.total_k, b.max_seqlen_k, b.max_blocks) == (21, 64, 4)
    with pytest.raises(ValueError, match="read-only"):
        b.block_table[0, 0] = 1


def test_what_is_assigned_is_checked_against_the_cache_again() -> None:
    b = room()
    b.check_cache(layout(), 1)
    b.assign(batch([[3], [2]], [1, 3], [10, 4]))
    with pytest.raises(pa.ArgumentError, match=r"block_table\[0, 0\] is 3"):
        b.check_cache(layout(), 1)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        pytest.param(([[0]], [1], [1]), r"numbers of new tokens, \[1, 3\]; got \[1\]", id="fewer"),
        pytest.param(([[0], [0]], [1, 2], [1, 2]), r"numbers of new tokens, \[1, 3\]; got \[1, 2\]", id="other queries"),
        pytest.param(([[0] * 5, [0] * 5], [1, 3], [9, 9]), "`other.max_blocks` must be at most 4.*got 5", id="wider"),
        pytest.param(([[0], [0]], [1, 3], [65, 9]), "`other.max_seqlen_k` must be at most 64.*got 65", id="longer"),
    ],
)
def test_assign_refuses(other: Any, text: str) -> None:
    b = room()
    before = b.block_table.tolist(), b.cu_seqlens_k.tolist(), b.total_k
    with pytest.raises(pa.ArgumentError, match=text):
        b.assign(batch(*other))
    assert (b.block_table.tolist(), b.cu_seqlens_k.tolist(), b.total_k) == before


def test_what_was_made_for_unshared_blocks_takes_no_others() -> None:
    cache = pa.KVCache(8, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    sequences = [cache.new_sequence(), cache.new_sequence()]
    b = batch(np.zeros((2, 4), np.int32), [1, 3], [64, 64], unshared=True)
    b.assign(cache.extend(sequences, [1, 3]))
    b.assign(batch([[0], [1]], [1, 3], [1, 3], unshared=True))
    assert not cache.batch(sequences).unshared
    with pytest.raises(pa.ArgumentError, match="`other` must be `unshared`, as this batch was made to be"):
        b.assign(batch([[0], [1]], [1, 3], [1, 3]))
    with pytest.raises(pa.ArgumentError, match="`unshared` must be True or False; got 1"):
        batch([[0]], [1], [1], unshared=1)
    with pytest.raises(pa.ArgumentError, match="`disjoint` must be True or False; got None"):
        batch([[0]], [1], [1], disjoint=None)
    assert batch([[0]], [1], [1], disjoint=True).unshared
    assert not batch([[0]], [1], [1], unshared=True).disjoint


def test_assign_refuses_another_device_and_what_is_no_batch() -> None:
    with pytest.raises(pa.ArgumentError, match="`other` must be on cpu; got one on interpreter:sm_80"):
        room().assign(Batch(np.zeros((2, 4), np.int32), [1, 3], [9, 9], device="interpreter"))
    with pytest.raises(pa.ArgumentError, match="`other` must be a Batch; got int"):
        room().assign(5)  # type: ignore[arg-type]


def test_attention_over_what_was_assigned() -> None:
    cache = pa.KVCache(8, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    sequences, rng = [cache.new_sequence(), cache.new_sequence()], np.random.default_rng(0)
    prompt = cache.extend(sequences, [20, 3])
    k, v = rng.standard_normal((2, 23, 1, 64)).astype(np.float16)
    pa.append(k, v, cache, prompt)
    fixed = batch(np.zeros((2, 3), np.int32), [1, 1], [48, 48])
    q = rng.standard_normal((2, 2, 64)).astype(np.float16)
    for _ in range(3):
        step = cache.extend(sequences, [1, 1])
        k, v = rng.standard_normal((2, 2, 1, 64)).astype(np.float16)
        fixed.assign(step)
        out = pa.paged_attention(q, cache, fixed, k=k, v=v)
        np.testing.assert_array_equal(out, pa.paged_attention(q, cache, step))
