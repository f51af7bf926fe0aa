"""Tokens from one pool to another of the same blocks in a different stored type: gathered, then appended, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import dtypes
from pagedattn.batch import Batch
from pagedattn.parallel import WHOLE
from pagedattn.problem import Problem

if TYPE_CHECKING:
    from pagedattn.devices.base import Device
    from pagedattn.layout import BlockLayout

Array = np.ndarray[Any, Any]

_ELEMENTS = 1 << 25  # of K that are between the pools at once


class Blocks(NamedTuple):
    """A pool, uint8 (num_blocks, layout.block_bytes), and what its bytes mean."""

    layout: BlockLayout
    pool: Any


def copy_tokens(device: Device, source: Blocks, target: Blocks, counts: Array) -> None:
    """The first `counts[b]` tokens of every block b, all layers, from `source` to the same place of `target`.

    Parameters
    ----------
    counts : integers (num_blocks,)
        0 .. block_len; what lies behind is not read, and not written.
    """
    layout = source.layout
    used = np.flatnonzero(counts)
    kind = dtypes.of(layout.dtype).numpy
    step = max(1, _ELEMENTS // (layout.block_len * layout.num_kv_heads * layout.head_dim))
    for first in range(0, len(used), step):
        blocks = used[first : first + step]
        lengths = counts[blocks].astype(np.int64)
        batch = Batch.of_cache(device, blocks.astype(np.int32)[:, None], lengths, lengths, (layout.block_len, len(counts), WHOLE))
        k, v = (device.empty((batch.num_tokens, layout.num_kv_heads, layout.head_dim), kind) for _ in "kv")
        for layer in range(layout.num_layers):
            for op, (kept, pool) in (("gather", source), ("append", target)):
                device.run(Problem(op, kept, pool, layer, batch, k=k, v=v))
