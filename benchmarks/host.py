"""What calls cost the host, and importing the package."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import cupy as cp
import numpy as np

import pagedattn as pa
from benchmarks import measure
from benchmarks.measure import Effort
from pagedattn.params import AttentionParams

# What a host is measured by: calls of CuPy's own, which this package does not make.
_EMPTY = cp.RawKernel(
    f'struct Params {{ long long words[{AttentionParams.itemsize // 8}]; }}; extern "C" __global__ void empty(Params) {{}}', "empty"
)


def host(results: dict[str, Any], effort: Effort) -> None:
    """What one decode call costs the host, and `import pagedattn`."""
    cache = pa.KVCache(64, num_kv_heads=8, head_dim=128, device="cuda")
    sequences = [cache.new_sequence() for _ in range(8)]
    batch = cache.extend(sequences, [1] * 8)
    q = cp.ones((8, 32, 128), cp.float16)
    k = v = cp.ones((8, 8, 128), cp.float16)
    out = cp.empty_like(q)
    figures = {
        "paged_attention, out given": measure.host(lambda: pa.paged_attention(q, cache, batch, out=out)),
        "paged_attention": measure.host(lambda: pa.paged_attention(q, cache, batch)),
        "append": measure.host(lambda: pa.append(k, v, cache, batch)),
        "append and paged_attention": measure.host(lambda: pa.paged_attention(q, cache, batch, k=k, v=v, out=out)),
    }

    def step() -> None:
        cache.extend(sequences, [1] * 8)
        for s in sequences:
            cache.truncate(s, 1)

    figures["extend (8 sequences, with their truncation)"] = measure.host(step, 200)
    room = pa.Batch(np.zeros((8, 8), np.int32), [1] * 8, [512] * 8, unshared=True, device="cuda")
    with cp.cuda.Stream(non_blocking=True) as stream:

        def decode_step() -> None:
            for _ in range(32):  # a model's layers
                pa.paged_attention(q, cache, room, k=k, v=v, out=out)

        room.assign(batch)
        decode_step()
        stream.begin_capture()
        decode_step()
        captured = stream.end_capture()
        figures["32 layers of append and paged_attention"] = measure.host(decode_step, 10)
        figures["32 layers, captured: Batch.assign"] = measure.host(lambda: room.assign(batch))
        figures["32 layers, captured: the graph's launch"] = measure.host(lambda: captured.launch(stream), 20)
    figures |= _cupy()
    results["host_us"] = figures
    if not effort.quick:
        results["import_ms"] = _import_ms()
    print("\nhost cost, us a call")
    for name, value in figures.items():
        print(f"  {name:48}{value:8.1f}")
    if "import_ms" in results:
        print(f"  {'import pagedattn, ms':48}{results['import_ms']:8.0f}")


def _cupy() -> dict[str, float]:
    """A launch of an empty kernel with a struct as large as the package's, memory for an output, and a graph of that launch."""
    params = np.zeros(1, AttentionParams)[0]
    figures = {
        "CuPy: RawKernel, empty, one struct": measure.host(lambda: _EMPTY((1,), (32,), (params,))),
        "CuPy: empty": measure.host(lambda: cp.empty((8, 32, 128), cp.float16)),
    }
    with cp.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        _EMPTY((1,), (32,), (params,))
        captured = stream.end_capture()
        figures["CuPy: a graph of one launch"] = measure.host(lambda: captured.launch(stream))
    return figures


def _import_ms() -> float:
    """Milliseconds that `import pagedattn` adds to Python's own start."""
    best = []
    for code in ("import pagedattn", "pass"):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - begin)
        best.append(min(times))
    return (best[0] - best[1]) * 1e3
