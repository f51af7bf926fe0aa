"""BlockAllocator: all or nothing, and every block is counted."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pagedattn.allocator import BlockAllocator
from pagedattn.errors import ArgumentError, OutOfBlocksError

NUM_BLOCKS = 9


class Machine(RuleBasedStateMachine):
    """The allocator beside a Counter of holders."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(NUM_BLOCKS)
        self.held: Counter[int] = Counter()

    @rule(n=st.integers(0, 5))
    def take(self, n: int) -> None:
        free = NUM_BLOCKS - len(self.held)
        if n > free:
            with pytest.raises(OutOfBlocksError) as caught:
                self.allocator.take(n)
            assert (caught.value.needed, caught.value.free) == (n, free)
            return
        taken = self.allocator.take(n).tolist()
        assert len(set(taken)) == n
        assert not set(taken) & set(self.held)
        self.held.update(taken)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held)), max_size=4))
        self.allocator.share(np.array(blocks, np.int32))
        self.held.update(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held)), max_size=5))
        times = Counter(blocks)
        if any(times[b] > self.held[b] for b in times):
            with pytest.raises(ArgumentError, match="not held that often"):
                self.allocator.release(blocks)
            return
        self.allocator.release(blocks)
        self.held = +(self.held - times)

    @rule(block=st.integers(-2, NUM_BLOCKS + 1), sharing=st.booleans())
    def refuse_what_is_free(self, block: int, sharing: bool) -> None:
        if block in self.held:
            return
        with pytest.raises(ArgumentError, match=r"must lie in 0\.\.8" if not 0 <= block < NUM_BLOCKS else "only blocks that are held"):
            (self.allocator.share if sharing else self.allocator.release)([block])

    @invariant()
    def agrees(self) -> None:
        assert self.allocator.num_free == NUM_BLOCKS - len(self.held)
        assert self.allocator.num_extra == sum(self.held.values()) - len(self.held)
        assert self.allocator.holders(np.arange(NUM_BLOCKS)).tolist() == [self.held[b] for b in range(NUM_BLOCKS)]


TestMachine = Machine.TestCase


def test_blocks_come_in_order_and_the_last_freed_first() -> None:
    allocator = BlockAllocator(6)
    assert allocator.take(4).tolist() == [0, 1, 2, 3]
    allocator.release([1, 2])
    assert allocator.take(3).tolist() == [1, 2, 4]


def test_a_refused_release_changes_nothing() -> None:
    allocator = BlockAllocator(4)
    held = allocator.take(2)
    with pytest.raises(ArgumentError):
        allocator.release([*held.tolist(), 3])
    assert allocator.holders(held).tolist() == [1, 1]
    assert allocator.num_free == 2
