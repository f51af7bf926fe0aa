"""The keywords of a call that ask for more than attention itself: checked, and put on the device."""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import dtypes
from pagedattn.arrays import adopt, place
from pagedattn.errors import ArgumentError
from pagedattn.footprint import RANGE_QUERIES
from pagedattn.problem import Extras
from pagedattn.rope import Rope, RopeCall
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache

Array = np.ndarray[Any, Any]
# New tokens and tokens of the longest sequences from which on it is worth a launch to look for what a mask keeps: 9 us on an H200, where
# attention of 8 x 1,024 tokens takes 300.
RANGES_FROM = 128, 1024


def resolve(
    cache: KVCache,
    batch: Batch,
    num_heads: int = 0,
    *,
    rope: Any = None,
    q_bias: Any = None,
    k_bias: Any = None,
    v_bias: Any = None,
    logn_max_position: Any = None,
    alibi_slopes: Any = None,
    mask: Any = None,
    softmax_scale: float = 1.0,
) -> Extras:
    """The keywords as the devices read them; `num_heads` counts the query heads where there are queries.

    Raises
    ------
    ArgumentError
        A value that does not fit the cache, the batch or the queries.
    """
    if (
        isinstance(rope, Rope) and q_bias is k_bias is v_bias is logn_max_position is alibi_slopes is mask is None
    ):  # a layer asks like the one before it
        # lengths may be assigned anew, and a dynamic base follows them
        key = rope, cache.layout.head_dim, batch.seqlens_k.tobytes() if rope.kind == "dynamic" else b""
        found = batch.notes.get(key)
        if found is None:
            found = Extras(finished=batch.finished)
            _rope(found, rope, cache, batch)
            batch.notes[key] = found
        return found
    extras = Extras(finished=batch.finished)
    if rope is not None:
        _rope(extras, rope, cache, batch)
    kv_heads = cache.layout.num_kv_heads
    for name, value, heads in (("q_bias", q_bias, num_heads), ("k_bias", k_bias, kv_heads), ("v_bias", v_bias, kv_heads)):
        if value is not None:
            setattr(extras, name, _bias(value, name, heads, cache))
    if logn_max_position is not None:
        most = whole(logn_max_position)
        if most is None or not 2 <= most < 2**31:
            raise ArgumentError(f"`logn_max_position` must be an integer from 2 to 2**31 - 1, or None; got {logn_max_position!r}.")
        extras.logn_max_position = most
    if alibi_slopes is not None:
        slopes = adopt(alibi_slopes, cache.device, "alibi_slopes")
        if tuple(slopes.shape) != (num_heads,) or slopes.dtype != np.float32:
            raise ArgumentError(
                f"`alibi_slopes` must be float32 of shape ({num_heads},), one per query head; got {slopes.dtype} {tuple(slopes.shape)}."
            )
        extras.alibi_slopes, extras.alibi_scale = cache.device.asarray(slopes), 1 / softmax_scale
    if mask is not None:
        _mask(extras, mask, batch)
    return extras


def _rope(extras: Extras, rope: Any, cache: KVCache, batch: Batch) -> None:
    if isinstance(rope, Rope):
        rope = rope.at()
    if not isinstance(rope, RopeCall):
        raise ArgumentError(f"`rope` must be a pagedattn.Rope, or what its `at` returns; got {type(rope).__name__}.")
    turning, head_dim, device = rope.rope, cache.layout.head_dim, cache.device
    if rope.positions is not None:
        extras.rope_positions = _positions(rope.positions, turning.axes, cache, batch)
    if turning.kind == "none":
        return
    if turning.kind == "dynamic":
        extras.rope_table = _tables(turning, batch.seqlens_k if rope.seqlens is None else _lengths(rope.seqlens, batch), head_dim, batch)
    else:
        extras.rope_table = turning.table(device, head_dim)
    extras.rope_dim = 2 * extras.rope_table.shape[-1]
    extras.rope_interleaved, extras.rope_factor = turning.interleaved, turning.attention_factor


def _positions(x: Any, axes: int, cache: KVCache, batch: Batch) -> Any:
    """int32 (axes, num_tokens) on the device."""
    host = place(x) in (None, "cpu")
    found = _integers(x, "positions", batch) if host else adopt(x, cache.device, "positions")
    wanted = (batch.num_tokens,) if axes == 1 else (axes, batch.num_tokens)
    if found.dtype.kind not in "iu":
        raise ArgumentError(f"`positions` must hold integers; got {found.dtype}.")
    if tuple(found.shape) != wanted:
        raise ArgumentError(f"`positions` must have the shape {wanted}, of the batch's new tokens; got {tuple(found.shape)}.")
    if host and found.size and not -(2**31) <= found.min() <= found.max() < 2**31:
        raise ArgumentError(f"`positions` must lie below 2**31; got {found.min()} to {found.max()}.")
    return cache.device.asarray(found.astype(np.int32).reshape(axes, batch.num_tokens))


def _lengths(x: Any, batch: Batch) -> Array:
    found = batch.device.to_host(adopt(x, batch.device, "seqlens")) if place(x) not in (None, "cpu") else _integers(x, "seqlens", batch)
    if found.shape != (batch.batch_size,) or found.dtype.kind not in "iu":
        raise ArgumentError(f"`seqlens` must be integers of shape ({batch.batch_size},), one a sequence; got {found.dtype} {found.shape}.")
    return found.astype(np.int64)


def _integers(x: Any, name: str, batch: Batch) -> Array:
    try:
        found = np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"`{name}` must hold integers; NumPy says: {error}") from error
    return found.astype(np.int64) if not found.size else found  # NumPy makes an empty list one of floats


def _tables(rope: Rope, lengths: Array, head_dim: int, batch: Batch) -> Any:
    """A table of turns for each sequence, (batch_size, pairs); made once for a batch."""
    key = rope, head_dim, lengths.tobytes()
    found = batch.notes.get(key)
    if found is None:
        known, which = np.unique(lengths, return_inverse=True)
        turns = [rope.turns(head_dim, int(n)) for n in known]
        pairs = len(turns[0]) if turns else 0
        found = batch.notes[key] = batch.device.asarray(np.array(turns, np.uint64).reshape(-1, pairs)[which.reshape(-1)])
    return found


def _bias(x: Any, name: str, heads: int, cache: KVCache) -> Any:
    layout, found = cache.layout, adopt(x, cache.device, name)
    wanted = heads, layout.head_dim
    if tuple(found.shape) != wanted or found.dtype != dtypes.of(layout.dtype).numpy:
        raise ArgumentError(
            f"`{name}` must be {layout.dtype} of shape {wanted}, (heads, head_dim); got {found.dtype} {tuple(found.shape)}."
        )
    return cache.device.asarray(found)


def _mask(extras: Extras, x: Any, batch: Batch) -> None:
    found = np.asarray(x) if place(x) is None else adopt(x, batch.device, "mask")
    sizes = batch.seqlens_q * batch.seqlens_k
    total = int(sizes.sum())
    if tuple(found.shape) != (total,) or found.dtype.name not in ("bool", "uint8"):
        raise ArgumentError(
            f"`mask` must be bool of shape ({total},), flat: for each sequence its seqlens_q x seqlens_k entries, row by row; "
            f"got {found.dtype} {tuple(found.shape)}."
        )
    key = "mask_starts", sizes.tobytes()  # a batch's lengths may be assigned anew, and a captured graph still reads the old ones
    starts = batch.notes.get(key)
    if starts is None:
        starts = batch.notes[key] = batch.device.asarray(np.cumsum(sizes) - sizes)
    extras.mask, extras.mask_starts, extras.mask_ranges = batch.device.asarray(found), starts, _ranges(batch)


def ranges_shape(batch: Batch) -> tuple[int, int, int] | None:
    """Of room for the keys that a mask keeps; None where sequences are too short for it to be worth looking for them."""
    if batch.max_seqlen_q < RANGES_FROM[0] or batch.max_seqlen_k < RANGES_FROM[1]:
        return None
    return batch.batch_size, -(-batch.max_seqlen_q // RANGE_QUERIES), 2


def _ranges(batch: Batch) -> Any:
    """Room for the keys that a mask keeps; None where nobody looks for them.

    One for each stream, whose launches follow each other, and for each thread: another one's launches may come between those of a call, and
    the streams of all threads may have one name.
    """
    device, shape = batch.device, ranges_shape(batch)
    if device.arch is None or shape is None:
        return None
    key = "mask_ranges", shape, device.address_of(None), get_ident()
    found = batch.notes.get(key)
    if found is None:
        found = batch.notes[key] = device.empty(shape, np.int32)
    return found
