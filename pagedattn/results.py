"""Results: memory for what a call makes, and for what its first launch leaves to the second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache


def new_result(shape: tuple[int, ...], dtype: Any, skipped: float, cache: KVCache, batch: Batch, stream: Any) -> Any:
    """Memory for a result; rows of finished sequences, which nobody will write, hold `skipped`."""
    if batch.finished is None:
        return cache.device.empty(shape, dtype, stream)
    with cache.device.using(stream):
        made = cache.device.zeros(shape, dtype)
        if skipped:
            made.fill(skipped)
    return made


def prepared_queries(rows: Any, cache: KVCache, batch: Batch, stream: Any) -> Any:
    """Memory for queries that append prepares for attention, one for each stream. The batch keeps it, for captured graphs use it again."""
    key = "queries", rows.shape, rows.dtype, cache.device.address_of(stream)
    found = batch.notes.get(key)
    if found is None:
        found = batch.notes[key] = cache.device.empty(rows.shape, rows.dtype, stream)
    return found
