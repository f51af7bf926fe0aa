"""What compiling a kernel costs on one core, from template to cubin: python -m benchmarks.cold TARGET [HEAD_DIM...] [--all]

First a kernel of one line, to compare machines by; then those of 16-bit caches, with --all of every kind. No GPU is needed. NVRTC 13 keeps
what it compiled in the driver's cache, unless the process began with CUDA_CACHE_DISABLE=1.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from benchmarks.work_table import HEAD_DIMS
from pagedattn import nvrtc, render
from pagedattn.build import level
from pagedattn.spec import KV_DTYPES, KernelSpec

KINDS: tuple[dict[str, Any], ...] = ({"op": "decode"}, {"op": "decode", "splits": "cut"}, {"op": "prefill"}, {"op": "append"})
VARIANTS: tuple[dict[str, Any], ...] = (
    {"op": "decode", "fused": True},
    *({**kind, "general": True} for kind in (KINDS[0], {"op": "decode", "fused": True}, *KINDS[1:3])),
)


def main() -> None:
    if os.environ.get("CUDA_CACHE_DISABLE") != "1":
        raise SystemExit(
            "`CUDA_CACHE_DISABLE` must be 1 from the start, or kernels may come from the driver's cache: set it and run this again."
        )
    target, *head_dims = (x for x in sys.argv[1:] if x != "--all")
    everything = "--all" in sys.argv[1:]
    nvrtc.compile('extern "C" __global__ void warm() {}', "warm", target, {})  # loads NVRTC
    begin = time.perf_counter()
    nvrtc.compile('extern "C" __global__ void one_line(float* x) { x[threadIdx.x] += 1.f; }', "one_line", target, {})
    print(f"one_line {time.perf_counter() - begin:.3f}", flush=True)
    for kind in (*KINDS, *(VARIANTS if everything else ())):
        for kv_dtype in KV_DTYPES if everything else (None,):
            for head_dim in map(int, head_dims) if head_dims else HEAD_DIMS:
                spec = KernelSpec(head_dim=head_dim, kv_dtype=kv_dtype, arch=target, **kind)
                begin = time.perf_counter()
                nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers(), level(spec))
                print(f"{spec.name} {time.perf_counter() - begin:.3f}", flush=True)


if __name__ == "__main__":
    main()
