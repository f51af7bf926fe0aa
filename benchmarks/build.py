"""What compiling a kernel costs, and finding it in the store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

import cupy as cp

from benchmarks import cold
from benchmarks.measure import Effort
from pagedattn import nvrtc

_HITS = 4  # of which the quickest counts


def build(results: dict[str, Any], effort: Effort) -> None:
    """Cold compilation on one core (benchmarks.cold), and reading a kernel from the store."""
    target = f"sm_{cp.cuda.Device().compute_capability}"
    print(f"\nbuild for {target}, NVRTC {'.'.join(map(str, nvrtc.version()))}")
    command = [sys.executable, "-m", "benchmarks.cold", target, *(["128", "--rounds", "1"] if effort.quick else [])]
    alone = {**os.environ, "CUDA_CACHE_DISABLE": "1"}  # in a process of its own: in this one it would come too late
    kinds = {spec.name: spec for spec in cold.specs(target)}
    figures = results["compile"] = []
    for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=alone).stdout.splitlines():
        name, least, most = line.split()
        figure = {"kernel": name, "least_s": float(least), "most_s": float(most)}
        if name != cold.ONE_LINE:
            spec = kinds[name]
            figure |= {key: getattr(spec, key) for key in ("op", "splits", "head_dim", "kv_dtype", "general")}
        figures.append(figure)
        print(f"  {name:56}{float(least):6.2f} s, at most {float(most):.2f}", flush=True)
    with tempfile.TemporaryDirectory() as home:
        code = (
            "import time\nfrom cupy.cuda import nvrtc\nfrom pagedattn.build import build\nfrom pagedattn.spec import KernelSpec\n"
            f"build(KernelSpec(op='append', arch='{target}'))\nspec = KernelSpec(op='decode', arch='{target}')\n"
            "t = time.perf_counter()\nkernel = build(spec)\nprint((time.perf_counter() - t) * 1e3, kernel.origin)"
        )
        runs = [
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PAGEDATTN_HOME": home}
            ).stdout.split()
            for _ in range(1 + _HITS)
        ]
    assert [origin for _, origin in runs[1:]] == ["store"] * _HITS, runs
    results["store_hit_ms"] = min(float(milliseconds) for milliseconds, _ in runs[1:])
    print(f"  from the store: {results['store_hit_ms']:.1f} ms")
