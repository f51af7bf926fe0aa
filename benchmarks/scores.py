"""What changes scores before the softmax - softcap, ALiBi, masks - timed beside the same call without it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cupy as cp

from benchmarks import measure
from benchmarks.measure import Effort
from benchmarks.work_table import DECODE, PLAIN, PREFILL, Row, Workload, check, name_of

VARIANTS = (PLAIN, *((128, 64, "float16", kv) for kv in ("int8", "int4")), *((d, 64, "float16", None) for d in (64, 256)))
CAP = 50.0
DOCUMENTS = 8  # of a sequence, with a mask that keeps each token's own


class Change(NamedTuple):
    """Keywords of a call, and what they do to scores of its reference.

    Attributes
    ----------
    keywords : dict
    scores : function of float64 (heads, keys) scores, their heads, the sequence and its query's number
        Returns them changed.
    """

    keywords: dict[str, Any]
    scores: Callable[[Any, slice, int, int], Any]


def softcap(row: Row) -> Change:
    """As Gemma 2 has it."""
    return Change({"softcap": CAP}, lambda s, heads, b, j: CAP * cp.tanh(s / CAP))


def alibi(row: Row) -> Change:
    """Slopes as ALiBi's paper has them."""
    slopes = cp.exp2(-8 * cp.arange(1, row.num_heads + 1) / row.num_heads).astype(cp.float32)

    def scores(s: Any, heads: slice, b: int, j: int) -> Any:
        return s + slopes[heads, None] * (cp.arange(s.shape[1]) - (s.shape[1] - 1))

    return Change({"alibi_slopes": slopes}, scores)


def random_mask(row: Row) -> Change:
    """Every second key, at random, and the query's own."""
    rng = cp.random.default_rng(5)
    return _masked([(rng.random((q, k), dtype=cp.float32) < 0.5) | cp.eye(q, k, k - q, dtype=bool) for q, k in _sizes(row)])


def documents(row: Row) -> Change:
    """The keys of the query's own document, of DOCUMENTS in a sequence."""
    masks = []
    for q, k in _sizes(row):
        document = cp.arange(k) * DOCUMENTS // k
        masks.append(document[k - q :, None] == document)
    return _masked(masks)


def _sizes(row: Row) -> list[tuple[int, int]]:
    return list(zip(row.seqlens_q, row.seqlens_k, strict=True))


def _masked(masks: list[Any]) -> Change:
    keywords = {"mask": cp.concatenate([mask.reshape(-1) for mask in masks])}
    return Change(keywords, lambda s, heads, b, j: cp.where(masks[b][j, : s.shape[1]], s, -cp.inf))


CHANGES: dict[str, Callable[[Row], Change]] = {
    "softcap": softcap,
    "ALiBi": alibi,
    "mask, at random": random_mask,
    "mask, documents": documents,
}
ROWS = {
    **{row: tuple(CHANGES) for row in PREFILL if row.name in ("P1", "P2")},
    **{row: ("softcap", "ALiBi") for row in DECODE if row.name == "D3"},
}


def scores(results: dict[str, Any], effort: Effort) -> None:
    """Every change on its rows, microseconds; prefill sustained, decode in a replayed graph."""
    print(f"\nscores that change, us (times the plain call's){'':14}" + "".join(f"{name:>24}" for name in CHANGES))
    for variant in VARIANTS[:1] if effort.quick else VARIANTS:
        for row, names in ROWS.items():
            work = Workload(row, *variant)
            check(work, name_of(*variant))
            plain = measure.of(work, effort)
            cells = []
            for name in names:
                change = CHANGES[name](row)
                check(work, f"{name_of(*variant)} {name}", change=change)
                us = measure.of(work, effort, **change.keywords)
                figures = {"row": row.name, "variant": name_of(*variant), "change": name, "us": us, "plain_us": plain}
                results.setdefault("scores", []).append(figures)
                cells.append(f"{us:9.1f} ({us / plain:.2f})")
            print(f"  {name_of(*variant):24}{row.name:4}{plain:10.1f}{'':21}" + "".join(f"{c:>24}" for c in cells), flush=True)
        measure.give_back()
