"""Context parallelism: ranks, one after the other on one device. Each against the reference of its own keys; merged, of all keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes, reference
from pagedattn.testing import assert_matches_reference
from tests.attention.cases import Case
from tests.attention.test_attention import changing, check, compare
from tests.attention.tolerance import UNIT
from tests.attention.turned import row_bounds
from tests.attention.world import NAN_BYTE, World, cache_of, make, scattered, shape_of

Array = np.ndarray[Any, Any]

# Decode and prefill, sequences shorter than the ranks are many, and keys of a rank that end on a tile's edge and beside it
LENGTHS = ((1, 70), (1, 2), (20, 33), (1, 1), (0, 20), (5, 130), (0, 0), (1, 97))
FEW = ((1, 5), (2, 3), (1, 1), (9, 40))
SMALL = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "block_len": 16}
YARN = {"kind": "yarn", "factor": 4.0, "max_position": 64, "base": 1000.0}

# (ranks, case, devices)
EVERY = ("cpu", "interpreter", "cuda")
TURING = (*EVERY, "interpreter:sm_75", "cuda+sm_75")
ALL = (*TURING, "interpreter:sm_70", "cuda+sm_70")
ROWS: tuple[tuple[int, Case, tuple[str, ...]], ...] = (
    (1, Case("one", "a single rank is the whole", FEW, **SMALL), EVERY),
    (2, Case("plain", "decode and prefill in one call", LENGTHS, **SMALL), ALL),
    (3, Case("three", "positions do not divide evenly; the rows are appended", LENGTHS, append=True, **SMALL), EVERY),
    (8, Case("eight", "ranks without keys", FEW, append=True, sinks=True, **SMALL), TURING),
    (3, Case("int4", "codes, written by their rank", LENGTHS, append=True, kv_dtype="int4", **SMALL), ALL),
    (2, Case("int8", "codes of 8 bits", FEW, kv_dtype="int8", **SMALL), TURING),
    (
        3,
        Case("window", "the window's edge, and ranks that it leaves no key", LENGTHS, keywords={"window_size": 2}, sinks=True, **SMALL),
        ALL,
    ),
    (2, Case("window-wide", "the window cuts tiles", LENGTHS, keywords={"window_size": 41}, **SMALL), TURING),
    (3, Case("full", "no causal mask", LENGTHS, keywords={"causal": False, "window_size": 50}, **SMALL), TURING),
    (3, Case("alibi", "distances are the sequence's own", LENGTHS, alibi=0.5, keywords={"softcap": 9.0}, sinks=True, **SMALL), ALL),
    (2, Case("mask", "a mask of the caller's, of every rank's keys", LENGTHS, mask="random", sinks=True, **SMALL), ALL),
    (3, Case("mask-tiles", "whole tiles of queries and of a rank's keys", ((64, 300), (33, 200)), mask="random", **SMALL), ALL),
    (
        3,
        Case("rope", "positions are the sequence's own", LENGTHS, rope=YARN, biases=True, logn=30, append=True, **SMALL),
        EVERY,
    ),
    (
        3,
        Case("cuts", "cuts of a rank's keys", ((1, 300), (1, 2), (1, 1), (6, 60)), keywords={"num_splits": 3}, sinks=True, **SMALL),
        TURING,
    ),
    (2, Case("fixed", "cuts at a rank's keys", ((1, 300), (1, 2)), keywords={"num_splits": "fixed:32", "window_size": 99}, **SMALL), EVERY),
    (2, Case("parts", "several CTAs share a tile's keys", ((3, 2300),), num_heads=1, num_kv_heads=1, head_dim=64), EVERY),
    (8, Case("many", "more sequences than ranks, at full size", tuple((1 + i % 5, 3 * i + 9) for i in range(90)), append=True), ("cuda",)),
    (2, Case("long", "full waves", ((1, 20000), (700, 3000), (1, 5000)), kv_dtype="int4", sinks=True), ("cuda",)),
)


def rows() -> Iterator[Any]:
    for size, case, devices in ROWS:
        for device in devices:
            marks = [pytest.mark.cuda] if device.startswith("cuda") else []
            yield pytest.param(size, case, device, id=f"{case.id}-{size}-{device}", marks=marks)


@pytest.mark.parametrize(("size", "case", "device"), list(rows()))
def test_case(size: int, case: Case, device: str) -> None:
    world = make(case)
    ranks = [Rank(world, pa.ContextParallel(rank, size)) for rank in range(size)]
    answers = [rank.run(device) for rank in ranks]
    for rank in ranks:
        rank.settle(world)
    for rank, (out, lse) in zip(ranks, answers, strict=True):
        compare(rank.alone(world), out, lse)
    where = pa.devices.get(device)
    merged = pa.merge(*([where.asarray(x) for x in part] for part in zip(*answers, strict=True)))
    compare_merged(world, *(where.to_host(x) for x in merged))


class Rank:
    """The world of one rank: its tokens' rows in a pool of its own, elsewhere NaN."""

    def __init__(self, world: World, cp: pa.ContextParallel) -> None:
        case, self.cp = world.case, cp
        self.own_q = [cp.own(length) - cp.own(length - new) for new, length in case.lengths]
        self.own_k = np.array([cp.own(length) for _, length in case.lengths], np.int64)
        self.table, num_blocks = scattered(np.random.default_rng(cp.rank), self.own_k, case.block_len)
        pool = np.full((num_blocks, shape_of(case).block_bytes), NAN_BYTE, np.uint8)
        full = pool.copy() if case.append else pool
        for table, new, exact in zip(self.table.tolist(), self.own_q, world.exact, strict=True):
            k, v = ((world.turned.rounded(x) if world.turned.rows_change else x)[cp.rank :: cp.size].view(np.uint16) for x in exact)
            old = len(k) - (new if case.append else 0)
            reference.write_rows(pool, table, 0, k[:old], v[:old], 0, shape_of(case))
            if case.append:
                reference.write_rows(full, table, 0, k, v, 0, shape_of(case))
        self.world = replace(world, pool=pool, full_pool=full, table=self.table)
        self.after = pool

    def run(self, device: str) -> tuple[Array, Array]:
        """The call, into memory that holds NaN."""
        world, case = self.world, self.world.case
        cache = cache_of(world, device)
        where = cache.device
        batch = pa.Batch(self.table, world.seqlens_q, world.seqlens_k, device=where)
        q, k, v = (where.asarray(x) for x in (world.q, world.k, world.v))
        keywords = dict(case.keywords, **changing(world, where))
        if case.sinks:
            keywords["sinks"] = where.asarray(world.sinks)
        if case.append:
            keywords.update(k=k, v=v)
        out, lse = (where.asarray(np.full(shape, np.nan, kind)) for shape, kind in ((q.shape, q.dtype), (q.shape[:2], np.float32)))
        found = pa.paged_attention(q, cache, batch, out=out, lse=lse, cp=self.cp, **keywords)
        assert found[0] is out
        assert found[1] is lse
        self.after = where.to_host(cache.pool)
        return where.to_host(out), where.to_host(lse)

    def settle(self, world: World) -> None:
        """Only this rank's new rows were written. Where they changed on their way, what they read back as counts from here on."""
        if not world.turned.rows_change:
            np.testing.assert_array_equal(self.after, self.world.full_pool, "the pool")
            return
        shape, same = shape_of(world.case), np.full_like(self.after, NAN_BYTE)
        for b, (table, new, length) in enumerate(zip(self.table.tolist(), self.own_q, self.own_k.tolist(), strict=True)):
            zeros = np.zeros((new, shape.num_kv_heads, shape.head_dim), np.uint16)
            reference.write_rows(same, table, length - new, zeros, zeros, 0, shape)
            read = [x.view(dtypes.of(world.case.dtype).numpy) for x in reference.read_rows(self.after, table, length, 0, shape)]
            for found, exact, dense in zip(read, world.exact[b], world.dense[b], strict=True):
                mine = slice(self.cp.rank, None, self.cp.size)
                limit = row_bounds(exact[mine], found, None, world.case.dtype, shape.bits)
                assert (np.abs(found.astype(np.float64) - exact[mine]) <= limit).all(), f"rows of sequence {b}"
                dense[mine] = found
        untouched = same == NAN_BYTE
        np.testing.assert_array_equal(self.after[untouched], self.world.pool[untouched], "the pool, but for new rows")

    def alone(self, world: World) -> World:
        """What this rank's result is compared with: attention in which the others' keys are masked, and rank 0 has the sinks."""
        masks = []
        for b, (new, length) in enumerate(world.case.lengths):
            mask = np.ones((new, length), bool) if not world.masks else world.masks[b].copy()
            mask[:, np.arange(length) % self.cp.size != self.cp.rank] = False
            masks.append(mask)
        return replace(world, masks=masks, sinks=None if self.cp.rank else world.sinks)


def compare_merged(world: World, out: Array, lse: Array) -> None:
    """As `compare`; each rank's part was rounded once more."""
    start = 0
    for b, (result, limit) in enumerate(zip(*world.expected(), strict=True)):
        part = slice(start, start + len(result.out))
        start = part.stop
        check(f"out of sequence {b}", out[part].astype(np.float64), result.out, limit.out + UNIT[world.case.dtype] * result.mass)
        check(f"lse of sequence {b}", lse[part].astype(np.float64), result.lse, 2 * limit.lse)


@pytest.mark.parametrize("device", ["cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_gather_gives_a_rank_its_tokens(device: str) -> None:
    rng, where = np.random.default_rng(0), pa.devices.get(device)
    k, v = (rng.standard_normal((45, 2, 64)).astype(np.float16) for _ in "kv")
    for rank in range(3):
        cp = pa.ContextParallel(rank, 3)
        cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, device=device, cp=cp)
        batch = cache.extend([cache.new_sequence() for _ in range(3)], [40, 1, 4])
        pa.append(where.asarray(k), where.asarray(v), cache, batch)
        mine = np.concatenate([np.arange(*ends)[rank::3] for ends in ((0, 40), (40, 41), (41, 45))])
        for found in (pa.gather(cache, batch), pa.gather(cache, batch, cp=cp)):
            for x, expected in zip(found, (k, v), strict=True):
                np.testing.assert_array_equal(where.to_host(x), expected[mine])


@pytest.mark.parametrize("device", ["cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_finished_rows_stay(device: str) -> None:
    """A finished sequence's rows are nobody's, even where the rank has none of its keys."""
    where = pa.devices.get(device)
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=device, cp=pa.ContextParallel(1, 2))
    batch = pa.Batch([[0], [1], [2]], [1, 1, 1], [1, 1, 4], finished=[True, False, False], device=device)
    q = where.asarray(np.ones((3, 1, 64), np.float16))
    out, lse = where.asarray(np.full((3, 1, 64), 7, np.float16)), where.asarray(np.full((3, 1), 7, np.float32))
    pa.paged_attention(q, cache, batch, k=q, v=q, out=out, lse=lse)
    assert [set(row.ravel().tolist()) for row in where.to_host(out)[:2]] == [{7.0}, {0.0}]
    assert where.to_host(lse)[:2, 0].tolist() == [7.0, -np.inf]


def test_plans_of_ranks_differ() -> None:
    """On a device that keeps plans, a call of another rank must not follow one."""
    where = pa.devices.get("cpu")
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=where)
    batch = cache.extend([cache.new_sequence()], [20])
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 20, 1, 64)).astype(np.float16)
    keys = []
    prepare = where.prepare
    try:
        where.prepare = lambda problem: keys.append(problem.key) or prepare(problem)  # type: ignore[method-assign]
        for cp in (None, pa.ContextParallel(0, 2), pa.ContextParallel(1, 2)):
            pa.paged_attention(q, cache, batch, k=k, v=v, cp=cp)
    finally:
        del where.prepare
    assert len(keys) == len(set(keys)) == 6


def test_refused() -> None:
    for rank, size, text in ((0, 0, "got rank 0 of 0"), (2, 2, "got rank 2 of 2"), (-1, 2, "rank -1 of 2"), (0, 2000, "1 to 1024 ranks")):
        with pytest.raises(pa.ArgumentError, match=text):
            pa.ContextParallel(rank, size)
    with pytest.raises(pa.ArgumentError, match=r"`size` of ContextParallel must be an integer; got 2\.0"):
        pa.ContextParallel(0, 2.0)  # type: ignore[arg-type]
    shape: dict[str, Any] = {"num_kv_heads": 1, "head_dim": 64, "block_len": 16, "device": "cpu"}
    with pytest.raises(pa.ArgumentError, match="`cp` must be a ContextParallel"):
        pa.KVCache(4, cp=(0, 2), **shape)
    cache = pa.KVCache(4, cp=pa.ContextParallel(1, 2), **shape)
    batch = cache.extend([cache.new_sequence()], [40])
    assert batch.block_table.shape == (1, 2)
    rows = np.ones((40, 1, 64), np.float16)
    other = pa.ContextParallel(0, 2)
    for call in (
        lambda cp: pa.append(rows, rows, cache, batch, cp=cp),
        lambda cp: pa.paged_attention(rows, cache, batch, cp=cp),
        lambda cp: pa.gather(cache, batch, cp=cp),
        lambda cp: pa.explain(rows, cache, batch, cp=cp),
    ):
        with pytest.raises(pa.ArgumentError, match="`cp` must be the cache's, rank 1 of 2, or None; got rank 0 of 2"):
            call(other)
        with pytest.raises(pa.ArgumentError, match=r"`cp` must be a ContextParallel.*got int"):
            call(2)
    whole = pa.KVCache(4, **shape)
    with pytest.raises(pa.ArgumentError, match="must have 3 columns for the longest sequence, 40 tokens"):
        pa.append(rows, rows, whole, batch)
    with pytest.raises(pa.UnsupportedError, match="ranks share the keys of a paged cache"):
        pa.varlen_attention(rows, rows, rows, [0, 40], [0, 40], cp=other)
    with pytest.raises(pa.UnsupportedError, match="`cache` must hold every key"):
        assert_matches_reference(rows, rows, cache, batch)
