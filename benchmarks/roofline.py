"""The roofline of a result: decode as shares of the read ceiling, prefill under the roof of measured bandwidth and matrix product."""

from __future__ import annotations

from typing import Any

from benchmarks.join import run_of
from benchmarks.summary import PLAIN

OURS = {PLAIN: ("ours, 16 bits", "#4477aa"), f"{PLAIN} int8": ("ours, int8", "#ee6677"), f"{PLAIN} int4": ("ours, int4", "#228833")}
PEERS = ("#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#ee8866", "#44bb99")
BYTES = {PLAIN: 2.0, f"{PLAIN} int8": 1 + 4 / 128, f"{PLAIN} int4": 0.5 + 4 / 128}  # of an element of K or V, parameters included
SHAPES = {"P1": (8192, 8192, 1), "P2": (1024, 1024, 8), "P3": (2048, 2048, 4), "P4": (512, 16384, 1)}  # new, all, sequences
HEADS, KV_HEADS, DIM = 32, 8, 128


def intensity(row: str, variant: str = PLAIN) -> float:
    """FLOP per byte of a prefill row, if every byte of q, K, V and the output moved once.

    >>> round(intensity("P4")), round(intensity("P4", "d128 b64 float16 int4"))
    (1792, 5161)
    """
    new, tokens, sequences = SHAPES[row]
    pairs = new * tokens - new * (new - 1) // 2
    moved = 2 * tokens * KV_HEADS * DIM * BYTES[variant] + 2 * new * HEADS * DIM * 2
    return 4 * HEADS * DIM * pairs * sequences / (moved * sequences)


def draw(results: dict[str, Any]) -> Any:
    """A figure of two axes."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    _decode(left, results)
    _prefill(right, results)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False, fontsize="small")
    read, matmul = run_of(results, "decode")["read_ceiling_tb_per_s"], run_of(results, "prefill")["matmul_tflops"]
    figure.suptitle(
        f"{results['device']}: decode beside reading at {read:.2f} TB/s, prefill beside a matrix product's {matmul:.0f} TFLOP/s"
    )
    return figure


def _colours(results: dict[str, Any]) -> dict[str, str]:
    names = dict.fromkeys(f["peer"] for f in results.get("peers", ()) if f["peer"] != "pagedattn" and "us" in f)
    return {name: PEERS[i % len(PEERS)] for i, name in enumerate(names)}


def _decode(axis: Any, results: dict[str, Any]) -> None:
    rows = list(dict.fromkeys(f["row"] for f in results["decode"]))
    for variant, (name, colour) in OURS.items():
        mine = {f["row"]: f["share"] for f in results["decode"] if f["variant"] == variant}
        axis.plot([rows.index(row) for row in mine], list(mine.values()), "o", color=colour, label=name)
    for name, colour in _colours(results).items():
        theirs = {f["row"]: f["share"] for f in results["peers"] if f["peer"] == name and "share" in f}
        if theirs:
            axis.plot([rows.index(row) + 0.2 for row in theirs], list(theirs.values()), "x", color=colour, label=name)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(rows)), rows)
    axis.set_ylim(0, 1.05)
    axis.set_ylabel("decode: share of the read ceiling")
    axis.grid(alpha=0.3)


def _prefill(axis: Any, results: dict[str, Any]) -> None:
    run = run_of(results, "prefill")
    bandwidth, matmul = run["read_ceiling_tb_per_s"], run["matmul_tflops"]
    ridge = matmul / bandwidth
    axis.plot([50, ridge, 1e4], [50 * bandwidth, matmul, matmul], color="black", linewidth=0.8)
    for variant, (_, colour) in OURS.items():
        mine = {f["row"]: f["tflops"] for f in results["prefill"] if f["variant"] == variant}
        axis.plot([intensity(row, variant) for row in mine], list(mine.values()), "o", color=colour)
        if variant == PLAIN:
            for row, rate in mine.items():
                axis.annotate(row, (intensity(row), rate), textcoords="offset points", xytext=(6, -10), fontsize="small")
    for name, colour in _colours(results).items():
        theirs = {f["row"]: f["tflops"] for f in results["peers"] if f["peer"] == name and "tflops" in f and f["head_dim"] == DIM}
        if theirs:
            axis.plot([intensity(row) for row in theirs], list(theirs.values()), "x", color=colour)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_ylim(100, 1000)
    axis.set_yticks([100, 200, 400, 800], ["100", "200", "400", "800"])
    axis.minorticks_off()
    axis.annotate("reading", (70, 70 * bandwidth), textcoords="offset points", xytext=(8, -8), fontsize="small")
    axis.annotate("matmul", (4000, matmul), textcoords="offset points", xytext=(0, 4), fontsize="small")
    axis.set_xlabel("FLOP per byte, each byte moved once")
    axis.set_ylabel("prefill: TFLOP/s, sustained")
    axis.grid(alpha=0.3)
