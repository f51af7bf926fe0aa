"""Decode: whether it matters where in the pool a sequence's blocks lie, and how many layers lie in a block."""

from __future__ import annotations

from typing import Any

import cupy as cp

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import DECODE, ORDERS, Row, Workload, check, name_of

Variant = tuple[int, int, str, str | None]  # as name_of takes it

ROW = "D3"
LAYERS = (None, 32)  # None: as few as L2 does not hold
KV_DTYPES = (None, "int8", "int4")


def placement(results: dict[str, Any], effort: Effort) -> None:
    """Microseconds in a replayed graph that reads every layer once, for each order of the blocks."""
    row = next(row for row in DECODE if row.name == ROW)
    print(f"\n{ROW}, us in a replayed graph{'':18}" + "".join(f"{order:>14}" for order in ORDERS))
    for kv_dtype in KV_DTYPES[:1] if effort.quick else KV_DTYPES:
        variant = (128, 64, "float16", kv_dtype)
        for layers in LAYERS[:1] if effort.quick else LAYERS:
            try:
                found = [measured(row, variant, layers, order, effort) for order in ORDERS]
            except cp.cuda.memory.OutOfMemoryError:
                measure.give_back()
                print(f"  {name_of(*variant):24}{layers or 1:3} layers   do not fit into this GPU's memory", flush=True)
                continue
            results.setdefault("placement", []).extend(found)
            print(f"  {name_of(*variant):24}{found[0]['layers']:3} layers   " + "".join(f"{f['us']:14.1f}" for f in found), flush=True)


def measured(row: Row, variant: Variant, layers: int | None, order: str, effort: Effort) -> dict[str, Any]:
    """Microseconds of one layer."""
    work = Workload(row, *variant, layers=layers, order=order)
    check(work, f"{name_of(*variant)}, blocks {order}")
    us = measure.of(work, effort)
    figures = {"row": row.name, "variant": name_of(*variant), "layers": work.layers, "order": order, "us": us}
    del work
    measure.give_back()
    return figures
