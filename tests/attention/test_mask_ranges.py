"""The keys that a mask keeps for neighbouring queries: found exactly, and no others are read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dispatch, extras
from pagedattn.explain import explain_shape
from pagedattn.footprint import RANGE_QUERIES
from tests.attention.test_masks import GPU

HOST = ("interpreter", "interpreter:sm_90", "interpreter:sm_75", "interpreter:sm_70")
LENGTHS = ((3, 90), (150, 431), (65, 65))
HEADS, HEAD_DIM, BLOCK_LEN = 2, 64, 64


def documents(q: int, k: int) -> Any:
    own = np.arange(k) // 97
    return own[k - q :, None] == own


MASKS = {
    "documents": documents,
    "few": lambda q, k: np.random.default_rng(q).random((q, k)) < 2 / k,
    "stripe": lambda q, k: np.broadcast_to((np.arange(k) >= k // 3) & (np.arange(k) < k // 2), (q, k)),
    "one": lambda q, k: np.arange(q * k).reshape(q, k) == q * k // 2,
    "none": lambda q, k: np.zeros((q, k), bool),
    "all": lambda q, k: np.ones((q, k), bool),
}


class World:
    """LENGTHS in a cache of a device; calls with masks that begin at the last of `offset` + 1 bytes."""

    def __init__(
        self, device: str, kv_dtype: str | None = None, lengths: tuple[tuple[int, int], ...] = LENGTHS, heads: int = HEADS
    ) -> None:
        self.lengths, rng = lengths, np.random.default_rng(7)
        new, tokens = ([n[i] for n in lengths] for i in (0, 1))
        shape = {"num_kv_heads": HEADS, "head_dim": HEAD_DIM, "block_len": BLOCK_LEN}
        self.cache = pa.KVCache(sum(-(-n // BLOCK_LEN) for n in tokens), **shape, kv_dtype=kv_dtype, device=device)
        whole = self.cache.extend([self.cache.new_sequence() for _ in tokens], tokens)
        asarray = self.cache.device.asarray
        k, v = (asarray(rng.standard_normal((sum(tokens), HEADS, HEAD_DIM)).astype(np.float16)) for _ in "kv")
        pa.append(k, v, self.cache, whole)
        self.batch = pa.Batch(whole.block_table, new, tokens, device=self.cache.device)
        self.q = asarray(rng.standard_normal((sum(new), heads, HEAD_DIM)).astype(np.float16))

    def attend(self, mask: Any, offset: int = 0, **keywords: Any) -> tuple[Any, Any]:
        device = self.cache.device
        room = np.ones(mask.size + offset, bool)
        room[offset:] = mask
        found = pa.paged_attention(self.q, self.cache, self.batch, mask=device.asarray(room)[offset:], return_lse=True, **keywords)
        return device.to_host(found[0]), device.to_host(found[1])

    @property
    def ranges(self) -> Any:
        (found,) = (x for key, x in self.batch.notes.items() if key[0] == "mask_ranges")
        return self.cache.device.to_host(found)


def flat(name: str, lengths: tuple[tuple[int, int], ...] = LENGTHS) -> Any:
    return np.concatenate([MASKS[name](q, k).reshape(-1) for q, k in lengths])


def expected(name: str, causal: bool, window: int) -> list[list[tuple[int, int] | None]]:
    """First and past the last kept key of every RANGE_QUERIES queries of each sequence; None where there is none."""
    found = []
    for q, k in LENGTHS:
        key, position = np.arange(k), np.arange(k - q, k)[:, None]
        entries: list[tuple[int, int] | None] = []
        for first in range(0, q, RANGE_QUERIES):
            rows = slice(first, min(first + RANGE_QUERIES, q))
            seen = np.ones(k, bool)  # by one of them at least, but for the mask
            if causal:
                seen &= key <= position[rows][-1]
            if window:
                seen &= key > position[rows][0] - window
            kept = np.flatnonzero(MASKS[name](q, k)[rows].any(0) & seen)
            entries.append((int(kept[0]), int(kept[-1]) + 1) if kept.size else None)
        found.append(entries)
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "RANGES_FROM", (1, 1))


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("device", [*HOST, *GPU])
@pytest.mark.parametrize("name", MASKS)
def test_they_are_the_keys_that_the_mask_keeps(device: str, name: str) -> None:
    world, right = World(device), World("cpu")
    for offset, (causal, window) in zip((0, 3, 16, 29), ((True, None), (False, None), (True, 70), (False, 200)), strict=True):
        out, lse = world.attend(flat(name), offset, causal=causal, window_size=window)
        for entries, found in zip(expected(name, causal, window or 0), world.ranges, strict=True):
            for entry, (begin, end) in zip(entries, found, strict=False):
                assert (begin >= end) if entry is None else (begin, end) == entry
        wanted_out, wanted_lse = right.attend(flat(name), causal=causal, window_size=window)
        np.testing.assert_allclose(out.astype(np.float32), wanted_out.astype(np.float32), atol=2e-3)
        np.testing.assert_allclose(lse, wanted_lse, atol=1e-4)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("device", HOST)
@pytest.mark.parametrize("heads", [8, 32])
def test_tiles_of_a_group_hold_fewer_queries(device: str, heads: int) -> None:
    """They begin within what shares a range, too."""
    lengths = ((1, 9), (150, 290))
    world, right = World(device, lengths=lengths, heads=heads), World("cpu", lengths=lengths, heads=heads)
    for name, num_splits in (("documents", None), ("few", 1)):
        out, lse = world.attend(flat(name, lengths), num_splits=num_splits)
        wanted_out, wanted_lse = right.attend(flat(name, lengths), num_splits=num_splits)
        np.testing.assert_allclose(out.astype(np.float32), wanted_out.astype(np.float32), atol=2e-3)
        np.testing.assert_allclose(lse, wanted_lse, atol=1e-4)


@pytest.fixture
def ranges_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill = dispatch._prefill
    monkeypatch.setattr(dispatch, "_prefill", lambda *given: prefill(*given)._replace(grid=0))


@pytest.mark.usefixtures("always", "ranges_only")
@pytest.mark.parametrize("device", ["interpreter:sm_90", "interpreter:sm_75"])
@pytest.mark.parametrize("offset", range(16))
def test_one_key_is_found_wherever_it_stands(device: str, offset: int) -> None:
    """At the ends of what is looked at in one step, from both sides."""
    q, k = 3, 707
    world = World(device, lengths=((q, k),))
    for near in (0, 1, 15, 16, 62, 63, 64, 65, 80, 574, 575, 576, 577, 592):
        for key in {near, k - 1 - near}:
            mask = np.zeros((q, k), bool)
            mask[key % q, key] = True
            world.attend(mask.reshape(-1), offset, causal=False)
            assert world.ranges.tolist() == [[[key, key + 1]]]


@pytest.mark.usefixtures("always", "ranges_only")
@pytest.mark.parametrize(("q", "k", "keys"), [(64, 901, (450,)), (64, 901, (100, 800)), (5, 9999, (4700,)), (5, 9999, (5001, 5300))])
@pytest.mark.parametrize("row", [-1, -33])
def test_many_rows_and_long_ones(q: int, k: int, keys: tuple[int, ...], row: int) -> None:
    """Only one row keeps any; steps grow to 4,096 keys."""
    world = World("interpreter", lengths=((q, k),))
    mask = np.zeros((q, k), bool)
    mask[row % q, list(keys)] = True
    world.attend(mask.reshape(-1), causal=False)
    assert world.ranges.tolist() == [[[keys[0], keys[-1] + 1]]]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("device", HOST)
@pytest.mark.parametrize("kv_dtype", [None, "int4"])
def test_no_others_are_read(device: str, kv_dtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 600 keys the mask keeps 100, which lie in 128 keys' tiles: a quarter of the reads."""
    lengths = ((64, 600),)
    world = World(device, kv_dtype, lengths)
    monkeypatch.setattr(world.cache.device, "counting", True)
    key = np.arange(600)
    moved = {}
    for first, count in ((0, 600), (300, 100)):
        world.attend(np.tile((key >= first) & (key < first + count), 64), causal=False)
        launches = world.cache.device.launches
        assert len(launches) == 2
        moved[count] = sum(launch.bytes_of("pool").useful_bytes for launch in launches)
    assert 0 < moved[100] < 0.35 * moved[600]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("cp", [2, 3])
def test_ranks_have_their_share_of_them(cp: int) -> None:
    """A rank's keys are every cp-th: those of a range are counted as they are there."""
    q, k = 70, 300
    key = np.arange(k)
    mask = np.tile((key >= 101) & (key < 211), q)
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((k, HEADS, HEAD_DIM)).astype(np.float16) for _ in "kv"]
    query = rng.standard_normal((q, HEADS, HEAD_DIM)).astype(np.float16)

    def attend(device: str, parallel: pa.ContextParallel | None) -> tuple[Any, Any]:
        cache = pa.KVCache(8, num_kv_heads=HEADS, head_dim=HEAD_DIM, block_len=BLOCK_LEN, device=device, cp=parallel)
        whole = cache.extend([cache.new_sequence()], [k])
        pa.append(*rows, cache, whole)
        batch = pa.Batch(whole.block_table, [q], [k], device=cache.device)
        return pa.paged_attention(query, cache, batch, mask=mask, causal=False, return_lse=True)

    parts = [attend("interpreter", pa.ContextParallel(rank, cp)) for rank in range(cp)]
    out, lse = pa.merge([p[0] for p in parts], [p[1] for p in parts])
    wanted_out, wanted_lse = attend("cpu", None)
    np.testing.assert_allclose(out.astype(np.float32), wanted_out.astype(np.float32), atol=2e-3)
    np.testing.assert_allclose(lse, wanted_lse, atol=1e-4)


def test_short_sequences_do_without() -> None:
    few, many = extras.RANGES_FROM
    for q, k in ((few - 1, many), (few, many - 1), (few, many)):
        found = explain_shape(num_heads=2, num_kv_heads=2, head_dim=64, seqlens_q=[q], seqlens_k=[k], device="interpreter", mask=True)
        kernels = [step.spec.op for step in found.steps if step.spec]
        assert kernels == (["ranges", "prefill"] if (q, k) == (few, many) else ["prefill"])


@pytest.mark.usefixtures("always")
def test_what_explain_says_is_launched() -> None:
    world = World("interpreter")
    mask = flat("documents")
    steps = pa.explain(world.q, world.cache, world.batch, mask=mask).steps
    world.attend(mask)
    assert [step.spec.op for step in steps if step.spec] == ["ranges", "prefill"]
    assert len(world.cache.device.launches) == len(steps)
    assert steps[0].grid == len(LENGTHS) * -(-150 // RANGE_QUERIES)


@pytest.mark.usefixtures("always")
def test_streams_and_threads_have_room_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("interpreter")

    def rooms() -> int:
        return sum(key[0] == "mask_ranges" for key in world.batch.notes)

    for _ in range(2):
        world.attend(flat("all"))
        assert rooms() == 1
    with ThreadPoolExecutor(1) as pool:
        pool.submit(world.attend, flat("all")).result()
    assert rooms() == 2
    monkeypatch.setattr(world.cache.device, "address_of", lambda stream: 5)
    world.attend(flat("all"))
    assert rooms() == 3
