"""Prefill: the work table for every variant."""

from __future__ import annotations

from typing import Any

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import PLAIN, PREFILL, VARIANTS, Workload, check, name_of


def prefill(results: dict[str, Any], effort: Effort) -> None:
    """Every prefill row for every variant, sustained TFLOP/s."""
    print("\nprefill, TFLOP/s sustained (share of the matmul ceiling)")
    print(f"{'':24}" + "".join(f"{row.name:>15}" for row in PREFILL))
    for variant in [PLAIN, (128, 64, "float16", "int4"), PLAIN] if effort.quick else VARIANTS:
        cells = []
        for row in PREFILL:
            work = Workload(row, *variant)
            check(work, name_of(*variant))
            taken = measure.of(work, effort)
            rate = row.flops(variant[0]) / taken / 1e6
            share = rate / results["matmul_tflops"]
            figures = {"row": row.name, "variant": name_of(*variant), "us": taken, "tflops": rate, "share": share}
            results.setdefault("prefill", []).append(figures)
            cells.append(f"{rate:8.1f} ({share:.2f})")
        print(f"{name_of(*variant):24}" + "".join(cells), flush=True)
