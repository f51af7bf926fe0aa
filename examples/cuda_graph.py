"""A decode step captured once in a CUDA graph and replayed: other lengths, other blocks and other inputs each time, one launch.

What a graph keeps are addresses and sizes: arrays are written in place, and the batch is made with room for the longest sequences. What
varies lies on the device: block table, lengths, rows. On "cpu" there is nothing to capture, and the step itself runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import pagedattn as pa

LAYERS, HEADS, KV_HEADS, DIM, BLOCK = 2, 8, 2, 64, 16
LONGEST = 256


class Decoder:
    """Attention layers of a decode step over a cache, with all the memory that the step needs."""

    def __init__(self, cache: pa.KVCache, sequences: list[int]) -> None:
        device, size = cache.device, len(sequences)
        self.cache, self.sequences = cache, sequences
        # unshared: what the cache's `extend` makes, and all that will be assigned
        room = np.zeros((size, LONGEST // BLOCK), np.int32)
        self.batch = pa.Batch(room, [1] * size, [LONGEST] * size, unshared=True, device=device)
        self.q = device.zeros((LAYERS, size, HEADS, DIM), np.float16)
        self.k, self.v = (device.zeros((LAYERS, size, KV_HEADS, DIM), np.float16) for _ in "kv")
        self.out = device.zeros((LAYERS, size, HEADS, DIM), np.float16)
        sizes = {"batch_size": size, "num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM, "max_seqlen_k": LONGEST}
        gpu = {} if device.arch is None else {"arch": device.arch.name, "sm_count": device.sm_count}
        self.workspace = device.zeros((pa.workspace_bytes(**sizes, **gpu),), np.uint8)

    def load(self, q: Any, k: Any, v: Any) -> None:
        """The next step: room for one more token in each sequence, and its rows. In place, where the graph finds them."""
        self.batch.assign(self.cache.extend(self.sequences, [1] * len(self.sequences)))
        for mine, given in ((self.q, q), (self.k, k), (self.v, v)):
            mine[...] = self.cache.device.asarray(given)

    def step(self) -> None:
        """All that is captured: no allocation, no copy to or from the host, no synchronisation."""
        for i in range(LAYERS):
            pa.paged_attention(
                self.q[i], self.cache, self.batch, k=self.k[i], v=self.v[i], layer=i, out=self.out[i], workspace=self.workspace
            )


def captured(step: Callable[[], None], device: str) -> Callable[[], None]:
    """`step` as a graph. It has run before: kernels are then loaded, which a capture does not permit."""
    if device == "cpu":
        return step
    import cupy

    stream = cupy.cuda.get_current_stream()
    stream.begin_capture()
    step()
    graph = stream.end_capture()
    return lambda: graph.launch(stream)


def main(device: str = "cuda", steps: int = 20) -> tuple[list[Any], pa.KVCache, list[int]]:
    """Decode `steps` tokens of three sequences; what each step gave, the cache, and the sequences."""
    cache = pa.KVCache(64, num_kv_heads=KV_HEADS, head_dim=DIM, block_len=BLOCK, num_layers=LAYERS, device=device)
    rng = np.random.default_rng(0)

    def rows(tokens: int, heads: int) -> Any:
        return rng.standard_normal((LAYERS, tokens, heads, DIM)).astype(np.float16)

    sequences = [cache.new_sequence() for _ in range(3)]
    prompt = cache.extend(sequences, [100, 1, 31])
    for i, (k, v) in enumerate(zip(rows(132, KV_HEADS), rows(132, KV_HEADS), strict=True)):
        pa.append(cache.device.asarray(k), cache.device.asarray(v), cache, prompt, layer=i)

    decoder, results = Decoder(cache, sequences), []
    run = decoder.step  # the first step runs as it is
    for _ in range(steps):
        decoder.load(rows(3, HEADS), rows(3, KV_HEADS), rows(3, KV_HEADS))
        run()
        results.append((cache.device.to_host(decoder.q).copy(), cache.device.to_host(decoder.out).copy()))
        if run == decoder.step:
            run = captured(decoder.step, device)
    return results, cache, sequences


def on_a_stream(device: str) -> tuple[list[Any], pa.KVCache, list[int]]:
    """A capture wants another stream than the default one."""
    if device == "cpu":
        return main(device)
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        return main(device)


if __name__ == "__main__":
    gpu = pa.KVCache(1, num_kv_heads=1, head_dim=64).device.name
    found, cache, _ = on_a_stream("cpu" if gpu == "cpu" else "cuda")
    print(
        f"{len(found)} steps on {gpu}, all but the first {'as the same calls' if gpu == 'cpu' else 'replayed from one graph'}",
        cache,
        sep="\n",
    )
