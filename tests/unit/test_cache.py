"""KVCache: sequences, sharing, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.allocator import BlockAllocator


def make(num_blocks: int = 8, **keywords: Any) -> pa.KVCache:
    return pa.KVCache(num_blocks, **{"num_kv_heads": 2, "head_dim": 64, "block_len": 16, "device": "cpu"} | keywords)


def state(cache: pa.KVCache, sequences: list[int]) -> tuple[Any, ...]:
    batch = cache.batch(sequences)
    return cache.num_free_blocks, batch.seqlens_k.tolist(), batch.block_table.tolist(), cache.pool.tobytes()


def test_extend() -> None:
    cache = make()
    a, b, c = (cache.new_sequence() for _ in range(3))
    batch = cache.extend([b, a], [17, 3])
    assert batch.seqlens_q.tolist() == batch.seqlens_k.tolist() == [17, 3]
    assert batch.block_table.shape == (2, 2)
    assert [cache.seqlen(s) for s in (a, b, c)] == [3, 17, 0]
    assert cache.num_free_blocks == 5
    batch = cache.extend([a, b, c], [13, 0, 1])
    assert batch.seqlens_q.tolist() == [13, 0, 1]
    assert batch.seqlens_k.tolist() == [16, 17, 1]
    assert cache.num_free_blocks == 4
    used = [batch.block_table[0, 0], *batch.block_table[1], batch.block_table[2, 0]]
    assert len(set(used)) == 4


def test_batch() -> None:
    cache = make()
    a, b = cache.new_sequence(), cache.new_sequence()
    cache.extend([a], [20])
    batch = cache.batch([a, b])
    assert batch.seqlens_q.tolist() == [1, 0]
    assert batch.seqlens_k.tolist() == [20, 0]
    assert (cache.batch([]).batch_size, cache.extend([], []).num_tokens) == (0, 0)


def test_a_later_step_leaves_an_earlier_batch_alone() -> None:
    cache = make()
    a = cache.new_sequence()
    first = cache.extend([a], [16])
    held = first.block_table.tolist(), first.seqlens_k.tolist()
    cache.extend([a], [40])
    cache.free(a)
    cache.extend([cache.new_sequence()], [50])
    assert (first.block_table.tolist(), first.seqlens_k.tolist()) == held


def test_truncate_and_free() -> None:
    cache = make()
    a = cache.new_sequence()
    cache.extend([a], [50])
    for n, free in ((50, 4), (48, 5), (17, 6), (16, 7), (1, 7), (0, 8)):
        cache.truncate(a, n)
        assert (cache.seqlen(a), cache.num_free_blocks) == (n, free)
    cache.extend([a], [128])
    cache.free(a)
    assert cache.num_free_blocks == 8
    with pytest.raises(pa.ArgumentError, match="not been freed"):
        cache.seqlen(a)


def test_ids_are_never_used_twice() -> None:
    cache = make()
    seen = set()
    for _ in range(50):
        sequence = cache.new_sequence()
        assert sequence not in seen
        seen.add(sequence)
        cache.free(sequence)


def test_many_sequences_and_long_ones() -> None:
    cache = make(num_blocks=400)
    sequences = [cache.new_sequence() for _ in range(100)]
    for step in range(3):
        cache.extend(sequences, [10 + s % 7 for s in sequences])
        assert [cache.seqlen(s) for s in sequences] == [(step + 1) * (10 + s % 7) for s in sequences]
    cache.extend([sequences[3]], [60 * 16])
    table = cache.batch(sequences).block_table
    used = [block for row, s in zip(table.tolist(), sequences, strict=True) for block in row[: -(-cache.seqlen(s) // 16)]]
    assert len(set(used)) == len(used) == 400 - cache.num_free_blocks


def test_fork_shares_full_blocks_and_copies_the_partial_one() -> None:
    cache = make()
    a = cache.new_sequence()
    cache.extend([a], [40])
    cache.pool[:3] = np.arange(3, dtype=np.uint8)[:, None]
    b = cache.fork(a)
    first, second = cache.batch([a, b]).block_table.tolist()
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert (cache.pool[second[2]] == 2).all()
    assert cache.num_free_blocks == 4
    cache.free(a)
    assert cache.num_free_blocks == 5
    cache.free(b)
    assert cache.num_free_blocks == 8


def test_fork_of_whole_blocks_takes_none() -> None:
    cache = make(num_blocks=2)
    a = cache.new_sequence()
    cache.extend([a], [32])
    b = cache.fork(a)
    assert cache.num_free_blocks == 0
    assert cache.fork(cache.new_sequence()) is not None
    cache.truncate(a, 0)
    assert (cache.seqlen(b), cache.num_free_blocks) == (32, 0)


def test_appending_never_writes_a_shared_block() -> None:
    cache = make()
    a = cache.new_sequence()
    cache.extend([a], [32])
    b = cache.fork(a)
    cache.pool[...] = 0
    cache.pool[1] = 9
    cache.truncate(a, 20)
    batch = cache.extend([a], [1])
    assert batch.block_table.tolist() == [[0, 2]]
    assert (cache.pool[2] == 9).all()
    assert cache.batch([b]).block_table.tolist() == [[0, 1]]
    # b is now alone on block 1
    cache.truncate(b, 20)
    assert cache.extend([b], [1]).block_table.tolist() == [[0, 1]]


def test_the_last_of_several_writers_keeps_the_block() -> None:
    cache = make(num_blocks=3)
    a = cache.new_sequence()
    cache.extend([a], [16])
    others = [cache.fork(a), cache.fork(a)]
    for s in (a, *others):
        cache.truncate(s, 5)
    assert cache.num_free_blocks == 2
    table = cache.extend([a, *others], [1, 2, 3]).block_table[:, 0].tolist()
    assert sorted(table) == [0, 1, 2]
    assert table[2] == 0


def test_no_new_tokens_copy_nothing() -> None:
    cache = make()
    a = cache.new_sequence()
    cache.extend([a], [16])
    b = cache.fork(a)
    cache.truncate(b, 5)
    assert cache.extend([b], [0]).block_table.tolist() == [[0]]
    assert cache.num_free_blocks == 7


@pytest.mark.parametrize(("lengths", "needed"), [([129, 0], 9), ([80, 49], 9), ([2**31 - 1, 1], 2**27 + 1)])
def test_out_of_blocks_changes_nothing(lengths: list[int], needed: int) -> None:
    cache = make()
    sequences = [cache.new_sequence(), cache.new_sequence()]
    before = state(cache, sequences)
    with pytest.raises(pa.OutOfBlocksError) as caught:
        cache.extend(sequences, lengths)
    assert (caught.value.needed, caught.value.free) == (needed, 8)
    assert state(cache, sequences) == before


def test_out_of_blocks_for_copies_changes_nothing() -> None:
    cache = make(num_blocks=2)
    a = cache.new_sequence()
    cache.extend([a], [32])
    b = cache.fork(a)
    cache.truncate(b, 20)
    before = state(cache, [a, b])
    for call, needed in ((lambda: cache.extend([b], [1]), 1), (lambda: cache.extend([b, a], [20, 1]), 3), (lambda: cache.fork(b), 1)):
        with pytest.raises(pa.OutOfBlocksError) as caught:
            call()
        assert (caught.value.needed, caught.value.free) == (needed, 0)
        assert state(cache, [a, b]) == before


def test_a_failing_device_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = make()
    a = cache.new_sequence()
    cache.extend([a], [32])
    b = cache.fork(a)
    cache.truncate(b, 20)
    before = state(cache, [a, b])

    def fail(*arguments: Any) -> Any:
        raise MemoryError("no memory on the device")

    for name in ("asarray", "copy_blocks"):
        with monkeypatch.context() as patch:
            patch.setattr(type(cache.device), name, fail)
            with pytest.raises(MemoryError, match="no memory on the device"):
                cache.extend([b, a], [30, 7])
        assert state(cache, [a, b]) == before
        assert cache._manager.allocator.num_extra == 2
    assert isinstance(cache._manager.allocator, BlockAllocator)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda c: c.extend([0, 99], [1, 1]), "got 99. 2 are alive"),
        (lambda c: c.extend([0, 0], [1, 1]), "name each sequence once; 0 is there more than once"),
        (lambda c: c.extend(["0"], [1]), "got '0'"),
        (lambda c: c.extend([None], [1]), "got None"),
        (lambda c: c.extend([1, 0.0], [1, 1]), "got 0.0"),
        (lambda c: c.extend([0, [1]], [1, 1]), r"got \[1\]"),
        (lambda c: c.extend([[0]], [1]), r"got \[0\]"),
        (lambda c: c.extend(0, [1]), "`sequences` must be a list of ids; got 0"),
        (lambda c: c.extend([0, 1], [1]), r"one count for each of the 2 sequences; got shape \(1,\)"),
        (lambda c: c.extend([0], 1), r"got shape \(\)"),
        (lambda c: c.extend([0, 1], [1, -1]), r"must lie in 0 \.\. 2\*\*31-1; got \[1, -1\]"),
        (lambda c: c.extend([0], [2**31]), r"must lie in 0 \.\. 2\*\*31-1"),
        (lambda c: c.extend([0], [1.0]), "`num_new` must hold integers; got float64"),
        (lambda c: c.extend([0, 1], [[1], [1, 2]]), "`num_new` must be a list of integers"),
        (lambda c: c.extend([0], [True]), "`num_new` must hold integers; got bool"),
        (lambda c: c.batch([7]), "got 7"),
        (lambda c: c.batch([1, 0, 1]), "1 is there more than once"),
        (lambda c: c.seqlen(-1), "got -1"),
        (lambda c: c.truncate(0, 21), "`n` must be an integer from 0 to 20, the sequence's length; got 21"),
        (lambda c: c.truncate(0, -1), "got -1"),
        (lambda c: c.truncate(0, 1.0), "got 1.0"),
        (lambda c: c.truncate(5, 0), "got 5"),
        (lambda c: c.fork(5), "got 5"),
        (lambda c: c.free(5), "got 5"),
    ],
)
def test_refused(call: Any, text: str) -> None:
    cache = make()
    sequences = [cache.new_sequence(), cache.new_sequence()]
    cache.extend(sequences, [20, 3])
    before = state(cache, sequences)
    with pytest.raises(pa.ArgumentError, match=text):
        call(cache)
    assert state(cache, sequences) == before


@pytest.mark.parametrize(
    ("keywords", "error", "text"),
    [
        ({"num_blocks": 0}, pa.ArgumentError, "`num_blocks` must be a positive integer"),
        ({"num_blocks": 2.0}, pa.ArgumentError, "`num_blocks`"),
        ({"num_blocks": True}, pa.ArgumentError, "`num_blocks`"),
        ({"num_blocks": 2**31}, pa.ArgumentError, "`num_blocks`"),
        ({"head_dim": 80}, pa.UnsupportedError, "The nearest is"),
        ({"block_len": 48}, pa.UnsupportedError, "The nearest is"),
        ({"dtype": "float32"}, pa.ArgumentError, "`dtype`"),
        ({"kv_dtype": "fp8"}, pa.ArgumentError, "`kv_dtype` must be None or one of"),
        ({"device": "tpu"}, pa.ArgumentError, "tpu"),
        ({"pool": [1, 2]}, pa.ArgumentError, "`pool` must be an array"),
        ({"pool": np.zeros((8, 8192), np.int8)}, pa.ArgumentError, "`pool` must be uint8"),
        ({"pool": np.zeros((7, 8192), np.uint8)}, pa.ArgumentError, r"\(8, 8192\).*got uint8 \(7, 8192\)"),
        ({"pool": np.zeros((8 * 8192,), np.uint8)}, pa.ArgumentError, "`pool` must be uint8"),
        ({"pool": np.zeros((8, 16384), np.uint8)[:, ::2]}, pa.ArgumentError, "`pool` must be C-contiguous"),
        ({"pool": np.broadcast_to(np.uint8(0), (8, 8192))}, pa.ArgumentError, "`pool` must be C-contiguous"),
        ({"pool": np.frombuffer(bytes(8 * 8192), np.uint8).reshape(8, 8192)}, pa.ArgumentError, "`pool` must be writable"),
    ],
)
def test_refused_caches(keywords: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make(**{"num_blocks": 8} | keywords)


def test_the_callers_pool() -> None:
    pool = np.full((8, 8192), 3, np.uint8)
    cache = make(device=None, pool=pool)
    assert cache.pool is pool
    assert cache.device.name == "cpu"
    a = cache.new_sequence()
    rows = np.ones((1, 2, 64), np.float16)
    pa.append(rows, rows, cache, cache.extend([a], [1]))
    assert pool[0, :128].view(np.float16).tolist() == [1.0] * 64
    assert (pool[1:] == 3).all()


def test_repr() -> None:
    cache = make(num_layers=2, dtype="bfloat16")
    cache.extend([cache.new_sequence()], [20])
    content = "1 sequence, 20 tokens; 2 of 8 blocks of 16 used, 0.031 of 0.125 MiB, 1024 bytes a token"
    assert repr(cache) == f"KVCache(cpu, bfloat16, 2 KV heads x 64, 2 layers: {content})"
    page = cache._repr_html_()
    assert "width:25.0%" in page
    assert page.count("<tr>") == 7
    assert "1024 bytes a token" in page


@pytest.mark.cuda
def test_a_pool_on_the_gpu_says_where_the_cache_is() -> None:
    device = pa.devices.get("cuda")
    pool = device.zeros((8, 8192), np.uint8)
    cache = make(device=None, pool=pool)
    assert cache.device is device
    assert cache.pool is pool
    with pytest.raises(pa.ArgumentError, match=r"`pool` must be on cpu.*cuda"):
        make(device="cpu", pool=pool)
    with pytest.raises(pa.ArgumentError, match=f"`pool` must be on {device.name}.*cpu"):
        make(device="cuda", pool=np.zeros((8, 8192), np.uint8))


def test_a_step_within_blocks_sorts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode step that takes no block, and a truncation that gives none back, touch neither the free list nor the holders."""
    cache = make()
    sequences = [cache.new_sequence(), cache.new_sequence()]
    cache.extend(np.array(sequences), [20, 3])
    before = state(cache, sequences)
    monkeypatch.setattr(np, "unique", None)
    batch = cache.extend(np.array(sequences), [1, 1])
    assert (batch.num_decode, batch.num_prefill, batch.max_seqlen_k, batch.cu_seqlens_k.tolist()) == (2, 0, 21, [0, 21, 25])
    for sequence, length in zip(sequences, (20, 3), strict=True):
        cache.truncate(sequence, length)
    assert state(cache, sequences) == before
