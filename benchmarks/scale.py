"""How cost grows with batch, context, head_dim, group, block_len and new tokens: one sweep each, for every stored type.

benchmarks.plots draws what it writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cupy as cp

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import HEAD_DIMS, Row, Workload, check

KV_DTYPES = (None, "int8", "int4")


class Point(NamedTuple):
    """One workload of a sweep; `x` is what the sweep varies."""

    x: int
    row: Row
    head_dim: int = 128
    block_len: int = 64


def _decode(batch: int, context: int, group: int = 4) -> Row:
    return Row(f"{batch} x {context}", (1,) * batch, (context,) * batch, 8 * group, 8)


def _prefill(tokens: int) -> Row:
    return Row(f"{tokens} new", (tokens,), (tokens,), 32, 8)


SWEEPS = {
    "batch": [Point(n, _decode(n, 4096)) for n in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)],
    "context": [Point(n, _decode(1, n)) for n in (128, 512, 2048, 8192, 32768, 131072, 524288, 1048576)],
    "head_dim": [Point(d, _decode(64, 4096), head_dim=d) for d in HEAD_DIMS],
    "group": [Point(g, _decode(64, 4096, g)) for g in (1, 2, 4, 8, 16, 32)],
    "block_len": [Point(b, _decode(64, 4096), block_len=b) for b in (16, 32, 64, 128, 256)],
    "new tokens": [Point(n, _prefill(n)) for n in (128, 512, 2048, 8192, 32768)],
}


def scale(results: dict[str, Any], effort: Effort) -> None:
    """Every sweep, as far as the GPU's memory goes."""
    for name, points in SWEEPS.items():
        print(f"\n{name:12}" + "".join(f"{kv or 'float16':>22}" for kv in KV_DTYPES))
        for point in (points[0], points[-1]) if effort.quick else points:
            try:
                found = [measured(point, kv, results["read_ceiling_tb_per_s"], effort) for kv in KV_DTYPES]
            except cp.cuda.memory.OutOfMemoryError:
                cp.get_default_memory_pool().free_all_blocks()
                print(f"{point.x:12}  does not fit into this GPU's memory", flush=True)
                continue
            results.setdefault("sweeps", {}).setdefault(name, []).extend(found)
            cells = [
                f"{f['us']:10.1f} us " + (f"({f['floor_us'] / f['us']:.2f})" if "floor_us" in f else f"{f['tflops']:4.0f} T") for f in found
            ]
            print(f"{point.x:12}" + "".join(f"{c:>22}" for c in cells), flush=True)


def measured(point: Point, kv_dtype: str | None, ceiling: float, effort: Effort) -> dict[str, Any]:
    """Decode: microseconds in a replayed graph and the floor that the read ceiling (TB/s) sets. Prefill: sustained TFLOP/s."""
    work = Workload(point.row, point.head_dim, point.block_len, kv_dtype=kv_dtype)
    check(work, kv_dtype or "float16")
    figures: dict[str, Any] = {"x": point.x, "kv": kv_dtype or "float16"}
    figures["us"] = measure.of(work, effort)
    if point.row.decode:
        figures["floor_us"] = work.kv_bytes / ceiling / 1e6
    else:
        figures["tflops"] = point.row.flops(point.head_dim) / figures["us"] / 1e6
    del work
    measure.give_back()
    return figures
