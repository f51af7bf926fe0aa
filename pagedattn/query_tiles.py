"""Query tiles: how a kernel of prefill or varlen divides a batch into them, and whether its row for long sequences is the better one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from pagedattn import tuned, tuning

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.layout import BlockLayout
    from pagedattn.parallel import ContextParallel
    from pagedattn.spec import KernelSpec


MANY = 17  # queries of the longest sequence, from which on fewer heads share a tile


class Device(Protocol):
    """What this asks of a device."""

    @property
    def model(self) -> str: ...
    @property
    def sm_count(self) -> int: ...


class Tiling(NamedTuple):
    """A kernel's query tiles.

    Attributes
    ----------
    spec : KernelSpec
    tiles : int
        Of the whole batch, if every sequence has as many as the longest.
    pack : int
        Heads that share a tile.
    parts : int
        CTAs that share the keys of a tile.
    """

    spec: KernelSpec
    tiles: int
    pack: int
    parts: int


def head_pack(spec: KernelSpec, group_size: int, max_seqlen_q: int) -> int:
    """Prefill: how many heads of a group share a query tile; a power of two that divides the group.

    Four balance long queries best; short ones fill the tile with more heads. A slab of 16 rows holds tokens of one head.
    """
    assert spec.cta_q is not None
    limit = min(4 if max_seqlen_q >= MANY else 8, spec.cta_q // 16)
    pack = 1
    while pack * 2 <= limit and group_size % (pack * 2) == 0:
        pack *= 2
    return pack


def shared_out(
    spec: KernelSpec, device: Device, layout: BlockLayout, num_heads: int, batch: Batch, num_splits: int, cp: ContextParallel
) -> Tiling:
    """The query tiles of a batch; with `num_splits` no tile's keys are shared, and which heads share a tile is the same for every batch."""
    assert spec.cta_q is not None
    assert spec.cta_s is not None
    # rows of a warp decide together when the softmax moves its reference: a row's bits depend on its neighbours
    pack = head_pack(spec, num_heads // layout.num_kv_heads, MANY if num_splits else batch.max_seqlen_q)
    tiles = num_heads // pack * batch.batch_size * -(-batch.max_seqlen_q // (spec.cta_q // pack))
    room = device.sm_count * (spec.min_ctas or 1) // max(tiles, 1)
    row = tuned.prefill_row(spec, device.model)
    parts = 1 if num_splits else max(1, min(room, cp.own(batch.max_seqlen_k) // (spec.cta_s * row.part_tiles), row.most_parts))
    return Tiling(spec, tiles, pack, parts)


def long_enough(wide: Tiling, batch: Batch, sm_count: int) -> bool:
    """Whether the row for long sequences, whose tiling is `wide`, serves a batch better than the one for all others.

    Its sequences with more than one new token have `LONG_TILES` query tiles or more on average, and their CTAs are more than half as many
    as multiprocessors: else twice as many, of half the rows, would have one each. Sequences of one new token have tiles, too, but no work.
    """
    assert wide.spec.cta_q is not None
    tokens = wide.spec.cta_q // wide.pack  # of a tile
    new = batch.num_tokens - batch.num_decode
    long = batch.num_prefill > 0 and new >= tuning.LONG_TILES * tokens * batch.num_prefill
    return long and 2 * (wide.tiles // batch.batch_size * batch.num_prefill) * wide.parts > sm_count
