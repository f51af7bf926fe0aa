"""The benchmark: a table of every figure, each kernel checked before it is timed.

python -m benchmarks [--json FILE] [--only decode,prefill,...] [--quick]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cupy as cp

import pagedattn as pa
from benchmarks import build, comparison, decode, fused, host, machine, measure, placement, prefill, scale, scores, summary
from benchmarks.measure import Effort
from benchmarks.work_table import HEAD_DIMS

SECTIONS = {
    "build": build.build,
    "host": host.host,
    "decode": decode.decode,
    "fused": fused.fused,
    "splits": decode.splits,
    "placement": placement.placement,
    "prefill": prefill.prefill,
    "scores": scores.scores,
    "peers": comparison.peers,
    "scale": scale.scale,
}


def ceilings(results: dict[str, Any], effort: Effort) -> None:
    """What this device reads and multiplies at most, in this run."""
    results["read_ceiling_tb_per_s"] = measure.read_ceiling() / 1e12
    print(f"\nread ceiling {results['read_ceiling_tb_per_s']:.3f} TB/s (16-byte loads)", flush=True)
    results["matmul_tflops"] = measure.matmul_ceiling(effort) / 1e12
    print(f"float16 matmul {results['matmul_tflops']:.0f} TFLOP/s sustained (cuBLAS, 8192^3)", flush=True)


def compiled() -> None:
    """Every kernel that is going to be measured, into the store, by all cores at once."""
    target = f"sm_{cp.cuda.Device().compute_capability}"
    ops = ["append", "gather", "decode", "prefill"]
    for dtype, head_dims, kv_dtypes in (("float16", HEAD_DIMS, [None, "int8", "int4"]), ("bfloat16", (128,), [None])):
        report = pa.precompile([target], [dtype], head_dims, ops, kv_dtypes=kv_dtypes, progress=False)
        assert not report.failed, report.failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--only", default=",".join(SECTIONS), help=f"sections, separated by commas: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="try every part, in a fraction of the time; no figures to quote")
    parser.add_argument("--commit", help="what is measured, where the source tree came without its history")
    arguments = parser.parse_args()
    names, effort = arguments.only.split(","), Effort(arguments.quick)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"`--only` must name sections of: {', '.join(SECTIONS)}; got {', '.join(unknown)}")
    try:
        cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise SystemExit(f"the benchmark needs a GPU and its driver; CUDA says: {error}") from None
    results: dict[str, Any] = {**machine.facts(arguments.commit), "quick": effort.quick, "seconds": {}, "state": {}}
    print(f"{results['device']}, CuPy {results['cupy']}, NVRTC {results['nvrtc']}, commit {results['commit']}", flush=True)

    def timed(name: str, work: Any, *given: Any) -> None:
        begin = time.perf_counter()
        work(*given)
        results["seconds"][name] = round(time.perf_counter() - begin, 1)
        results["state"][f"after {name}"] = machine.state(cp.cuda.Device().id)

    timed("precompile", compiled)
    if {"decode", "prefill", "peers", "scale"} & set(names):
        timed("ceilings", ceilings, results, effort)
    for name in names:
        timed(name, SECTIONS[name], results, effort)
        cp.get_default_memory_pool().free_all_blocks()
        if arguments.json:  # after each part: what is measured is kept, whatever comes
            results["summary"] = summary.of(results)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + summary.table(summary.of(results)))
    print("\nseconds: " + ", ".join(f"{name} {taken}" for name, taken in results["seconds"].items()))


if __name__ == "__main__":
    main()
