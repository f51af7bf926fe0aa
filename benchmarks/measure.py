"""How time and bandwidth are measured: CUDA events and graph replays, medians, data beyond L2, the ceilings in the same run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import cupy as cp
import numpy as np

if TYPE_CHECKING:
    from benchmarks.work_table import Workload

_READ = cp.RawKernel(
    r"""
extern "C" __global__ void read_all(const uint4* __restrict__ p, long long n, unsigned* out)
{
    const long long step = (long long)gridDim.x * blockDim.x;
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    unsigned x = 0;
    for (; i + 3 * step < n; i += 4 * step) {
        const uint4 a = __ldcs(p + i), b = __ldcs(p + i + step), c = __ldcs(p + i + 2 * step), d = __ldcs(p + i + 3 * step);
        x ^= a.x ^ b.y ^ c.z ^ d.w ^ a.z ^ b.x ^ c.y ^ d.x;
    }
    if (x == 0x12345u) *out = x;  // never optimised away
}
""",
    "read_all",
)
_GRAPH_US = 4000.0  # what a replayed graph lasts at least, where 32 calls can: its own start is then lost in it


@dataclass(frozen=True)
class Effort:
    """How long each figure is measured. A quick run tries every part of the benchmark; its figures are not to be quoted."""

    quick: bool = False

    @property
    def repeat(self) -> int:
        return 3 if self.quick else 30

    @property
    def seconds(self) -> float:
        """Of load before a sustained figure."""
        return 0.02 if self.quick else 0.5


def read_ceiling(gigabytes: int = 4) -> float:
    """Bytes per second that 16-byte loads read from memory that L2 does not hold."""
    data = cp.random.default_rng(0).integers(0, 255, gigabytes << 30, dtype=cp.uint8)
    out = cp.zeros(1, cp.uint32)
    sms = cp.cuda.Device().attributes["MultiProcessorCount"]
    microseconds = events(lambda i: _READ((8 * sms,), (512,), (data, np.int64(data.nbytes // 16), out)), repeat=30, warmup=3)
    return float(data.nbytes / microseconds * 1e6)


def matmul_ceiling(effort: Effort, n: int = 8192) -> float:
    """FLOP per second, sustained, of cuBLAS's product of two float16 matrices of n x n random elements, accumulated in float32."""
    rng = cp.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=cp.float32).astype(cp.float16) for _ in range(2))
    out = cp.empty_like(a)
    return 2 * n**3 / sustained(lambda i: cp.matmul(a, b, out=out), effort) * 1e6


def events(call: Callable[[int], Any], repeat: int = 30, warmup: int = 10) -> float:
    """Median microseconds of `call(i)` between two CUDA events."""
    for i in range(warmup):
        call(i)
    pairs = [(cp.cuda.Event(), cp.cuda.Event()) for _ in range(repeat)]
    for i, (begin, end) in enumerate(pairs):
        begin.record()
        call(warmup + i)
        end.record()
    cp.cuda.Device().synchronize()
    return float(statistics.median(cp.cuda.get_elapsed_time(begin, end) for begin, end in pairs)) * 1e3


def calls_for(call: Callable[[int], Any], least: int = 1) -> int:
    """How many calls a graph shall hold: as many as make its start count for nothing, 32 at most, but `least` in any case."""
    return max(least, min(32, math.ceil(_GRAPH_US / events(call, repeat=3, warmup=2))))


def graph(call: Callable[[int], Any], calls: int | None = None, repeat: int = 30, least: int = 1) -> float:
    """Median microseconds of one of `calls` calls captured in a graph and replayed: what a serving loop pays.

    A workload's `least` is the number of its layers: a replay then reads every one of them.
    """
    stream = cp.cuda.Stream(non_blocking=True)
    cp.cuda.Device().synchronize()
    with stream:
        calls = calls or calls_for(call, least)
        for i in range(calls):
            call(i)
        stream.begin_capture()
        for i in range(calls):
            call(i)
        captured = stream.end_capture()
        return replayed(lambda: captured.launch(stream), calls, repeat)


def replayed(launch: Callable[[], Any], calls: int, repeat: int = 30) -> float:
    """Median microseconds of one of the `calls` calls of a graph that `launch` replays on the current stream."""
    times = []
    for _ in range(repeat + 3):
        begin, end = cp.cuda.Event(), cp.cuda.Event()
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(cp.cuda.get_elapsed_time(begin, end) * 1e3 / calls)
    return float(statistics.median(times[3:]))


def sustained(call: Callable[[int], Any], effort: Effort) -> float:
    """Median microseconds after half a second of uninterrupted load: the power-limited figure."""
    chunk = max(1, min(20, int(1e5 / events(call, repeat=1, warmup=1))))
    begin, i = time.perf_counter(), 0
    while time.perf_counter() - begin < effort.seconds:
        for _ in range(chunk):
            call(i)
            i += 1
        cp.cuda.Device().synchronize()
    return events(call, repeat=effort.repeat, warmup=min(5, chunk))


def of(work: Workload, effort: Effort, **keywords: Any) -> float:
    """Microseconds of a workload's call with `keywords`: decode in a replayed graph that reads every layer, prefill sustained."""
    call = partial(work.call, **keywords)
    return graph(call, repeat=effort.repeat, least=work.layers) if work.row.decode else sustained(call, effort)


def host(call: Callable[[], Any], calls: int = 1000) -> float:
    """Microseconds of host time per call, `calls` in a row; the GPU must be faster than that."""
    for _ in range(50):
        call()
    cp.cuda.Device().synchronize()
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - begin) / calls * 1e6)
        cp.cuda.Device().synchronize()
    return statistics.median(times)


def give_back(gigabytes: int = 48) -> None:
    """Return unused memory to the device where more than this lies unused: the pool keeps pieces of sizes that do not come again."""
    pool = cp.get_default_memory_pool()
    if pool.free_bytes() > gigabytes << 30:
        pool.free_all_blocks()
