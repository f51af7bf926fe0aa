"""What compiling a kernel costs on one core, from template to cubin: python -m benchmarks.cold TARGET [HEAD_DIM...]

No GPU is needed. NVRTC 13 keeps what it compiled in the driver's cache, unless the process began with CUDA_CACHE_DISABLE=1.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.work_table import HEAD_DIMS
from pagedattn import nvrtc, render
from pagedattn.build import level
from pagedattn.spec import KernelSpec


def main() -> None:
    if os.environ.get("CUDA_CACHE_DISABLE") != "1":
        raise SystemExit(
            "`CUDA_CACHE_DISABLE` must be 1 from the start, or kernels may come from the driver's cache: set it and run this again."
        )
    target, *head_dims = sys.argv[1:]
    nvrtc.compile('extern "C" __global__ void warm() {}', "warm", target, {})  # loads NVRTC
    for op, splits in (("decode", "flat"), ("decode", "cut"), ("prefill", None), ("append", None)):
        for head_dim in map(int, head_dims) if head_dims else HEAD_DIMS:
            spec = KernelSpec(op=op, head_dim=head_dim, arch=target, splits=splits)
            begin = time.perf_counter()
            nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers(), level(spec))
            print(f"{spec.name} {time.perf_counter() - begin:.3f}", flush=True)


if __name__ == "__main__":
    main()
