"""What rows of q, k and v go through on their way in, on the host: bias, rotation, logn; float32 inside, rounded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.problem import Extras

Array = np.ndarray[Any, Any]


def prepare(rows: Array, bias: Array | None, extras: Extras, batch: Batch, *, turning: bool = True, logn: bool = False) -> Array:
    """Rows of the batch's new tokens, (num_tokens, heads, head_dim), as they enter the cache or the scores."""
    if bias is None and not turning and not logn:
        return rows
    x = rows.astype(np.float32)
    if bias is not None:
        x += bias.astype(np.float32)
    place = np.arange(batch.num_tokens) + np.repeat(batch.seqlens_k - np.cumsum(batch.seqlens_q), batch.seqlens_q)
    if turning and extras.rope_table is not None:
        _turn(x, extras, batch, place)
    most = extras.logn_max_position
    if logn and most:
        far = place > most
        x[far] *= (np.log2(place[far]) / np.log2(most)).astype(np.float32)[:, None, None]
    with np.errstate(over="ignore"):
        return x.astype(rows.dtype)


def _turn(x: Array, extras: Extras, batch: Batch, place: Array) -> None:
    table = extras.rope_table
    if table.ndim == 2:
        table = np.repeat(table, batch.seqlens_q, axis=0)
    axis, turns = (table & np.uint64(3)).astype(np.intp), table & ~np.uint64(3)
    position = place[:, None] if extras.rope_positions is None else extras.rope_positions[axis, np.arange(len(x))[:, None]].astype(np.int64)
    phase = turns * position.astype(np.uint64)  # modulo one turn
    angle = phase.view(np.int64) * (2 * np.pi / 2.0**64)
    cos, sin = ((f(angle) * extras.rope_factor).astype(np.float32)[:, None] for f in (np.cos, np.sin))
    part = x[..., : extras.rope_dim]
    if extras.rope_interleaved:
        a, b = part[..., 0::2], part[..., 1::2]
    else:
        a, b = part[..., : extras.rope_dim // 2], part[..., extras.rope_dim // 2 :]
    a[...], b[...] = a * cos - b * sin, b * cos + a * sin
