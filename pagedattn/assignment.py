"""Assignment: what a batch must be to take the place of another in the launches that were captured with that one, and where it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.errors import ArgumentError

if TYPE_CHECKING:
    from pagedattn.batch import Batch


def require_assignable(batch: Batch, other: Batch) -> None:
    """Refuse what captured launches of `batch` could not take from `other`: they hold its addresses and its host's figures."""
    if other.device is not batch.device:
        raise ArgumentError(f"`other` must be on {batch.device.name}; got one on {other.device.name}.")
    if other.blocks is not None or batch.blocks is not None:
        raise ArgumentError("batches of `from_block_ptrs` must be made anew for each step; got one to assign.")
    if batch.finished is not None and isinstance(batch.finished, np.ndarray) and not batch.finished.flags.writeable:
        raise ArgumentError("`finished` of this batch must be writable, for `assign` writes there; got a read-only array.")
    if other.finished is not None and batch.finished is None:
        raise ArgumentError("`other.finished` needs a place in this batch, which was made without `finished`. Make it with flags.")
    if batch.unshared and not other.unshared:
        raise ArgumentError("`other` must be `unshared`, as this batch was made to be; got one whose blocks may be shared.")
    if not np.array_equal(other.seqlens_q, batch.seqlens_q):
        raise ArgumentError(
            f"`other` must have this batch's numbers of new tokens, {batch.seqlens_q.tolist()}; got {other.seqlens_q.tolist()}."
        )
    for name in ("max_seqlen_k", "max_blocks"):
        if getattr(other, name) > getattr(batch, name):
            raise ArgumentError(f"`other.{name}` must be at most {getattr(batch, name)}, this batch's room; got {getattr(other, name)}.")


def room_of(batch: Batch) -> tuple[Any, Any]:
    """`block_table` and `cu_seqlens_k` of a batch as arrays that may be written to; made once."""
    found: tuple[Any, Any] | None = batch.notes.get("room")
    if found is None:
        cells = batch.batch_size * batch.max_blocks
        table = batch._buffer[:cells].reshape(batch.batch_size, batch.max_blocks)
        found = batch.notes["room"] = table, batch._buffer[cells + batch.batch_size + 1 :]
    return found
