"""The README's tables from a result of `python -m benchmarks --json FILE`: python -m benchmarks.tables FILE"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
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
KV = {"d128 b64 float16": "16 bits", "d128 b64 float16 int8": "int8", "d128 b64 float16 int4": "int4"}


def decode_table(results: dict[str, Any]) -> str:
    """Microseconds in a replayed graph, and the share of the read ceiling of the run."""
    return _variants("decode, us (share of the read ceiling)", results["decode"], lambda x: f"{x['graph_us']:.0f} ({x['share']:.2f})")


def prefill_table(results: dict[str, Any]) -> str:
    """Sustained TFLOP/s."""
    return _variants("prefill, TFLOP/s", results["prefill"], lambda x: f"{x['tflops']:.0f}")


def splits_table(results: dict[str, Any]) -> str:
    """What batch-invariant cuts cost, as a multiple of the balanced list's time."""
    figures = results["splits"]
    rows = {(f["variant"], f["keys"]): f"{KV[f['variant']]}, fixed:{f['keys']}" for f in figures}
    return _table(
        "time to the balanced list's", rows, {((f["variant"], f["keys"]), f["row"]): f"{f['us'] / f['balanced_us']:.2f}" for f in figures}
    )


def peers_table(results: dict[str, Any], decode: bool) -> str:
    """Microseconds of decode, or TFLOP/s of prefill, of every peer that could do a row; ours, from the same minutes, first."""
    figures = [f for f in results["peers"] if f["row"].startswith("D") == decode and "us" in f]
    cells = {(f["peer"], _column(f)): f"{f['us']:.0f}" if decode else f"{f['tflops']:.0f}" for f in figures}
    title = "decode, us, 16 bits" if decode else "prefill, TFLOP/s, 16 bits"
    return _table(title, {f["peer"]: f["peer"] for f in figures}, cells)


def _column(figure: dict[str, Any]) -> str:
    return str(figure["row"]) + ("" if figure["head_dim"] == 128 else f", head_dim {figure['head_dim']}")


def _variants(title: str, figures: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    shown = {}  # a variant that was measured twice shows its last
    for f in figures:
        shown[f["variant"], f["row"]] = cell(f)
    return _table(title, VARIANTS, shown)


def _table(title: str, rows: dict[Any, str], cells: dict[tuple[Any, str], str]) -> str:
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, name in rows.items():
        lines.append(f"| {name} | {' | '.join(cells.get((row, column), '-') for column in columns)} |")
    return "\n".join(lines)


def every(results: dict[str, Any]) -> list[str]:
    """All tables that the result has figures for."""
    found = [decode_table(results), prefill_table(results)]
    if "splits" in results:
        found.append(splits_table(results))
    if "peers" in results:
        found += [peers_table(results, decode) for decode in (True, False)]
    return found


if __name__ == "__main__":
    loaded = json.loads(Path(sys.argv[1]).read_text())
    if loaded.get("quick"):
        sys.exit("a quick run's figures are not to be quoted: run `python -m benchmarks --json FILE` without --quick")
    print(*every(loaded), sep="\n\n")
