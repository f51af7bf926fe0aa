"""The plots of a result of `python -m benchmarks --json FILE`: python -m benchmarks.plots FILE FOLDER (needs Matplotlib: '.[plots]').

size.svg: how cost grows with what there is to do; shape.svg: what shapes of a model and its cache cost; roofline.svg: how near ceilings.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.join import loaded

COLOURS = {"float16": "#4477aa", "int8": "#ee6677", "int4": "#228833"}
SIZE, SHAPE = ("batch", "context", "new tokens"), ("head_dim", "group", "block_len")
LABELS = {
    "batch": "sequences of 4,096 tokens",
    "context": "tokens of one sequence",
    "head_dim": "head_dim (64 sequences of 4,096)",
    "group": "query heads per KV head",
    "block_len": "tokens per block",
    "new tokens": "new tokens (prefill)",
}


def scale(results: dict[str, Any], names: tuple[str, ...]) -> Any:
    """A figure with an axis for each sweep: time and its floor where size varies, the share of the floor where the shape varies."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(names), figsize=(12, 3.8), layout="constrained", squeeze=False)
    for axis, name in zip(axes.flat, names, strict=True):
        figures = results["sweeps"][name]
        for kv, colour in COLOURS.items():
            _line(axis, name, [f for f in figures if f["kv"] == kv], kv, colour)
        axis.set_xscale("log", base=2)
        ticks = sorted({f["x"] for f in figures})
        axis.set_xticks(ticks[:: -(-len(ticks) // 6)], [_short(x) for x in ticks[:: -(-len(ticks) // 6)]])
        axis.set_xlabel(LABELS[name])
        if "tflops" in figures[0]:
            axis.set_ylabel("TFLOP/s, sustained")
            axis.set_ylim(0)
        elif name in ("batch", "context"):
            axis.set_yscale("log")
            axis.set_ylabel("us (dashed: read ceiling)")
        else:
            axis.set_ylim(0, 1.05)
            axis.set_ylabel("share of the read ceiling")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{results['device']}, read ceiling {results['read_ceiling_tb_per_s']:.2f} TB/s (same run)")
    return figure


def _line(axis: Any, name: str, figures: list[dict[str, Any]], label: str, colour: str) -> None:
    x = [f["x"] for f in figures]
    if "tflops" in figures[0]:
        axis.plot(x, [f["tflops"] for f in figures], "o-", color=colour, label=label)
    elif name in ("batch", "context"):
        axis.plot(x, [f["us"] for f in figures], "o-", color=colour, label=label)
        axis.plot(x, [f["floor_us"] for f in figures], "--", color=colour, linewidth=0.8)
    else:
        axis.plot(x, [f["floor_us"] / f["us"] for f in figures], "o-", color=colour, label=label)


def _short(n: int) -> str:
    for unit, name in ((1 << 20, "M"), (1 << 10, "k")):
        if n >= unit and n % unit == 0:
            return f"{n // unit}{name}"
    return str(n)


def slim(svg: str) -> str:
    """An SVG without indentation, its numbers with two decimals at most.

    >>> slim('<g>\\n  <path d="M 41.601021 -0.5"/>\\n</g>')
    '<g>\\n<path d="M 41.60 -0.5"/>\\n</g>'
    """
    return re.sub(r"\n\s+", "\n", re.sub(r"(\d\.\d\d)\d+", r"\1", svg))


def save(results: dict[str, Any], folder: Path) -> list[Path]:
    """Every plot that the result has figures for, as small files whose bytes depend on the figures alone."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "pagedattn", "svg.fonttype": "none"})  # text stays text: smaller, and it can be searched
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    found = []
    wanted: dict[str, tuple[Callable[[dict[str, Any]], Any], set[str]]] = {
        "size": (lambda found: scale(found, SIZE), {"sweeps"}),
        "shape": (lambda found: scale(found, SHAPE), {"sweeps"}),
        "roofline": (roofline.draw, {"decode", "prefill", "matmul_tflops"}),
    }
    for name, (draw, needs) in wanted.items():
        if needs <= results.keys():
            found.append(folder / f"{name}.svg")
            figure = draw(results)
            text = io.StringIO()
            figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
            pyplot.close(figure)
            found[-1].write_text(slim(text.getvalue()), encoding="utf-8")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(*save(loaded(arguments.file), arguments.folder), sep="\n")
