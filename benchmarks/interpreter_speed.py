"""The interpreter's speed: 64 CTAs of 128 threads over 4 key tiles, and a decode launch, in thread-instructions per second.

python benchmarks/interpreter_speed.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import pagedattn as pa
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.ptx import Counts


def measure(head_dim: int, sequences: int, new: int, keys: int, heads: int, counting: bool = False) -> Counts:
    """The second of two equal calls: the first makes the program."""
    device = InterpreterDevice()
    device.counting = counting
    cache = pa.KVCache(sequences * (keys // 64 + 1), num_kv_heads=1, head_dim=head_dim, block_len=64, device=device)
    cache.pool[:] = 0
    ids = [cache.new_sequence() for _ in range(sequences)]
    if keys > new:
        cache.extend(ids, [keys - new] * sequences)
    batch = cache.extend(ids, [new] * sequences)
    q = device.asarray(np.random.default_rng(0).standard_normal((sequences * new, heads, head_dim)).astype(np.float16))
    for _ in range(2):
        pa.paged_attention(q, cache, batch, causal=False)
    return device.launches[-1]


def main() -> None:
    print(f"{'kernel':50} {'CTAs':>5} {'threads':>7} {'seconds':>8} {'million thread-instructions / s':>32}")
    for row in ((64, 16, 128, 256, 4), (128, 16, 128, 256, 4), (128, 64, 1, 600, 8)):
        for counting in (False, True):
            counts = measure(*row, counting)
            speed = counts.thread_instructions / counts.seconds / 1e6
            name = counts.kernel + (" counted" if counting else "")
            print(f"{name:50} {counts.ctas:5} {counts.threads:7} {counts.seconds:8.2f} {speed:32.1f}")


if __name__ == "__main__":
    main()
