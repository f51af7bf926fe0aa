"""Peers beside our kernels: same process, same inputs, same measuring; what is wrong is not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cupy as cp

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.peers import Form, Peer, UnfitError, available
from benchmarks.work_table import DECODE, PREFILL, TOLERANCE, Row, Workload, check

PREFILL_ROWS = {128: ("P1", "P2", "P3", "P4"), 64: ("P1", "P3"), 256: ("P1", "P3")}
OURS = "pagedattn"


def peers(results: dict[str, Any], effort: Effort) -> None:
    """Every peer on every row that it can do, ours again beside it; what is wrong is not timed."""
    found, missing = available()
    results["peers_missing"] = missing
    figures = results.setdefault("peers", [])
    print("\npeers: " + ", ".join(f"{peer.name} ({peer.version})" for peer in found))
    for name, why in missing.items():
        print(f"  {name}: {why}")
    rows: list[tuple[Row, int]] = [(row, 128) for row in DECODE]
    rows += [(row, head_dim) for head_dim, names in PREFILL_ROWS.items() for row in PREFILL if row.name in names]
    for row, head_dim in rows:
        work = Workload(row, head_dim)
        check(work, f"d{head_dim}")
        ours = measure.of(work, effort)
        figures.append(_figure(OURS, results["pagedattn"], True, "paged", work, ours, results))
        print(f"  {row.name} d{head_dim}: {_text(figures[-1])}", flush=True)
        for peer in found:
            entry = {"peer": peer.name, "version": peer.version, "sm80": peer.sm80, "row": row.name, "head_dim": head_dim}
            try:
                form, taken = fastest(peer, work, effort)
            except UnfitError as why:
                figures.append({**entry, "why": str(why)})
                print(f"    {peer.name}: {why}", flush=True)
                continue
            figures.append({**_figure(peer.name, peer.version, peer.sm80, form, work, taken, results), "ratio": taken / ours})
            print(f"    {peer.name}, {form}: {_text(figures[-1])}, {taken / ours:.2f} times our time", flush=True)


def fastest(peer: Peer, work: Workload, effort: Effort) -> tuple[str, float]:
    """The form of the peer that takes least, of those whose result is right, and its microseconds.

    Raises
    ------
    UnfitError
        No form runs and is right.
    """
    taken, wrong = {}, []
    for form in _attempt(lambda: peer.forms(work)):
        try:
            error = _attempt(_error, form, work)
            if not error < TOLERANCE[work.dtype]:
                raise UnfitError(f"relative error {error:.1e} against float64: not timed")
            taken[form.name] = _attempt(_timed, form, work, effort)
        except UnfitError as why:
            wrong.append(f"{form.name}: {why}")
    if not taken:
        raise UnfitError("; ".join(wrong) or "no form for this row")
    best = min(taken, key=taken.__getitem__)
    return best, taken[best]


def _attempt(call: Callable[..., Any], *given: Any) -> Any:
    """What others raise where they do not support a shape is of many kinds, and a reason to go on."""
    try:
        return call(*given)
    except UnfitError:
        raise
    except Exception as error:
        raise UnfitError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}") from error


def _error(form: Form, work: Workload) -> float:
    return work.error(cp.from_dlpack(form.rows(form.call(0))))


def _timed(form: Form, work: Workload, effort: Effort) -> float:
    """As ours are: decode in a graph, here PyTorch's, whose allocations it knows; prefill sustained. All on the default stream."""
    import torch

    if not work.row.decode:
        return measure.sustained(form.call, effort)
    calls = measure.calls_for(form.call, work.layers)
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for i in range(calls):
            form.call(i)
    return measure.replayed(graph.replay, calls, effort.repeat)


def _figure(name: str, version: str, sm80: bool, form: str, work: Workload, taken: float, results: dict[str, Any]) -> dict[str, Any]:
    row = work.row
    figure = {"peer": name, "version": version, "sm80": sm80, "form": form, "row": row.name, "head_dim": work.head_dim, "us": taken}
    if row.decode:
        return {**figure, "share": work.kv_bytes / taken / results["read_ceiling_tb_per_s"] / 1e6}
    return {**figure, "tflops": row.flops(work.head_dim) / taken / 1e6}


def _text(figure: dict[str, Any]) -> str:
    if "tflops" in figure:
        return f"{figure['tflops']:.0f} TFLOP/s"
    return f"{figure['us']:.1f} us ({figure['share']:.2f} of the read ceiling)"
