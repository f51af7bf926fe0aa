"""What calls cost the host, and importing the package."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import cupy as cp
import numpy as np

import pagedattn as pa
from benchmarks import measure
from benchmarks.measure import Effort
from pagedattn.params import AttentionParams

ROUNDS, PAUSE_S = 5, 1.0
Calls = dict[str, tuple[Callable[[], Any], int]]
_EMPTY = cp.RawKernel(
    f'struct Params {{ long long words[{AttentionParams.itemsize // 8}]; }}; extern "C" __global__ void empty(Params) {{}}', "empty"
)


def host(results: dict[str, Any], effort: Effort) -> None:
    """What one decode call costs the host, and `import pagedattn`: the least of several rounds, for a core of a shared machine is slow for
    seconds on end, whoever has the rest of it."""
    stream = cp.cuda.Stream(non_blocking=True)
    plain, streamed = _calls(stream)
    found: dict[str, list[float]] = {}
    rounds = 1 if effort.quick else ROUNDS
    for number in range(rounds):
        time.sleep(PAUSE_S if number else 0.0)
        for where, calls in ((contextlib.nullcontext(), plain), (stream, streamed)):
            with where:
                for name, (call, count) in calls.items():
                    found.setdefault(name, []).append(measure.host(call, count))
    results["host_us"], results["host_most_us"] = ({name: pick(us) for name, us in found.items()} for pick in (min, max))
    if not effort.quick:
        results["import_ms"] = _import_ms()
    print(f"\nhost cost, us a call, the least and the most of {rounds} rounds")
    for name, us in found.items():
        print(f"  {name:48}{min(us):8.1f}{max(us):8.1f}")
    if "import_ms" in results:
        print(f"  {'import pagedattn, ms':48}{results['import_ms']:8.0f}")


def _calls(stream: Any) -> tuple[Calls, Calls]:
    """What is timed by name, and how many in a row: on the current stream, and on the one given."""
    cache = pa.KVCache(64, num_kv_heads=8, head_dim=128, device="cuda")
    sequences = [cache.new_sequence() for _ in range(8)]
    batch = cache.extend(sequences, [1] * 8)
    q = cp.ones((8, 32, 128), cp.float16)
    k = v = cp.ones((8, 8, 128), cp.float16)
    out = cp.empty_like(q)
    room = pa.Batch(np.zeros((8, 8), np.int32), [1] * 8, [512] * 8, unshared=True, device="cuda")
    params = np.zeros(1, AttentionParams)[0]

    def step() -> None:
        cache.extend(sequences, [1] * 8)
        for s in sequences:
            cache.truncate(s, 1)

    def layers() -> None:
        for _ in range(32):
            pa.paged_attention(q, cache, room, k=k, v=v, out=out)

    def empty() -> None:
        _EMPTY((1,), (32,), (params,))

    with stream:
        room.assign(batch)
        model, launch = _captured(layers, stream), _captured(empty, stream)
    plain: Calls = {
        "paged_attention, out given": (lambda: pa.paged_attention(q, cache, batch, out=out), 1000),
        "paged_attention": (lambda: pa.paged_attention(q, cache, batch), 1000),
        "append": (lambda: pa.append(k, v, cache, batch), 1000),
        "append and paged_attention": (lambda: pa.paged_attention(q, cache, batch, k=k, v=v, out=out), 1000),
        "extend (8 sequences, with their truncation)": (step, 200),
        # what a host is measured by: calls of CuPy's own, which this package does not make
        "CuPy: RawKernel, empty, one struct": (empty, 1000),
        "CuPy: empty": (lambda: cp.empty((8, 32, 128), cp.float16), 1000),
    }
    streamed: Calls = {
        "32 layers of append and paged_attention": (layers, 10),
        "32 layers, captured: Batch.assign": (lambda: room.assign(batch), 1000),
        "32 layers, captured: the graph's launch": (lambda: model.launch(stream), 20),
        "CuPy: a graph of one launch": (lambda: launch.launch(stream), 1000),
    }
    return plain, streamed


def _captured(call: Callable[[], None], stream: Any) -> Any:
    """A graph of a call, which has been made before."""
    call()
    stream.begin_capture()
    call()
    return stream.end_capture()


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
