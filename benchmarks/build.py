"""What compiling a kernel costs, and finding it in the store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from typing import Any

import cupy as cp

from benchmarks.measure import Effort
from pagedattn import nvrtc


def build(results: dict[str, Any], effort: Effort) -> None:
    """Cold compilation on one core (benchmarks.cold), and reading a kernel from the store."""
    target = cp.cuda.Device().compute_capability
    print(f"\nbuild for sm_{target}, NVRTC {'.'.join(map(str, nvrtc.version()))}")
    command = [sys.executable, "-m", "benchmarks.cold", f"sm_{target}", *(["128"] if effort.quick else [])]
    alone = {**os.environ, "CUDA_CACHE_DISABLE": "1"}  # in a process of its own: in this one it would come too late
    for line in subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout.splitlines():
        name, seconds = line.split()
        results.setdefault("compile_s", {})[name] = float(seconds)
        print(f"  {name:56}{float(seconds):6.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as home:
        code = (
            "import time\nfrom cupy.cuda import nvrtc\nfrom pagedattn.build import build\nfrom pagedattn.spec import KernelSpec\n"
            f"build(KernelSpec(op='append', arch='sm_{target}'))\nspec = KernelSpec(op='decode', arch='sm_{target}')\n"
            "t = time.perf_counter()\nkernel = build(spec)\nprint((time.perf_counter() - t) * 1e3, kernel.origin)"
        )
        runs = [
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True, env={**os.environ, "PAGEDATTN_HOME": home}
            ).stdout
            for _ in range(3)
        ]
    milliseconds, origin = runs[-1].split()
    assert origin == "store", runs
    results["store_hit_ms"] = float(milliseconds)
    print(f"  from the store: {float(milliseconds):.1f} ms")
