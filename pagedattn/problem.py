"""What a caller brings, resolved: every default filled in, every array on the device, every number checked."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.layout import BlockLayout


@dataclass(slots=True)
class Problem:
    """One operation on one layer of a paged cache, ready for a device.

    Attributes
    ----------
    op : str
        "attention", "append" or "gather".
    layout, pool, layer, batch
        The cache's bytes: `pool` is uint8 (num_blocks, block_bytes) on the device.
    q, out : array, optional
        (num_tokens, num_heads, head_dim).
    k, v : array, optional
        New rows to append, (num_tokens, num_kv_heads, head_dim); for "gather" where the (total_k, ...) rows go.
    lse : array, optional
        float32 (num_tokens, num_heads) to fill; None: not wanted.
    sinks : array, optional
        float32 (num_heads).
    window_size : int
        Keys that a query sees, itself included; 0: all.
    softcap : float
        0: none.
    num_splits : int
        0: chosen; n > 0: n cuts of every sequence; n < 0: cuts of -n keys ("fixed:N").
    workspace : uint8 array, optional
        Counters and room for pieces; None: the device's own.
    stream : object, optional
        A CUDA stream; None: the current one.
    key : hashable, optional
        What problems of this batch that are alike but for arrays, layer and stream have in common; None: nothing is to be kept of it.
    """

    op: str
    layout: BlockLayout
    pool: Any
    layer: int
    batch: Batch
    q: Any = None
    k: Any = None
    v: Any = None
    out: Any = None
    lse: Any = None
    sinks: Any = None
    softmax_scale: float = 1.0
    causal: bool = True
    window_size: int = 0
    softcap: float = 0.0
    num_splits: int = 0
    workspace: Any = None
    stream: Any = None
    key: Hashable = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The operands that are arrays, in the order of `params.ARRAYS`."""
        return self.q, self.k, self.v, self.out, self.lse, self.sinks
