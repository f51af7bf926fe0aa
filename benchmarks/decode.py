"""Decode: the work table for every variant, and what batch-invariant cuts cost."""

from __future__ import annotations

from typing import Any

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import DECODE, PLAIN, VARIANTS, Workload, check, name_of

CUTS = (256, 512, 1024)  # keys a cut
CUT_ROWS = ("D1", "D3", "D6", "D7")
CUT_KV = (None, "int8", "int4")


def decode(results: dict[str, Any], effort: Effort) -> None:
    """Every decode row for every variant, as microseconds and as a share of the read ceiling of this run."""
    ceiling = results["read_ceiling_tb_per_s"] * 1e12
    print("\ndecode: us between events | us in a replayed graph (share of the read ceiling)")
    print(f"{'':24}" + "".join(f"{row.name:>23}" for row in DECODE))
    for variant in [PLAIN, (128, 64, "float16", "int4"), PLAIN] if effort.quick else VARIANTS:
        cells = []
        for row in DECODE:
            work = Workload(row, *variant)
            check(work, name_of(*variant))
            between = measure.events(work.call, repeat=effort.repeat)
            replayed = measure.of(work, effort)
            share = work.kv_bytes / replayed * 1e6 / ceiling
            figures = {"row": row.name, "variant": name_of(*variant), "events_us": between, "graph_us": replayed, "share": share}
            results.setdefault("decode", []).append(figures)
            cells.append(f"{between:8.1f} |{replayed:7.1f} ({share:.2f})")
        print(f"{name_of(*variant):24}" + "".join(f"{c:>23}" for c in cells), flush=True)
        measure.give_back()


def splits(results: dict[str, Any], effort: Effort) -> None:
    """num_splits="fixed:N", whose results do not depend on what else is in the batch, beside the balanced list of tiles."""
    print(f"\ndecode, us in a replayed graph: balanced | fixed:{' | fixed:'.join(map(str, CUTS))} (to balanced)")
    for kv_dtype in CUT_KV[:1] if effort.quick else CUT_KV:
        variant = (128, 64, "float16", kv_dtype)
        for row in (row for row in DECODE if row.name in CUT_ROWS):
            work = Workload(row, *variant)
            check(work, name_of(*variant))
            balanced = measure.of(work, effort)
            taken = []
            for keys in CUTS:
                cut = f"fixed:{keys}"
                check(work, f"{name_of(*variant)} {cut}", num_splits=cut)
                taken.append(measure.of(work, effort, num_splits=cut))
            balanced = min(balanced, measure.of(work, effort))  # what comes first may find it cold
            for keys, us in zip(CUTS, taken, strict=True):
                figures = {"row": row.name, "variant": name_of(*variant), "keys": keys, "us": us, "balanced_us": balanced}
                results.setdefault("splits", []).append(figures)
            cells = [f"{balanced:8.1f}", *(f"{us:8.1f} ({us / balanced:.2f})" for us in taken)]
            print(f"  {name_of(*variant):24}{row.name:4}" + " |".join(cells), flush=True)
