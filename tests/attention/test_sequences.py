"""What a batch says of its sequences: which are finished, and blocks at addresses of the caller's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from tests.attention.cases import MIXED, Case
from tests.attention.test_attention import arrays, changing, compare
from tests.attention.world import NAN_BYTE, World, cache_of, make

DEVICES = ("cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.cuda))
LENGTHS = tuple((min(new, 33), min(length, 130 if new < 34 else 33)) for new, length in MIXED)
COMMON: dict[str, Any] = {"num_layers": 2, "block_len": 16, "append": True, "sinks": True}
CASES = [
    Case("flags", "decode and prefill", LENGTHS, **COMMON),
    Case("flags-int8", "codes", LENGTHS, kv_dtype="int8", head_dim=64, rope={"kind": "default"}, **COMMON),
    Case("flags-int4-splits", "cuts", LENGTHS, kv_dtype="int4", keywords={"num_splits": 3}, **COMMON),
    Case("flags-mask", "a mask", LENGTHS, mask="random", alibi=0.2, **COMMON),
]


def keywords_of(world: World, cache: pa.KVCache, k: Any, v: Any) -> dict[str, Any]:
    case = world.case
    sinks = cache.device.asarray(world.sinks)
    return dict(case.keywords, layer=case.num_layers - 1, return_lse=True, k=k, v=v, sinks=sinks, **changing(world, cache.device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_finished(case: Case, device: str) -> None:
    world = make(case)
    cache = cache_of(world, device)
    where = cache.device
    finished = np.arange(len(case.lengths)) % 3 == 1
    finished[0] = True
    live_q, live_k = (~np.repeat(finished, lengths) for lengths in (world.seqlens_q, world.seqlens_k))
    for b in np.flatnonzero(finished):  # as before the call; and nobody may look at what the table says
        used = world.table[b][: -(-int(world.seqlens_k[b]) // case.block_len)]
        world.full_pool[used] = world.pool[used]
    table = np.where(finished[:, None], np.int32(-1), world.table)
    flags = where.asarray(finished)
    batch = pa.Batch(table, world.seqlens_q, world.seqlens_k, finished=flags, device=device)
    q, k, v = arrays(world, where)
    found, lse = (where.to_host(x) for x in pa.paged_attention(q, cache, batch, **keywords_of(world, cache, k, v)))
    assert not found[~live_q].any()
    assert np.isneginf(lse[~live_q]).all()
    given = where.asarray(np.full((len(q), case.num_heads, case.head_dim * 2), NAN_BYTE, np.uint8)).view(q.dtype)
    again = pa.paged_attention(q, cache, batch, out=given, **keywords_of(world, cache, k, v))[0]
    assert (where.to_host(again)[~live_q].view(np.uint8) == NAN_BYTE).all()
    np.testing.assert_array_equal(where.to_host(again)[live_q], found[live_q])
    for rows in pa.gather(cache, batch, layer=case.num_layers - 1):
        assert not where.to_host(rows)[~live_k].any()
        assert where.to_host(rows)[live_k].any(axis=(1, 2)).all()

    keep(world, ~finished)
    if world.turned.rows_change:
        world.settle(where.to_host(cache.pool))
    else:
        np.testing.assert_array_equal(where.to_host(cache.pool), world.full_pool)
    compare(world, found[live_q], lse[live_q])


def keep(world: World, which: np.ndarray[Any, Any]) -> None:
    """Leave only some of a world's sequences."""
    rows = np.repeat(which, world.seqlens_q)
    world.seen, world.table = world.seen[rows], world.table[which]
    world.seqlens_q, world.seqlens_k = world.seqlens_q[which], world.seqlens_k[which]
    for name in ("dense", "params", "exact", "masks"):
        setattr(world, name, [x for x, stays in zip(getattr(world, name), which, strict=False) if stays])


def test_bad_flags() -> None:
    for flags in ([True], [0, 1], np.zeros((2, 1), bool)):
        with pytest.raises(pa.ArgumentError, match=r"`finished` must be bool of shape \(2,\)"):
            pa.Batch([[0], [1]], [1, 1], [1, 1], finished=flags, device="cpu")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", [None, "int4"])
def test_blocks_of_the_callers(kv_dtype: str | None, device: str) -> None:
    """The same blocks in allocations of their own give the same bits as in a pool."""
    case = Case("own-blocks", "blocks anywhere", LENGTHS, kv_dtype=kv_dtype, **COMMON)
    world = make(case)
    in_pool = cache_of(world, device)
    where, layout = in_pool.device, in_pool.layout
    anywhere = pa.KVCache(
        1,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        block_len=layout.block_len,
        num_layers=layout.num_layers,
        kv_dtype=kv_dtype,
        device=device,
    )
    anywhere.pool[...] = 7
    blocks = [where.asarray(block.copy()) for block in world.pool]
    counts = -(-world.seqlens_k // case.block_len)
    pointers = [where.address(blocks[i]) if where.arch else blocks[i].ctypes.data for b, n in enumerate(counts) for i in world.table[b, :n]]
    own = pa.Batch.from_block_ptrs(pointers, [0, *np.cumsum(counts)], world.seqlens_q, world.seqlens_k, device=device)
    q, k, v = arrays(world, where)
    pooled = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
    answers = [
        [where.to_host(x) for x in pa.paged_attention(q, cache, batch, **keywords_of(world, cache, k, v))]
        for cache, batch in ((in_pool, pooled), (anywhere, own))
    ]
    for one, two in zip(*answers, strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(np.stack([where.to_host(block) for block in blocks]), world.full_pool)
    for one, two in zip(pa.gather(in_pool, pooled, layer=1), pa.gather(anywhere, own, layer=1), strict=True):
        np.testing.assert_array_equal(where.to_host(one).view(np.uint16), where.to_host(two).view(np.uint16))
    assert (where.to_host(anywhere.pool) == 7).all()


@pytest.mark.parametrize(
    ("pointers", "nums", "lengths", "text"),
    [
        ([4096, 8192], [0, 3], [1], "`cu_block_nums` must rise from 0 to at most the 2 addresses"),
        ([4096, 8192], [1, 0], [1], "`cu_block_nums` must rise"),
        ([4096, 8193], [0, 2], [1], "`block_ptrs` must be multiples of 16; got 0x2001"),
        ([4096, -16], [0, 2], [1], "`block_ptrs` must be addresses, 0 where there is no block; got -16"),
        ([4096, 4112, 2**47], [0, 3], [1], r"`block_ptrs` must lie within 2\*\*31 times their greatest common distance"),
        ([4096], [0, 1], [1, 1], "`block_table` must have a row for each of the 2 sequences; got 1"),
        ([[4096]], [0, 1], [1], "`block_ptrs` must have the shape"),
        ([4096], [0, 1], [17], "`block_ptrs` must bring 2 blocks for sequence 0, 17 tokens in blocks of 16; got 1"),
        ([0, 4096], [0, 2], [17], "got 0 addresses that are not 0"),
    ],
)
def test_bad_addresses(pointers: Any, nums: Any, lengths: Any, text: str) -> None:
    with pytest.raises(pa.ArgumentError, match=text):
        pa.Batch.from_block_ptrs(pointers, nums, [1] * len(lengths), lengths, device="cpu").check_width(16)


@pytest.mark.parametrize(
    ("gap", "text"),
    [(-16, "16 bytes apart"), (16, "16 bytes apart"), (0, None), (4096 - 16, "4080 bytes apart"), (4096, None), (4112, None)],
)
def test_blocks_are_shared_whole_or_not_at_all(gap: int, text: str | None) -> None:
    cache = pa.KVCache(1, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    assert cache.layout.block_bytes == 4096
    memory = np.zeros(4 * 4096 + 16, np.uint8)
    first = memory.ctypes.data // 16 * 16 + 4096
    tail = first + 2 * 4096 + 16
    batch = pa.Batch.from_block_ptrs([first, tail, first + gap], [0, 2, 3], [1, 1], [20, 3], device="cpu")
    rows = np.ones((2, 1, 64), np.float16)
    calls = (
        lambda: pa.append(rows, rows, cache, batch),
        lambda: pa.paged_attention(rows, cache, batch),
        lambda: pa.gather(cache, batch),
        lambda: pa.explain(rows, cache, batch),
    )
    for call in calls:
        if text is None:
            call()
        else:
            with pytest.raises(pa.ArgumentError, match=f"`block_ptrs` must be the same or 4096 bytes apart.*{text}: those blocks would"):
                call()
    if text is not None:
        assert not memory.any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_dynamic_rope_follows_assigned_lengths(device: str) -> None:
    rng, where = np.random.default_rng(0), pa.devices.get(device)
    cache = pa.KVCache(3, num_kv_heads=1, head_dim=64, block_len=16, device=device)
    q, k, v = (where.asarray(rng.standard_normal((40, 1, 64)).astype(np.float16)) for _ in range(3))
    pa.append(k, v, cache, pa.Batch([[0, 1, 2]], [40], [40], device=device))
    rope = pa.Rope("dynamic", factor=4.0, max_position=8)
    room = pa.Batch([[0, 1, 2]], [1], [40], device=device)
    before = where.to_host(pa.paged_attention(q[:1], cache, room, rope=rope))
    shorter = pa.Batch([[0, 1, 2]], [1], [20], device=device)
    room.assign(shorter)
    found = where.to_host(pa.paged_attention(q[:1], cache, room, rope=rope))
    np.testing.assert_array_equal(found, where.to_host(pa.paged_attention(q[:1], cache, shorter, rope=rope)))
    assert not np.array_equal(found, before)


@pytest.mark.parametrize(("target", "keys"), [("sm_70", 32), ("sm_75", 16), ("sm_80", 16)])
def test_cuts_lie_between_the_tiles_of_the_device(target: str, keys: int) -> None:
    answers = []
    for device in (f"interpreter:{target}", "cpu"):
        cache = pa.KVCache(6, num_kv_heads=1, head_dim=64, block_len=16, device=device)
        q, k, v = np.random.default_rng(0).standard_normal((3, 90, 1, 64)).astype(np.float16)
        pa.append(k, v, cache, cache.extend([cache.new_sequence()], [90]))
        batch = cache.batch([0])
        answers.append(pa.paged_attention(q[:1], cache, batch, num_splits=f"fixed:{keys}").astype(np.float64))
        for wrong in (keys // 2, keys + 8) if device != "cpu" else ():
            with pytest.raises(pa.ArgumentError, match=f"N a multiple of {keys}"):
                pa.paged_attention(q[:1], cache, batch, num_splits=f"fixed:{wrong}")
    np.testing.assert_allclose(*answers, atol=2e-3)


def test_assign_writes_flags_only_where_it_may() -> None:
    flags = np.array([True, False])
    flags.flags.writeable = False
    room = pa.Batch([[0], [1]], [1, 1], [5, 6], finished=flags, device="cpu")
    with pytest.raises(pa.ArgumentError, match="`finished` of this batch must be writable"):
        room.assign(pa.Batch([[2], [3]], [1, 1], [7, 8], device="cpu"))
    assert room.block_table.ravel().tolist() == [0, 1]
    assert room.cu_seqlens_k.tolist() == [0, 5, 11]


def test_a_small_workspace_is_refused_before_anything_is_appended() -> None:
    cache = pa.KVCache(2, num_kv_heads=1, head_dim=64, block_len=16, device="interpreter")
    batch = cache.extend([cache.new_sequence()], [1])
    row, pool = np.ones((1, 1, 64), np.float16), cache.pool.copy()
    small = cache.device.zeros((16,), np.uint8)
    with pytest.raises(pa.ArgumentError, match="`workspace` must have at least"):
        pa.paged_attention(row, cache, batch, k=row, v=row, workspace=small)
    np.testing.assert_array_equal(cache.pool, pool)
