"""What a caller brings, resolved: every default filled in, every array on the device, every number checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from pagedattn import params
from pagedattn.parallel import WHOLE, ContextParallel

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.layout import BlockLayout


@dataclass(slots=True)
class Extras:
    """What a call asks besides attention itself; arrays are on the device.

    Attributes
    ----------
    rope_table : uint64 array (pairs,) or (batch_size, pairs), optional
        `Rope.turns`, one for all sequences or one for each.
    rope_positions : int32 array (axes, num_tokens), optional
        None: the tokens' places in their sequences.
    rope_dim, rope_interleaved, rope_factor
        Elements that turn, how they pair, and what cos and sin are multiplied by.
    q_bias, k_bias, v_bias : array (heads, head_dim), optional
    logn_max_position : int
        0: none.
    alibi_slopes : float32 array (num_heads), optional
    alibi_scale : float
        1 / softmax_scale.
    mask : bool array, optional
        A byte for each (query, key) of each sequence.
    mask_starts : int64 array (batch_size), optional
        Where each sequence's bytes begin.
    mask_ranges : int32 array (batch_size, entries, 2), optional
        Room for what the kernel "ranges" finds in it. None: prefill reads all keys.
    finished : bool array (batch_size), optional
        Sequences to skip.
    memo : dict of str to bytes
        What was packed for each operation.
    """

    rope_table: Any = None
    rope_positions: Any = None
    rope_dim: int = 0
    rope_interleaved: bool = False
    rope_factor: float = 1.0
    q_bias: Any = None
    k_bias: Any = None
    v_bias: Any = None
    logn_max_position: int = 0
    alibi_slopes: Any = None
    alibi_scale: float = 1.0
    mask: Any = None
    mask_starts: Any = None
    mask_ranges: Any = None
    finished: Any = None
    memo: dict[str, bytes] = field(default_factory=dict)

    def prepares(self, op: str) -> bool:
        """Whether rows of q ("attention"), or of k and v ("append"), change on their way in."""
        if op == "append":
            return not (self.rope_table is self.k_bias is self.v_bias is None)
        return bool(self.logn_max_position) or not (self.rope_table is self.q_bias is None)

    @property
    def reshapes(self) -> bool:
        """Whether any rows change on their way in."""
        return self.prepares("append") or self.prepares("attention")

    @property
    def adjusts(self) -> bool:
        """Whether scores change before the softmax."""
        return not (self.alibi_slopes is self.mask is None)

    def arrays(self) -> dict[str, Any]:
        """Every array by its name."""
        return {f.name: x for f in fields(self) if hasattr(x := getattr(self, f.name), "shape")}

    def packed(self, op: str, address: Callable[[Any], int]) -> bytes:
        """What kernels read of it. Two calls that ask alike, of the same arrays, have the same bytes."""
        if op in self.memo:
            return self.memo[op]
        values: dict[str, Any] = {name: address(x) for name, x in self.arrays().items()}
        table, positions, most = self.rope_table, self.rope_positions, self.logn_max_position
        if table is not None:
            values.update(rope_dim=self.rope_dim, rope_interleaved=self.rope_interleaved, rope_factor=self.rope_factor)
            values["rope_stride"] = table.shape[-1] if table.ndim == 2 else 0
        if positions is not None and len(positions) > 1:
            values["rope_axis_stride"] = positions.shape[1]
        if most:
            values["logn_max_position"], values["logn_scale"] = most, 1 / math.log2(most)
        if self.alibi_slopes is not None:
            values["alibi_scale"] = self.alibi_scale
        values["prepare"] = self.prepares(op)
        return self.memo.setdefault(op, params.pack_extras(**values))


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
        (num_tokens, num_heads, head_dim). "append": queries that change on their way to attention, and where they go.
    k, v : array, optional
        New rows to append, (num_tokens, num_kv_heads, head_dim), in "attention" by its own launch; for "gather" where the (total_k, ...)
        rows go.
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
    cp : ContextParallel
        Which of the keys are in the blocks.
    extras : Extras, optional
        None: nothing besides.
    workspace : uint8 array, optional
        Zeroed words and room for pieces; None: the device's own.
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
    cp: ContextParallel = WHOLE
    extras: Extras | None = None
    workspace: Any = None
    stream: Any = None
    key: Hashable = None

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The operands that are arrays, in the order of `params.ARRAYS`."""
        return self.q, self.k, self.v, self.out, self.lse, self.sinks
