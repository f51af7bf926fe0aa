"""The benchmark: a table of every figure, each kernel checked before it is timed.

python -m benchmarks [--json FILE] [--only build,host,decode,fused,prefill]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cupy as cp
import numpy as np

import pagedattn as pa
from benchmarks import measure
from benchmarks.fused import fused
from benchmarks.work_table import DECODE, PREFILL, Workload
from pagedattn import nvrtc, render
from pagedattn.spec import KernelSpec

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}
HEAD_DIMS = (64, 96, 128, 192, 256)


# (head_dim, block_len, dtype, kv_dtype); the first row stands again at the end: the spread of a run
VARIANTS = [
    (128, 64, "float16", None),
    *((d, 64, "float16", None) for d in HEAD_DIMS if d != 128),
    (128, 16, "float16", None),
    (128, 64, "bfloat16", None),
    *((d, 64, "float16", kv) for kv in ("int8", "int4") for d in (128, 64, 256)),
    (128, 16, "float16", "int4"),
    (128, 64, "float16", None),
]


def name_of(head_dim: int, block_len: int, dtype: str, kv_dtype: str | None) -> str:
    return f"d{head_dim} b{block_len} {dtype}{' ' + kv_dtype if kv_dtype else ''}"


def decode(results: dict[str, Any]) -> None:
    """Every decode row for every variant, as microseconds and as a share of the read ceiling of this run."""
    ceiling = measure.read_ceiling()
    results["read_ceiling_tb_per_s"] = ceiling / 1e12
    print(f"\nread ceiling {ceiling / 1e12:.3f} TB/s\ndecode: us between events | us in a replayed graph (share of the ceiling)")
    print(f"{'':24}" + "".join(f"{row.name:>23}" for row in DECODE))
    for variant in VARIANTS:
        cells = []
        for row in DECODE:
            work = Workload(row, *variant)
            check(work, variant)
            between, replayed = measure.events(work.call, repeat=40), measure.graph(work.call)
            share = work.kv_bytes / replayed * 1e6 / ceiling
            figures = {"row": row.name, "variant": name_of(*variant), "events_us": between, "graph_us": replayed, "share": share}
            results.setdefault("decode", []).append(figures)
            cells.append(f"{between:8.1f} |{replayed:7.1f} ({share:.2f})")
        print(f"{name_of(*variant):24}" + "".join(f"{c:>23}" for c in cells), flush=True)


def prefill(results: dict[str, Any]) -> None:
    """Every prefill row for every variant, sustained TFLOP/s."""
    print("\nprefill, TFLOP/s sustained")
    print(f"{'':24}" + "".join(f"{row.name:>9}" for row in PREFILL))
    for variant in VARIANTS:
        cells = []
        for row in PREFILL:
            work = Workload(row, *variant)
            check(work, variant)
            taken = measure.sustained(work.call)
            rate = row.flops(variant[0]) / taken / 1e6
            results.setdefault("prefill", []).append({"row": row.name, "variant": name_of(*variant), "us": taken, "tflops": rate})
            cells.append(f"{rate:9.1f}")
        print(f"{name_of(*variant):24}" + "".join(cells), flush=True)


def host(results: dict[str, Any]) -> None:
    """What one decode call costs the host, and `import pagedattn`."""
    cache = pa.KVCache(64, num_kv_heads=8, head_dim=128, device="cuda")
    sequences = [cache.new_sequence() for _ in range(8)]
    batch = cache.extend(sequences, [1] * 8)
    q = cp.ones((8, 32, 128), cp.float16)
    k = v = cp.ones((8, 8, 128), cp.float16)
    out = cp.empty_like(q)
    figures = {
        "paged_attention, out given": measure.host(lambda: pa.paged_attention(q, cache, batch, out=out)),
        "paged_attention": measure.host(lambda: pa.paged_attention(q, cache, batch)),
        "append": measure.host(lambda: pa.append(k, v, cache, batch)),
        "append and paged_attention": measure.host(lambda: pa.paged_attention(q, cache, batch, k=k, v=v, out=out)),
    }

    def step() -> None:
        cache.extend(sequences, [1] * 8)
        for s in sequences:
            cache.truncate(s, 1)

    figures["extend (8 sequences, with their truncation)"] = measure.host(step, 200)
    room = pa.Batch(np.zeros((8, 8), np.int32), [1] * 8, [512] * 8, unshared=True, device="cuda")
    with cp.cuda.Stream(non_blocking=True) as stream:

        def decode_step() -> None:
            for _ in range(32):  # a model's layers
                pa.paged_attention(q, cache, room, k=k, v=v, out=out)

        room.assign(batch)
        decode_step()
        stream.begin_capture()
        decode_step()
        captured = stream.end_capture()
        figures["32 layers of append and paged_attention"] = measure.host(decode_step, 10)
        figures["32 layers, captured: Batch.assign"] = measure.host(lambda: room.assign(batch))
        figures["32 layers, captured: the graph's launch"] = measure.host(lambda: captured.launch(stream), 20)
    begin = [time.perf_counter()]
    for _ in range(5):
        subprocess.run([sys.executable, "-c", "import pagedattn"], check=True)
        begin.append(time.perf_counter())
    bare = [time.perf_counter()]
    for _ in range(5):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
        bare.append(time.perf_counter())
    loading = (min(np.diff(begin)) - min(np.diff(bare))) * 1e3
    results["host_us"], results["import_ms"] = figures, loading
    print("\nhost cost, us a call")
    for name, value in figures.items():
        print(f"  {name:48}{value:8.1f}")
    print(f"  import pagedattn, ms{loading:37.0f}")


def build(results: dict[str, Any]) -> None:
    """Cold compilation on one core (render to cubin), and reading a kernel from the store.

    NVRTC 13 keeps what it compiled in the driver's cache: CUDA_CACHE_DISABLE=1 (set below, before NVRTC is loaded) makes it compile.
    """
    target = cp.cuda.Device().compute_capability
    print(f"\nbuild for sm_{target}, NVRTC {'.'.join(map(str, nvrtc.version()))}")
    nvrtc.compile('extern "C" __global__ void warm() {}', "warm", f"sm_{target}", {})  # loads NVRTC
    for op in ("decode", "prefill", "append"):
        for head_dim in HEAD_DIMS:
            spec = KernelSpec(op=op, head_dim=head_dim, arch=f"sm_{target}")
            begin = time.perf_counter()
            nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers())
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


def check(work: Workload, variant: tuple[int, int, str, str | None]) -> None:
    """No figures on red."""
    error, limit = work.error(), TOLERANCE[variant[2]]
    if not error < limit:
        raise SystemExit(f"{work.row.name} {name_of(*variant)}: relative error {error:.2e} against float64, more than {limit:.0e}")


def main() -> None:
    sections = {"build": build, "host": host, "decode": decode, "fused": fused, "prefill": prefill}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--only", default=",".join(sections), help=f"sections, separated by commas: {', '.join(sections)}")
    arguments = parser.parse_args()
    os.environ["CUDA_CACHE_DISABLE"] = "1"
    properties = cp.cuda.runtime.getDeviceProperties(cp.cuda.Device().id)
    results: dict[str, Any] = {
        "device": properties["name"].decode(),
        "pagedattn": pa.__version__,
        "cupy": cp.__version__,
        "nvrtc": ".".join(map(str, nvrtc.version())),
    }
    print(f"{results['device']}, CuPy {results['cupy']}, NVRTC {results['nvrtc']}")
    for name in arguments.only.split(","):
        sections[name](results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
