"""Continuous batching: sequences join and leave a running batch, fork, and are put back when the pool is full.

The model and the prompts are those of `pagedattn demo`; the pool is made too small for all of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

import pagedattn as pa
from pagedattn.demo import weights
from pagedattn.demo.generate import step
from pagedattn.demo.model import END, Model
from pagedattn.demo.prompts import REQUESTS

NUM_BLOCKS = 60
NEW_TOKENS = 64


@dataclass(eq=False)
class Sequence:
    """Prompt and generated tokens; the last `pending` of them are not in the cache yet. `siblings` are still to be forked from it."""

    name: str
    tokens: list[int]
    stop: int
    siblings: int = 0
    id: int = -1
    pending: int = 0


class Server:
    """A batch that changes from turn to turn. In one turn some sequences prefill and the others decode, in the same call."""

    def __init__(self, model: Model, cache: pa.KVCache) -> None:
        self.model, self.cache = model, cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.finished: list[Sequence] = []
        self.rng = np.random.default_rng(0)
        self.turn = 0
        self.full = False

    def serve(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Run until all are finished."""
        self.waiting.extend(sequences)
        while self.waiting or self.running:
            if self.waiting and not self.full:
                self.join(self.waiting.popleft())
            batch = self.extend()
            tokens = [token for s in self.running for token in s.tokens[-s.pending :]]
            logits = step(self.model, self.cache, batch, tokens)
            for sequence, row in zip(self.running.copy(), logits, strict=True):
                for member in (sequence, *self.fork(sequence)):
                    member.tokens.append(self.draw(row))
                    member.pending = 1
                    if member.tokens[-1] == END or len(member.tokens) == member.stop:
                        self.leave(member)
            self.turn += 1
        return self.finished

    def extend(self) -> pa.Batch:
        """Blocks for every running sequence's pending tokens; while there are too few, the youngest sequence goes back."""
        while True:
            try:
                return self.cache.extend([s.id for s in self.running], [s.pending for s in self.running])
            except pa.OutOfBlocksError as error:  # nothing was taken
                if len(self.running) == 1:
                    raise
                self.put_back(self.running.pop(), error)

    def join(self, sequence: Sequence) -> None:
        sequence.id, sequence.pending = self.cache.new_sequence(), len(sequence.tokens)
        self.running.append(sequence)
        self.tell("joins", sequence)

    def fork(self, sequence: Sequence) -> list[Sequence]:
        """The sequence's siblings, once its prompt is in the cache: they share its blocks. One that finds no block waits and prefills."""
        made = []
        while sequence.siblings:
            sequence.siblings -= 1
            sibling = Sequence(f"{sequence.name}, sibling {sequence.siblings + 1}", sequence.tokens.copy(), sequence.stop)
            try:
                sibling.id = self.cache.fork(sequence.id)
            except pa.OutOfBlocksError:
                self.waiting.append(sibling)
                continue
            self.running.append(sibling)
            made.append(sibling)
            self.tell("is forked", sibling)
        return made

    def leave(self, sequence: Sequence) -> None:
        self.cache.free(sequence.id)
        self.running.remove(sequence)
        self.finished.append(sequence)
        self.full = False
        self.tell("leaves", sequence)

    def put_back(self, sequence: Sequence, error: pa.OutOfBlocksError) -> None:
        """Its blocks are freed; later its tokens, generated ones too, are prefilled again. Nobody joins before somebody leaves."""
        self.cache.free(sequence.id)
        self.waiting.appendleft(sequence)
        self.full = True
        self.tell(f"goes back ({error.needed} blocks needed, {error.free} free)", sequence)

    def draw(self, logits: np.ndarray) -> int:
        weights = np.exp((logits - logits.max()) / 0.7)
        return int(self.rng.choice(len(weights), p=weights / weights.sum()))

    def tell(self, what: str, sequence: Sequence) -> None:
        blocks = f"{self.cache.num_free_blocks:2} blocks free"
        print(f"turn {self.turn:3}  {len(self.running)} running, {len(self.waiting)} waiting, {blocks}: {sequence.name} {what}")


def main(num_blocks: int = NUM_BLOCKS, device: str | None = None) -> list[Sequence]:
    loaded = weights.load()
    model, config = Model(loaded.config, loaded.arrays, device), loaded.config
    cache = pa.KVCache(
        num_blocks, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim, num_layers=config.num_layers, block_len=16, device=device
    )
    sequences = [Sequence(r.title, r.tokens, len(r.tokens) + NEW_TOKENS, siblings=r.samples - 1) for r in REQUESTS]
    with model.current():
        return Server(model, cache).serve(sequences)


if __name__ == "__main__":
    main()
