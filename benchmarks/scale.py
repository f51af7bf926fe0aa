"""How cost grows with batch, context, head_dim, group and block_len: one sweep each, for every stored type.

python -m benchmarks.scale [--json FILE] [--only batch,context,...]; benchmarks.plots draws what it wrote.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import cupy as cp

from benchmarks import measure
from benchmarks.work_table import Row, Workload

KV_DTYPES = (None, "int8", "int4")
ERROR = 1e-3  # relative, against float64: no figures on red


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
    "head_dim": [Point(d, _decode(64, 4096), head_dim=d) for d in (64, 96, 128, 192, 256)],
    "group": [Point(g, _decode(64, 4096, g)) for g in (1, 2, 4, 8, 16, 32)],
    "block_len": [Point(b, _decode(64, 4096), block_len=b) for b in (16, 32, 64, 128, 256)],
    "new tokens": [Point(n, _prefill(n)) for n in (128, 512, 2048, 8192, 32768)],
}


def measured(point: Point, kv_dtype: str | None, ceiling: float) -> dict[str, Any]:
    """Decode: microseconds in a replayed graph and the floor that the read ceiling sets. Prefill: sustained TFLOP/s."""
    work = Workload(point.row, point.head_dim, point.block_len, kv_dtype=kv_dtype)
    error = work.error()
    if not error < ERROR:
        raise SystemExit(f"{point.row.name}, {kv_dtype}: relative error {error:.2e} against float64, more than {ERROR:.0e}")
    figures: dict[str, Any] = {"x": point.x, "kv": kv_dtype or "float16"}
    if point.row.decode:
        figures["us"] = measure.graph(work.call, calls=8, repeat=10)
        figures["floor_us"] = work.kv_bytes / ceiling * 1e6
    else:
        figures["us"] = measure.sustained(work.call, 0.2)
        figures["tflops"] = point.row.flops(point.head_dim) / figures["us"] / 1e6
    del work
    cp.get_default_memory_pool().free_all_blocks()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--only", default=",".join(SWEEPS), help=f"sweeps, separated by commas: {', '.join(SWEEPS)}")
    arguments = parser.parse_args()
    ceiling = measure.read_ceiling()
    device = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)["name"].decode()
    results: dict[str, Any] = {"device": device, "read_ceiling_tb_per_s": ceiling / 1e12, "sweeps": {}}
    print(f"{device}, read ceiling {ceiling / 1e12:.3f} TB/s")
    for name in arguments.only.split(","):
        print(f"\n{name:12}" + "".join(f"{kv or 'float16':>22}" for kv in KV_DTYPES))
        for point in SWEEPS[name]:
            found = [measured(point, kv, ceiling) for kv in KV_DTYPES]
            results["sweeps"].setdefault(name, []).extend(found)
            cells = [
                f"{f['us']:10.1f} us " + (f"({f['floor_us'] / f['us']:.2f})" if "floor_us" in f else f"{f['tflops']:4.0f} T") for f in found
            ]
            print(f"{point.x:12}" + "".join(f"{c:>22}" for c in cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
