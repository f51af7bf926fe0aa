"""What compiling a kernel costs, and finding it in the store."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import cupy as cp

from benchmarks.measure import Effort
from benchmarks.work_table import HEAD_DIMS
from pagedattn import nvrtc, render
from pagedattn.build import level
from pagedattn.spec import KernelSpec


def build(results: dict[str, Any], effort: Effort) -> None:
    """Cold compilation on one core (render to cubin), and reading a kernel from the store.

    NVRTC 13 keeps what it compiled in the driver's cache; CUDA_CACHE_DISABLE=1, which __main__ sets before NVRTC is loaded, compiles again.
    """
    target = cp.cuda.Device().compute_capability
    print(f"\nbuild for sm_{target}, NVRTC {'.'.join(map(str, nvrtc.version()))}")
    nvrtc.compile('extern "C" __global__ void warm() {}', "warm", f"sm_{target}", {})  # loads NVRTC
    for op in ("decode", "prefill", "append"):
        for head_dim in (128,) if effort.quick else HEAD_DIMS:
            spec = KernelSpec(op=op, head_dim=head_dim, arch=f"sm_{target}")
            begin = time.perf_counter()
            nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers(), level(spec))
            cold = time.perf_counter() - begin
            results.setdefault("compile_s", {})[spec.name] = cold
            print(f"  {spec.name:56}{cold:6.2f} s", flush=True)
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
