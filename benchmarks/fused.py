"""A decode step that brings new rows: append's launch and decode's, against one launch that writes and attends."""

from __future__ import annotations

from typing import Any

import cupy as cp
import numpy as np

import pagedattn as pa
from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import DECODE, Row, Workload
from pagedattn import dtypes


def _row(size: int, length: int) -> Row:
    return Row(f"{size} x {length}", (1,) * size, (length,) * size, 32, 8)


ROWS = (
    *(row for row in DECODE if row.name in ("D1", "D3", "D4", "D6")),
    *(_row(size, 8192) for size in (1, 4, 16, 64)),
    *(_row(size, 512) for size in (1, 16, 64, 256)),
    Row("uneven", (1,) * 151, (32768, *(16,) * 150), 32, 8),
)


def fused(results: dict[str, Any], effort: Effort) -> None:
    """Every row for every stored type, microseconds of a step in a replayed graph; the results are compared bit for bit first."""
    print("\ndecode with new rows, us in a replayed graph: decode | append and decode | fused")
    print(f"{'':10}" + "".join(f"{row.name:>26}" for row in ROWS))
    for kv_dtype in (None, "int8", "int4"):
        cells = []
        for row in ROWS:
            work = Workload(row, kv_dtype=kv_dtype)
            bare, two, one = (measure.graph(call, repeat=effort.repeat) for call in (work.call, *_steps(work)))
            figures = {"row": row.name, "kv_dtype": kv_dtype or "float16", "decode_us": bare, "two_us": two, "one_us": one}
            results.setdefault("fused", []).append(figures)
            cells.append(f"{bare:9.1f} |{two:6.1f} |{one:6.1f}")
        print(f"{kv_dtype or 'float16':10}" + "".join(f"{c:>26}" for c in cells), flush=True)


def _steps(work: Workload) -> tuple[Any, Any]:
    """The step as two launches and as one, after both were found to do the same."""
    layout, tokens = work.cache.layout, len(work.row.seqlens_q)
    rng, element = cp.random.default_rng(2), dtypes.of(layout.dtype).numpy
    k, v = (rng.standard_normal((tokens, layout.num_kv_heads, layout.head_dim), dtype=cp.float32).astype(element) for _ in "kv")
    batch = work.batch
    batches = [pa.Batch(batch.block_table, batch.seqlens_q, batch.seqlens_k, disjoint=True, device=work.cache.device) for _ in range(2)]
    batches[0].unshared = False  # as if two sequences had a last block in common: append's launch comes first then

    def step(i: int, which: int) -> None:
        pa.paged_attention(work.q, work.cache, batches[which], k=k, v=v, layer=i % work.layers, out=work.out)

    found = []
    for which in (0, 1):
        pa.append(cp.zeros_like(k), cp.zeros_like(v), work.cache, batches[which])
        step(0, which)
        found.append([cp.asnumpy(x.view(cp.uint16)) for x in (work.out, *pa.gather(work.cache, batches[which]))])
    if not all(np.array_equal(a, b) for a, b in zip(*found, strict=True)):
        raise SystemExit(f"{work.row.name}, {layout.kv_dtype}: one launch and two differ")
    return lambda i=0: step(i, 0), lambda i=0: step(i, 1)
