"""KVCache as a state machine beside a model in plain Python: counts of free blocks, lengths, and the tokens themselves."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import pagedattn as pa

NUM_BLOCKS = 11
BLOCK_LEN = 16
LAYERS = 2
HEADS = 2
DIM = 64
COUNTS = st.sampled_from([1, 0, 5, BLOCK_LEN, BLOCK_LEN + 3, 3 * BLOCK_LEN])


@dataclass
class Model:
    """One sequence: its tokens' numbers, and its blocks as objects whose identity is all that matters."""

    tokens: list[int]
    blocks: list[object]


class Machine(RuleBasedStateMachine):
    """Every rule predicts what the cache must do; the invariant reads every token back."""

    sequences = Bundle("sequences")

    @initialize()
    def start(self) -> None:
        self.cache = pa.KVCache(NUM_BLOCKS, num_kv_heads=HEADS, head_dim=DIM, block_len=BLOCK_LEN, num_layers=LAYERS, device="cpu")
        self.cache.pool[...] = 0xFF
        self.models: dict[int, Model] = {}
        self.next_token = 0

    def holders(self) -> Counter[int]:
        return Counter(id(block) for model in self.models.values() for block in model.blocks)

    def free_blocks(self) -> int:
        return NUM_BLOCKS - len(self.holders())

    @rule(target=sequences)
    def new(self) -> int:
        sequence = self.cache.new_sequence()
        assert sequence not in self.models
        self.models[sequence] = Model([], [])
        return sequence

    @rule(chosen=st.lists(sequences, min_size=1, max_size=4), data=st.data())
    def extend(self, chosen: list[int], data: st.DataObject) -> None:
        counts = data.draw(st.lists(COUNTS, min_size=len(chosen), max_size=len(chosen)))
        if len(set(chosen)) < len(chosen):
            with pytest.raises(pa.ArgumentError, match="more than once"):
                self.cache.extend(chosen, counts)
            return
        _, needed = self.plan(chosen, counts)
        free = self.free_blocks()
        if needed > free:
            with pytest.raises(pa.OutOfBlocksError) as caught:
                self.cache.extend(chosen, counts)
            assert (caught.value.needed, caught.value.free) == (needed, free)
            return
        self.write(chosen, counts)

    def write(self, chosen: list[int], counts: list[int]) -> None:
        """Extend and append, where there is room."""
        plan, _ = self.plan(chosen, counts)
        batch = self.cache.extend(chosen, counts)
        for sequence, count, blocks in zip(chosen, counts, plan, strict=True):
            model = self.models[sequence]
            model.blocks = blocks
            model.tokens += range(self.next_token, self.next_token + count)
            self.next_token += count
        assert batch.seqlens_q.tolist() == counts
        assert batch.seqlens_k.tolist() == [len(self.models[s].tokens) for s in chosen]
        numbers = [n for s, count in zip(chosen, counts, strict=True) for n in self.models[s].tokens[len(self.models[s].tokens) - count :]]
        for layer in range(LAYERS):
            pa.append(*rows(numbers, layer), self.cache, batch, layer=layer)

    def plan(self, chosen: list[int], counts: list[int]) -> tuple[list[list[object]], int]:
        """The blocks of each sequence after the call, and how many are new: one sequence after the other."""
        holders, needed, lists = self.holders(), 0, []
        for sequence, count in zip(chosen, counts, strict=True):
            model = self.models[sequence]
            blocks = list(model.blocks)
            if count and len(model.tokens) % BLOCK_LEN and holders[id(blocks[-1])] > 1:
                holders[id(blocks[-1])] -= 1
                blocks[-1] = object()
                needed += 1
            while len(blocks) * BLOCK_LEN < len(model.tokens) + count:
                blocks.append(object())
                needed += 1
            lists.append(blocks)
        return lists, needed

    @rule(sequence=sequences, data=st.data())
    def truncate(self, sequence: int, data: st.DataObject) -> None:
        model = self.models[sequence]
        n = data.draw(st.integers(0, len(model.tokens)))
        self.cache.truncate(sequence, n)
        model.tokens = model.tokens[:n]
        model.blocks = model.blocks[: -(-n // BLOCK_LEN)]

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: int) -> Any:
        model = self.models[sequence]
        partial = len(model.tokens) % BLOCK_LEN > 0
        if partial and not self.free_blocks():
            with pytest.raises(pa.OutOfBlocksError):
                self.cache.fork(sequence)
            return multiple()
        other = self.cache.fork(sequence)
        assert other not in self.models
        self.models[other] = Model(list(model.tokens), [*model.blocks[:-1], object()] if partial else list(model.blocks))
        return other

    @rule(target=sequences, sequence=sequences, data=st.data())
    def branch(self, sequence: int, data: st.DataObject) -> Any:
        """Back up into shared blocks and go on from there, as speculative decoding does."""
        other = self.fork(sequence)
        if not isinstance(other, int):
            return other
        chosen = data.draw(st.sampled_from([other, sequence]))
        self.truncate(chosen, data)
        count = data.draw(COUNTS)
        if self.plan([chosen], [count])[1] <= self.free_blocks():
            self.write([chosen], [count])
        return other

    @rule(sequence=consumes(sequences))
    def free(self, sequence: int) -> None:
        self.cache.free(sequence)
        del self.models[sequence]
        with pytest.raises(pa.ArgumentError):
            self.cache.extend([sequence], [1])

    @rule(sequence=sequences)
    def refuse(self, sequence: int) -> None:
        for call in (
            lambda: self.cache.extend([sequence], [-1]),
            lambda: self.cache.extend([sequence, 10**9], [1, 1]),
            lambda: self.cache.truncate(sequence, len(self.models[sequence].tokens) + 1),
        ):
            with pytest.raises(pa.ArgumentError):
                call()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "models"):
            return
        assert self.cache.num_free_blocks == self.free_blocks()
        order = list(self.models)
        batch = self.cache.batch(order)
        assert batch.seqlens_k.tolist() == [len(model.tokens) for model in self.models.values()] == [self.cache.seqlen(s) for s in order]
        numbers = [n for model in self.models.values() for n in model.tokens]
        for layer in range(LAYERS):
            for found, expected in zip(pa.gather(self.cache, batch, layer=layer), rows(numbers, layer), strict=True):
                np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))


def rows(numbers: list[int], layer: int) -> tuple[np.ndarray, np.ndarray]:
    """K and V rows that tell their token, layer and head."""
    k = np.array(numbers, np.uint16)[:, None, None] * 4 + 2 * layer + np.arange(HEADS, dtype=np.uint16)[:, None] + np.zeros(DIM, np.uint16)
    return k.astype(np.uint16).view(np.float16), (k.astype(np.uint16) ^ 0xA5A5).view(np.float16)


Machine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,  # a busy machine is no fault of the cache's
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestMachine = Machine.TestCase
