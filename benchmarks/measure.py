"""How time and bandwidth are measured: CUDA events and graph replays, medians, data beyond L2, the read ceiling in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cupy as cp
import numpy as np

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


def read_ceiling(gigabytes: int = 4) -> float:
    """Bytes per second that 16-byte loads read from memory that L2 does not hold."""
    data = cp.random.default_rng(0).integers(0, 255, gigabytes << 30, dtype=cp.uint8)
    out = cp.zeros(1, cp.uint32)
    sms = cp.cuda.Device().attributes["MultiProcessorCount"]
    microseconds = events(lambda i: _READ((8 * sms,), (512,), (data, np.int64(data.nbytes // 16), out)), repeat=15, warmup=3)
    return float(data.nbytes / microseconds * 1e6)


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
    return statistics.median(cp.cuda.get_elapsed_time(begin, end) for begin, end in pairs) * 1e3


def graph(call: Callable[[int], Any], calls: int = 32, repeat: int = 30) -> float:
    """Median microseconds of one of `calls` calls captured in a graph and replayed: what a serving loop pays."""
    stream = cp.cuda.Stream(non_blocking=True)
    with stream:
        for i in range(calls):
            call(i)
        stream.begin_capture()
        for i in range(calls):
            call(i)
        captured = stream.end_capture()
        times = []
        for _ in range(repeat + 3):
            begin, end = cp.cuda.Event(), cp.cuda.Event()
            begin.record(stream)
            captured.launch(stream)
            end.record(stream)
            end.synchronize()
            times.append(cp.cuda.get_elapsed_time(begin, end) * 1e3 / calls)
    return statistics.median(times[3:])


def sustained(call: Callable[[int], Any], seconds: float = 0.5) -> float:
    """Median microseconds after `seconds` of uninterrupted load: the power-limited figure."""
    begin, i = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for _ in range(20):
            call(i)
            i += 1
        cp.cuda.Device().synchronize()
    return events(call, repeat=40, warmup=5)


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
