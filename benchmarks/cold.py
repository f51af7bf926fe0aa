"""What compiling a kernel costs on one core, from template to cubin: python -m benchmarks.cold TARGET [HEAD_DIM...] [--all] [--rounds N]

First a kernel of one line, to compare machines by; then those of 16-bit caches and, of head_dim 128, those of codes and the general ones,
with --all every kind of every head_dim. All are compiled N times, one after the other and then again: a core of a shared machine is slow
for seconds on end, whoever has the rest of it. A line has a name, the least of its seconds and the most. No GPU is needed. NVRTC 13 keeps
what it compiled in the driver's cache, unless the process began with CUDA_CACHE_DISABLE=1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from benchmarks.work_table import HEAD_DIMS
from pagedattn import nvrtc, render
from pagedattn.build import level
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.spec import KV_DTYPES, KernelSpec

ONE_LINE = "one_line"
ROUNDS = 3
KINDS: tuple[dict[str, Any], ...] = ({"op": "decode"}, {"op": "decode", "splits": "cut"}, {"op": "prefill"}, {"op": "append"})
GENERAL: tuple[dict[str, Any], ...] = tuple({**kind, "general": True} for kind in KINDS[:3])
FUSED: tuple[dict[str, Any], ...] = tuple({"op": "decode", "fused": True, "general": general} for general in (False, True))


def specs(target: str, head_dims: tuple[int, ...] = HEAD_DIMS, everything: bool = False) -> list[KernelSpec]:
    """What is compiled, in this order.

    >>> [spec.head_dim for spec in specs("sm_90") if spec.op == "prefill"]
    [64, 96, 128, 192, 256, 128, 128, 128]
    >>> len(specs("sm_90", (64,))), len(specs("sm_90", everything=True))
    (4, 135)
    """
    if everything:
        found = [(kind, kv, d) for kind in (*KINDS, *FUSED, *GENERAL) for kv in KV_DTYPES for d in head_dims]
    else:
        found = [(kind, None, d) for kind in KINDS for d in head_dims]
        if 128 in head_dims:
            found += [(kind, kv, 128) for kind in KINDS[:3] for kv in ("int8", "int4")] + [(kind, None, 128) for kind in GENERAL]
    return [KernelSpec(head_dim=d, kv_dtype=kv, arch=target, **kind) for kind, kv, d in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="TARGET", help="such as sm_90")
    parser.add_argument("head_dims", metavar="HEAD_DIM", type=int, nargs="*", default=HEAD_DIMS)
    parser.add_argument("--all", action="store_true", help="every kind, 16 bits, int8 and int4")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each is compiled; %(default)s")
    arguments = parser.parse_args()
    if os.environ.get("CUDA_CACHE_DISABLE") != "1":
        raise SystemExit(
            "`CUDA_CACHE_DISABLE` must be 1 from the start, or kernels may come from the driver's cache: set it and run this again."
        )
    if arguments.rounds < 1:
        parser.error(f"`--rounds` must be 1 or more; got {arguments.rounds}")
    target = arguments.target
    try:
        wanted = specs(target, tuple(arguments.head_dims), arguments.all)
        nvrtc.compile('extern "C" __global__ void warm() {}', "warm", target, {})  # loads NVRTC
    except (ArgumentError, UnsupportedError) as error:
        parser.error(str(error))
    seconds: dict[str, list[float]] = {}
    for number in range(1, arguments.rounds + 1):
        print(f"round {number} of {arguments.rounds}: {1 + len(wanted)} kernels", file=sys.stderr, flush=True)
        for spec in (None, *wanted):
            begin = time.perf_counter()
            if spec is None:
                nvrtc.compile('extern "C" __global__ void one_line(float* x) { x[threadIdx.x] += 1.f; }', ONE_LINE, target, {})
            else:
                nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers(), level(spec))
            name = ONE_LINE if spec is None else spec.name
            found = seconds.setdefault(name, [])
            found.append(time.perf_counter() - begin)
            if number == arguments.rounds:
                print(f"{name} {min(found):.3f} {max(found):.3f}", flush=True)


if __name__ == "__main__":
    main()
