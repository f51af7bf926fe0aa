"""The README's figures from a result of `python -m benchmarks --json FILE`: python -m benchmarks.tables FILE [--into README.md]

A page names what it wants: `<!-- figures: NAME -->`, what stands there now, `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.join import loaded, run_of, runs_of

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
HOST = {
    "paged_attention, out given": "`paged_attention`, given `out`",
    "append and paged_attention": "`append` and `paged_attention` in one call",
    "32 layers, captured: Batch.assign": "`Batch.assign` of a captured step",
    "32 layers, captured: the graph's launch": "launch of a captured step of 32 layers",
    "CuPy: RawKernel, empty, one struct": "to compare hosts by: an empty `cupy.RawKernel` with a struct of this size",
    "CuPy: a graph of one launch": "launch of a captured empty kernel",
}
FUSED = ("D1", "D3", "D6", "1 x 512", "16 x 512", "64 x 512")
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def device(results: dict[str, Any]) -> str:
    """What was measured on, and its ceilings in each run."""
    lines = [f"{results['device']}:", ""]
    for run in runs_of(results):
        versions = f"commit {(run['commit'] or 'unknown')[:7]}, driver {run['driver']}, CuPy {run['cupy']}, NVRTC {run['nvrtc']}"
        lines.append(f"- {', '.join(run['sections'])}: {versions}")
        if run["read_ceiling_tb_per_s"]:  # a run of the host's sections alone looks for none
            lines[-1] += (
                f"; the card read at {run['read_ceiling_tb_per_s']:.2f} TB/s\n"
                f"  (16-byte loads) and multiplied at {run['matmul_tflops']:.0f} TFLOP/s (cuBLAS, float16, 8192^3, sustained) in that run"
            )
    return "\n".join(lines)


def decode(results: dict[str, Any]) -> str:
    """Microseconds in a replayed graph, and the share of the read ceiling of the run."""
    return _variants("decode, us (share of the read ceiling)", results["decode"], lambda x: f"{x['graph_us']:.0f} ({x['share']:.2f})")


def prefill(results: dict[str, Any]) -> str:
    """Sustained TFLOP/s, and the share of what a matrix product reached in this run."""
    title, most = "prefill, TFLOP/s (share of the matmul ceiling)", run_of(results, "prefill")["matmul_tflops"]
    return _variants(title, results["prefill"], lambda x: f"{x['tflops']:.0f} ({x['tflops'] / most:.2f})")


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


def fused(results: dict[str, Any]) -> str:
    """A decode step with new rows, as append's launch and decode's, and as one; beside them decode alone."""
    figures = results["fused"]
    rows = {kv: "16 bits" if kv == "float16" else kv for kv in dict.fromkeys(f["kv_dtype"] for f in figures)}
    cells = {
        (f["kv_dtype"], f["row"]): f"{f['decode_us']:.1f} / {f['two_us']:.1f} / {f['one_us']:.1f}" for f in figures if f["row"] in FUSED
    }
    return _table("us: attention alone / append, then attention / one launch", rows, cells)


def splits(results: dict[str, Any]) -> str:
    """What batch-invariant cuts cost, as a multiple of the balanced list's time."""
    figures = results["splits"]
    rows = {(f["variant"], f["keys"]): f'{KV[f["variant"]]}, `"fixed:{f["keys"]}"`' for f in figures}
    cells = {((f["variant"], f["keys"]), f["row"]): f"{f['us'] / f['balanced_us']:.2f}" for f in figures}
    return _table("time, as a multiple of `num_splits=None`", rows, cells)


def scores(results: dict[str, Any]) -> str:
    """What changes scores before the softmax, as a multiple of the plain call's time."""
    figures = results["scores"]
    rows = {(f["row"], f["change"]): f"{f['row']}, {f['change']}" for f in sorted(figures, key=lambda f: str(f["row"])[0] == "D")}
    cells = {((f["row"], f["change"]), VARIANTS[f["variant"]]): f"{f['us'] / f['plain_us']:.2f}" for f in figures}
    return _table("time, as a multiple of the same call's without it", rows, cells)


def placement(results: dict[str, Any]) -> str:
    """Microseconds of one layer, by the order in which sequences have their blocks."""
    figures = results["placement"]
    rows = {(f["variant"], f["layers"]): f"{KV[f['variant']]}, {f['layers']} {'layer' if f['layers'] == 1 else 'layers'}" for f in figures}
    cells = {((f["variant"], f["layers"]), f["order"]): f"{f['us']:.1f}" for f in figures}
    return _table(f"{figures[0]['row']}, us of a layer", rows, cells)


def decode_peers(results: dict[str, Any]) -> str:
    """Microseconds, and how many times ours."""
    return _peers("decode, us (times ours)", results, True, lambda f: f"{f['us']:.0f}" + (f" ({f['ratio']:.2f})" if "ratio" in f else ""))


def prefill_peers(results: dict[str, Any]) -> str:
    """Sustained TFLOP/s; and which peers were not there to be measured."""
    missing = ", ".join(results["peers_missing"])
    found = _peers("prefill, TFLOP/s", results, False, lambda f: f"{f['tflops']:.0f}")
    return found + (f"\n\nNot installed there, and so not measured: {missing}." if missing else "")


def host(results: dict[str, Any]) -> str:
    """Microseconds of the host: the least of the rounds, and the most."""
    least, most = results["host_us"], results["host_most_us"]
    lines = ["| host, us | least | most |", "|---" * 3 + "|"]
    return "\n".join([*lines, *(f"| {text} | {least[name]:.1f} | {most[name]:.1f} |" for name, text in HOST.items())])


def compiled(results: dict[str, Any]) -> str:
    """Seconds of one core to compile a kernel: the least of the rounds, and the most."""
    figures = [f for f in results["compile"] if "op" in f]
    cells = {
        (_kind(f), f"head_dim {f['head_dim']}"): f"{f['least_s']:.2f} ({f['most_s']:.2f})"
        for f in sorted(figures, key=lambda f: f["head_dim"])
    }
    return _table("to compile, s (most)", {kind: kind for kind in dict.fromkeys(map(_kind, figures))}, cells)


def _kind(figure: dict[str, Any]) -> str:
    """What a kernel that was compiled is called."""
    name = f"{figure['op']}{' in cuts' if figure['splits'] == 'cut' else ''}{', general' if figure['general'] else ''}"
    return f"{name}, {figure['kv_dtype']}" if figure["kv_dtype"] in ("int8", "int4") else name


def _peers(title: str, results: dict[str, Any], of_decode: bool, cell: Callable[[dict[str, Any]], str]) -> str:
    """Every peer that could do a row; ours, from the same minutes, first."""
    figures = [f for f in results["peers"] if f["row"].startswith("D") == of_decode and "us" in f]
    names = {f["peer"]: f"{f['peer']} ({f['version']})" for f in figures}
    return _table(title, names, {(f["peer"], _column(f)): cell(f) for f in figures})


def _column(figure: dict[str, Any]) -> str:
    return str(figure["row"]) + ("" if figure["head_dim"] == 128 else f", head_dim {figure['head_dim']}")


def _variants(title: str, figures: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> str:
    first = {(f["variant"], f["row"]): cell(f) for f in reversed(figures)}  # of a variant measured twice: as warm as the others' next to it
    columns = dict.fromkeys(f["row"] for f in figures)
    return _table(title, VARIANTS, {(v, row): first[v, row] for row in columns for v in VARIANTS if (v, row) in first})


def _table(title: str, rows: dict[Any, str], cells: dict[tuple[Any, str], str]) -> str:
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, name in rows.items():
        lines.append(f"| {name} | {' | '.join(cells.get((row, column), '-') for column in columns)} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "device": device,
    "decode": decode,
    "prefill": prefill,
    "fused": fused,
    "splits": splits,
    "placement": placement,
    "scores": scores,
    "decode_peers": decode_peers,
    "prefill_peers": prefill_peers,
    "host": host,
    "compile": compiled,
}


def filled(page: str, results: dict[str, Any]) -> str:
    """The page with every place of figures filled from the result.

    >>> results = {"host_us": dict.fromkeys(HOST, 1.0), "host_most_us": dict.fromkeys(HOST, 2.0)}
    >>> print(filled("<!-- figures: host -->\\nold\\n<!-- end -->", results))  # doctest: +ELLIPSIS
    <!-- figures: host -->
    | host, us | least | most |
    ...
    | launch of a captured step of 32 layers | 1.0 | 2.0 |
    ...
    <!-- end -->
    """
    return PLACE.sub(lambda match: f"{match[1]}{PARTS[match[2]](results)}\n{match[3]}", page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, help="the page to fill; without it the figures are printed")
    arguments = parser.parse_args()
    results = loaded(arguments.file, ("device", "ranks"))
    if "ranks" in results:
        print(context_parallel_table(results))
        return
    if results.get("quick"):
        raise SystemExit("a quick run's figures are not to be quoted; run `python -m benchmarks --json FILE` without --quick")
    if arguments.into is None:
        print(*(part(results) for part in PARTS.values()), sep="\n\n")
    else:
        page = arguments.into.read_text(encoding="utf-8")
        if not PLACE.search(page):
            raise SystemExit(f"{arguments.into} must have places for figures, such as <!-- figures: host --> ... <!-- end -->; it has none")
        arguments.into.write_text(filled(page, results), encoding="utf-8")


if __name__ == "__main__":
    main()
