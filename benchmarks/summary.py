"""What a result says about goals, from its figures alone: ragged and skewed batches, cuts, small blocks, host, compiling, peers."""

from __future__ import annotations

from typing import Any, NamedTuple

PLAIN = "d128 b64 float16"
CALL_US, STEP_US, COMPILE_S, HIT_MS = 12.0, 5.0, 0.8, 2.0
STEP = "32 layers, captured: the graph's launch"


class Line(NamedTuple):
    """A figure and, where there is a goal, `limit`: at least that, or at most where `most`."""

    name: str
    value: float
    limit: float | None = None
    most: bool = False

    @property
    def met(self) -> bool | None:
        if self.limit is None:
            return None
        return self.value <= self.limit if self.most else self.value >= self.limit


def of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every line that the result has the figures for."""
    return [
        {**line._asdict(), "met": line.met}
        for line in (*_decode(results), *_splits(results), *_host(results), *_build(results), *_peers(results))
    ]


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as text; a goal that is missed says so."""
    rows = []
    for line in lines:
        goal = "" if line["limit"] is None else f"{'at most' if line['most'] else 'at least'} {line['limit']:g}"
        rows.append(f"  {line['name']:64}{line['value']:8.3f}  {goal}{'' if line['met'] in (None, True) else ': MISSED'}")
    return "\n".join(["summary", *rows])


def _decode(results: dict[str, Any]) -> list[Line]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in results.get("decode", ()):
        found.setdefault((figure["variant"], figure["row"]), []).append(figure)
    lines = []
    for variant in (PLAIN, f"{PLAIN} int8", f"{PLAIN} int4"):
        for row, what in (("D7", "skewed (D7)"), ("D6", "ragged (D6)")):
            if (variant, row) in found and (variant, "D3") in found:
                ratio = found[variant, row][0]["share"] / found[variant, "D3"][0]["share"]
                lines.append(Line(f"{what}, share of the ceiling to D3's, {variant}", ratio, 0.92))
    for kv in ("", " int4"):
        small, large = (found.get((f"d128 b{n} float16{kv}", "D3")) for n in (16, 64))
        if small and large:
            ratio = small[0]["graph_us"] / large[0]["graph_us"]
            lines.append(Line(f"D3 with blocks of 16 to blocks of 64,{kv or ' float16'}", ratio, 1.05, True))
    for (variant, row), figures in found.items():
        if variant == PLAIN and row == "D3" and len(figures) > 1:
            lines.append(Line("D3 measured again at the end", figures[-1]["graph_us"] / figures[0]["graph_us"]))
    return lines


def _splits(results: dict[str, Any]) -> list[Line]:
    return [
        Line(f"fixed:{f['keys']} to balanced, {f['row']}, {f['variant']}", f["us"] / f["balanced_us"])
        for f in results.get("splits", ())
        if f["keys"] == 512
    ]


def _host(results: dict[str, Any]) -> list[Line]:
    host = results.get("host_us", {})
    names = {"paged_attention, out given": CALL_US, STEP: STEP_US}
    return [Line(f"{name}, us of the host", host[name], limit, True) for name, limit in names.items() if name in host]


def _build(results: dict[str, Any]) -> list[Line]:
    """The kernel of each kind that takes longest to compile, and what the store takes."""
    longest: dict[str, float] = {}
    for figure in results.get("compile", ()):
        if "op" in figure:
            codes = figure["kv_dtype"] in ("int8", "int4")
            kind = f"{'general, ' if figure['general'] else ''}{'8 and 4' if codes else '16'} bits"
            longest[kind] = max(longest.get(kind, 0.0), figure["least_s"])
    lines = [Line(f"to compile a kernel, at the longest, s: {kind}", s, COMPILE_S, True) for kind, s in longest.items()]
    if "store_hit_ms" in results:
        lines.append(Line("to find a kernel in the store, ms", results["store_hit_ms"], HIT_MS, True))
    return lines


def _peers(results: dict[str, Any]) -> list[Line]:
    """Our TFLOP/s to the best peer's whose kernels are of Ampere's class, and to the best of all."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for figure in results.get("peers", ()):
        if "us" in figure:
            rows.setdefault((figure["row"], figure["head_dim"]), []).append(figure)
    lines = []
    for (row, head_dim), figures in rows.items():
        ours = next(f["us"] for f in figures if f["peer"] == "pagedattn")
        for what, of_class in (("sm_80-class peer", True), ("peer of all", False)):
            others = [f for f in figures if f["peer"] != "pagedattn" and (f["sm80"] or not of_class)]
            if others:
                best = min(others, key=lambda f: float(f["us"]))
                goal = 1.0 if of_class and row.startswith("P") else None
                lines.append(Line(f"{row} head_dim {head_dim}: speed to the best {what}, {best['peer']}", best["us"] / ours, goal))
    return lines
