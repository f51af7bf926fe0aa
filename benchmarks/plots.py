"""The plots of a result of `python -m benchmarks.scale --json FILE`: python -m benchmarks.plots FILE PICTURE.svg (needs Matplotlib)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

COLOURS = {"float16": "#4477aa", "int8": "#ee6677", "int4": "#228833"}
LABELS = {
    "batch": "sequences of 4,096 tokens",
    "context": "tokens of one sequence",
    "head_dim": "head_dim (64 sequences of 4,096)",
    "group": "query heads per KV head",
    "block_len": "tokens per block",
    "new tokens": "new tokens (prefill)",
}


def draw(results: dict[str, Any]) -> Any:
    """A figure with an axis for each sweep: time and its floor where size varies, the share of the floor where the shape varies."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pagedattn"  # the same bytes from the same figures
    from matplotlib import pyplot

    sweeps = results["sweeps"]
    figure, axes = pyplot.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for axis, (name, figures) in zip(axes.flat, sweeps.items(), strict=False):
        for kv, colour in COLOURS.items():
            mine = [f for f in figures if f["kv"] == kv]
            x = [f["x"] for f in mine]
            if "tflops" in mine[0]:
                axis.plot(x, [f["tflops"] for f in mine], "o-", color=colour, label=kv)
            elif name in ("batch", "context"):
                axis.plot(x, [f["us"] for f in mine], "o-", color=colour, label=kv)
                axis.plot(x, [f["floor_us"] for f in mine], "--", color=colour, linewidth=0.8)
            else:
                axis.plot(x, [f["floor_us"] / f["us"] for f in mine], "o-", color=colour, label=kv)
        axis.set_xscale("log", base=2)
        axis.set_xlabel(LABELS[name])
        if "tflops" in figures[0]:
            axis.set_ylabel("TFLOP/s, sustained")
        elif name in ("batch", "context"):
            axis.set_yscale("log")
            axis.set_ylabel("us (dashed: read ceiling)")
        else:
            axis.set_ylim(0, 1)
            axis.set_ylabel("share of the read ceiling")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.suptitle(f"{results['device']}, read ceiling {results['read_ceiling_tb_per_s']:.2f} TB/s")
    return figure


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text())).savefig(sys.argv[2], metadata={"Date": None})
