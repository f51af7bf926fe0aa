"""ContextParallel and the cache of a rank: ranks in lockstep, beside a model in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from tests.unit.test_cache_machine import BLOCK_LEN, DIM, HEADS, LAYERS, rows

Array = np.ndarray[Any, Any]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_token_has_one_owner(size: int) -> None:
    ranks = [pa.ContextParallel(rank, size) for rank in range(size)]
    lengths = np.arange(50)
    for cp in ranks:
        expected = [sum(p % size == cp.rank for p in range(n)) for n in range(50)]
        assert cp.own(lengths).tolist() == expected == [cp.own(n) for n in range(50)]
    assert sum(cp.own(lengths) for cp in ranks).tolist() == lengths.tolist()


class Ranks:
    """The caches of all ranks, to which the same happens, and the tokens' numbers by sequence."""

    def __init__(self, size: int) -> None:
        shape: dict[str, Any] = {"num_kv_heads": HEADS, "head_dim": DIM, "block_len": BLOCK_LEN, "num_layers": LAYERS, "device": "cpu"}
        self.caches = [pa.KVCache(40, cp=pa.ContextParallel(rank, size), **shape) for rank in range(size)]
        self.tokens: dict[int, list[int]] = {}
        self.next_token = 0

    def each(self, act: Callable[[pa.KVCache], Any]) -> Any:
        answers = [act(cache) for cache in self.caches]
        assert all(x == answers[0] for x in answers)
        return answers[0]

    def new(self) -> int:
        sequence: int = self.each(lambda cache: cache.new_sequence())
        self.tokens[sequence] = []
        return sequence

    def extend(self, chosen: list[int], counts: list[int]) -> None:
        """Every rank is given all the new rows."""
        numbers = []
        for sequence, count in zip(chosen, counts, strict=True):
            numbers += range(self.next_token, self.next_token + count)
            self.tokens[sequence] += range(self.next_token, self.next_token + count)
            self.next_token += count
        for cache in self.caches:
            batch = cache.extend(chosen, counts)
            for layer in range(LAYERS):
                pa.append(*rows(numbers, layer), cache, batch, layer=layer)

    def fork(self, sequence: int) -> None:
        other = self.each(lambda cache: cache.fork(sequence))
        self.tokens[other] = list(self.tokens[sequence])

    def truncate(self, sequence: int, n: int) -> None:
        self.each(lambda cache: cache.truncate(sequence, n))
        del self.tokens[sequence][n:]

    def free(self, sequence: int) -> None:
        self.each(lambda cache: cache.free(sequence))
        del self.tokens[sequence]

    def check(self) -> None:
        """Every rank's blocks hold its tokens; each is counted in all its tokens, and takes no more blocks than its own need."""
        order = list(self.tokens)
        for cache in self.caches:
            size, rank = cache.cp.size, cache.cp.rank
            batch = cache.batch(order)
            assert batch.seqlens_k.tolist() == [len(x) for x in self.tokens.values()] == [cache.seqlen(s) for s in order]
            numbers = [n for x in self.tokens.values() for n in x[rank::size]]
            for layer in range(LAYERS):
                for found, expected in zip(pa.gather(cache, batch, layer=layer), rows(numbers, layer), strict=True):
                    np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))
            needed = sum(-(-len(x[rank::size]) // BLOCK_LEN) for x in self.tokens.values())
            assert cache.num_blocks - cache.num_free_blocks <= needed  # less where blocks are shared


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_caches_of_ranks(size: int, seed: int) -> None:
    random_, ranks = random.Random(seed), Ranks(size)
    ranks.new()
    for _ in range(40):
        known = list(ranks.tokens)
        what = random_.choice(["extend", "extend", "new", "fork", "truncate", "free"])
        one = random_.choice(known)
        if what == "new" and len(known) < 5:
            ranks.new()
        elif what == "extend" and sum(map(len, ranks.tokens.values())) < 300:
            chosen = random_.sample(known, random_.randint(1, len(known)))
            ranks.extend(chosen, [random_.choice([0, 1, 2, 5, 16, 40]) for _ in chosen])
        elif what == "fork" and len(known) < 5:
            ranks.fork(one)
        elif what == "truncate":
            ranks.truncate(one, random_.randint(0, len(ranks.tokens[one])))
        elif what == "free" and len(known) > 1:
            ranks.free(one)
        ranks.check()
    for sequence in list(ranks.tokens):
        ranks.free(sequence)
    assert [cache.num_free_blocks for cache in ranks.caches] == [40] * size


def test_a_rank_takes_blocks_for_its_own() -> None:
    shape: dict[str, Any] = {"num_kv_heads": 1, "head_dim": 64, "block_len": 16, "device": "cpu"}
    cache = pa.KVCache(2, cp=pa.ContextParallel(1, 4), **shape)
    sequence = cache.new_sequence()
    assert cache.extend([sequence], [1]).block_table.shape == (1, 0)  # it is rank 0's
    assert cache.extend([sequence], [128]).block_table.shape == (1, 2)
    with pytest.raises(pa.OutOfBlocksError):
        cache.extend([sequence], [1])
    assert (cache.seqlen(sequence), cache.num_free_blocks) == (129, 0)
    cache.truncate(sequence, 65)
    assert cache.num_free_blocks == 1


def test_a_shared_block_is_copied_by_its_writer() -> None:
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu", cp=pa.ContextParallel(1, 2))
    first = cache.new_sequence()
    cache.extend([first], [64])
    other = cache.fork(first)
    cache.truncate(other, 60)  # back into a block that both have
    assert cache.extend([other], [1]).block_table.tolist() == [[0, 1]]  # the token is rank 0's
    assert cache.extend([other], [1]).block_table.tolist() == [[0, 2]]


@pytest.mark.parametrize("kv_dtype", ["int8", None])
def test_convert_keeps_the_rank(kv_dtype: str | None) -> None:
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu", cp=pa.ContextParallel(1, 2))
    batch = cache.extend([cache.new_sequence()], [70])
    k = np.repeat(np.arange(70, dtype=np.float16), 64).reshape(70, 1, 64)
    pa.append(k, -k, cache, batch)
    other = cache.convert(kv_dtype)
    assert other.cp == cache.cp
    for found, expected in zip(pa.gather(other, batch), (k[1::2], -k[1::2]), strict=True):
        np.testing.assert_array_equal(found, expected)  # constant rows are exact as codes
