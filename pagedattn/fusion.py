"""Fusion: whether the launch that attends to a decode step's new rows also writes them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pagedattn import arch as archs
from pagedattn.dispatch import pack_size, spec_for

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.dispatch import Target
    from pagedattn.layout import BlockLayout
    from pagedattn.parallel import ContextParallel
    from pagedattn.problem import Extras

_MOST_A_WARP = 2  # new rows that a warp writes before it attends; more of them append writes sooner


def fuses(
    device: Target, layout: BlockLayout, num_heads: int, batch: Batch, num_splits: int, extras: Extras | None, cp: ContextParallel | None
) -> bool:
    """Whether decode's launch writes the new rows itself, which saves append's."""
    return not why_not(device, layout, num_heads, batch, num_splits, extras, cp)


def why_not(
    device: Target, layout: BlockLayout, num_heads: int, batch: Batch, num_splits: int, extras: Extras | None, cp: ContextParallel | None
) -> str:
    """What keeps decode's launch from writing the new rows itself; "" where nothing does.

    Each row is written by the warp that reads it, so no other may: not that of a second pack of heads, nor that of another sequence which
    has the block as well.
    """
    if not batch.unshared:
        return "the batch is not `unshared`"
    if num_splits:
        return "`num_splits` cuts sequences"
    if batch.num_prefill or not batch.num_decode:
        return "not every sequence has one query"
    if device.arch is None or device.source is None:
        return "NumPy computes"
    if cp is not None and cp.size > 1:
        return "ranks share the keys"
    if extras is not None and (extras.reshapes or extras.mask is not None):
        return "rows change on their way or a mask is read"
    kinds = layout.dtype, str(layout.kv_dtype), layout.head_dim, device.arch.name, device.source.name
    most = _most_fused(*kinds, device.sm_count, num_heads // layout.num_kv_heads)
    if not most:
        return "several packs of heads read each row, or the SM70 family does"
    return "" if batch.num_decode * layout.num_kv_heads <= most else "append writes so many rows sooner"


@cache
def _most_fused(dtype: str, kv_dtype: str, head_dim: int, arch: str, source: str, sm_count: int, group_size: int) -> int:
    """(Sequence, KV head) pairs up to which it pays that decode writes the new rows; 0 where it cannot."""
    of = archs.parse(source)
    heads = pack_size(group_size, head_dim, kv_dtype, of.mma)
    if of.family != "sm80" or group_size > heads:
        return 0
    spec = spec_for("decode", dtype, kv_dtype, head_dim, arch, source, heads, "flat", fused=True)
    return _MOST_A_WARP * sm_count * (spec.min_ctas or 1) * (spec.warps or 1)
