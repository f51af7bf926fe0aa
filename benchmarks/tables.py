"""The README's tables from a result of `python -m benchmarks --json FILE`, or of context_parallel's: python -m benchmarks.tables FILE"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VARIANTS = {
    "d128 b64 float16": "16 bits, head_dim 128",
    "d128 b64 bfloat16": "bfloat16",
    "d128 b16 float16": "16 bits, blocks of 16",
    "d128 b64 float16 int8": "int8",
    "d128 b64 float16 int4": "int4",
    "d64 b64 float16": "16 bits, head_dim 64",
    "d256 b64 float16": "16 bits, head_dim 256",
}


def decode_table(results: dict[str, Any]) -> str:
    """Microseconds in a replayed graph, and the share of the read ceiling of the run."""
    return _table("decode, us (share of the read ceiling)", results["decode"], lambda x: f"{x['graph_us']:.0f} ({x['share']:.2f})")


def prefill_table(results: dict[str, Any]) -> str:
    """Sustained TFLOP/s."""
    return _table("prefill, TFLOP/s", results["prefill"], lambda x: f"{x['tflops']:.0f}")


def context_parallel_table(results: dict[str, Any]) -> str:
    """Microseconds of a decode step by one GPU and by several, from `python -m benchmarks.context_parallel --json FILE`."""
    ranks = results["ranks"]
    columns = {
        "one GPU": "one GPU",
        f"{ranks} GPUs: kernel": "kernel of a rank",
        "step, `all_merge`": "step, all_merge",
        "step, `AllMerge`": "step, AllMerge",
        "the same as a graph": "step, captured",
    }
    lines = [f"| {results['tokens']:,} keys, us | gathered by | {' | '.join(columns)} | |", "|---" * (len(columns) + 3) + "|"]
    for run in results["runs"]:
        us = run["us"]
        by = {"torch": "torch.distributed", "cupy": "CuPy's NCCL"}[run["backend"]]
        cells = " | ".join(f"{us[name]:.0f}" for name in columns.values())
        lines.append(f"| {run['kv_dtype']} | {by} | {cells} | {us['one GPU'] / us['step, captured']:.2f}x |")
    return "\n".join(lines)


def host_range(microseconds: Sequence[float]) -> str:
    """The smallest and the largest of some times."""
    return f"{min(microseconds):.0f} to {max(microseconds):.0f} us"


def _table(title: str, figures: list[dict[str, Any]], cell: Any) -> str:
    rows = list(dict.fromkeys(x["row"] for x in figures))
    found = {(x["variant"], x["row"]): x for x in figures}
    lines = [f"| {title} | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for variant, name in VARIANTS.items():
        lines.append(f"| {name} | {' | '.join(cell(found[variant, row]) for row in rows)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    loaded = json.loads(Path(sys.argv[1]).read_text())
    print(*([context_parallel_table(loaded)] if "ranks" in loaded else [decode_table(loaded), prefill_table(loaded)]), sep="\n\n")
