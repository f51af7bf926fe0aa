"""Candidates: the tiles that `pagedattn tune` tries for a key, of all that KernelSpec accepts on a target."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pagedattn import tuned
from pagedattn.errors import PagedAttnError
from pagedattn.footprint import TILED
from pagedattn.spec import KernelSpec
from pagedattn.tuning import DecodeTile, Key, PrefillTile, Tile

WARPS = range(1, 17)
STAGES = (1, 2, 3, 4)
QUERY_ROWS = (64, 128, 256)
KEYS = (16, 32, 64)
CTAS = (1, 2, 3, 4)
SLABS = (1, 2)  # of 16 query rows, in a warp of prefill
FEWER = 0.5  # a candidate has at least this share of the shipped row's bytes in flight (decode) or query rows at work (prefill)
QUICK = 8
_REGISTERS, _THREAD_REGISTERS = 65536, 255  # of a multiprocessor since sm_70, and of a thread


def of(key: Key, arch: str, quick: bool = False) -> list[Tile]:
    """The shipped row and, nearest first, the candidates to take its place; with `quick`, the nearest ones only.

    >>> of(Key("decode", 128, 8, 4), "sm_75", quick=True)[:3]
    [DecodeTile(warps=12, stages=1, cta_s=32), DecodeTile(warps=11, stages=1, cta_s=32), DecodeTile(warps=10, stages=1, cta_s=32)]
    """
    shipped = tuned.row_of(tuned.spec_of(key, arch), "").tile
    least = FEWER * _at_work(tuned.spec_of(key, arch))
    found = {}
    for tile in _decode(shipped) if isinstance(shipped, DecodeTile) else _prefill(shipped):
        try:
            spec = tuned.spec_of(key, arch, tile)
            if tile == shipped or tuned.why_not(key, arch, tile) or not _holds_sums(spec) or _at_work(spec) < least:
                continue
        except PagedAttnError:  # no kernel can have it
            continue
        found[tile] = spec
    nearest = sorted(found, key=lambda tile: _distance(tile, shipped))
    return [shipped, *(nearest[:QUICK] if quick else nearest)]


def _decode(shipped: DecodeTile) -> Iterator[Tile]:
    yield from (DecodeTile(warps, stages, cta_s) for cta_s in KEYS for stages in STAGES for warps in WARPS)


def _prefill(shipped: PrefillTile) -> Iterator[Tile]:
    """Tiles share keys where the shipped row's would, whatever their length; the shipped row also with more keys for each CTA."""
    keys = shipped.cta_s * shipped.part_tiles
    yield from (shipped._replace(part_tiles=n * shipped.part_tiles) for n in (2, 4))
    for rows in QUERY_ROWS:
        for slabs in SLABS:
            for cta_s in KEYS:
                for ctas in CTAS:
                    for stages in STAGES[:2]:
                        yield PrefillTile(rows // (16 * slabs), rows, cta_s, ctas, stages, max(1, keys // cta_s), shipped.most_parts)


def _at_work(spec: KernelSpec) -> int:
    """Decode: bytes of K and V that a multiprocessor has asked for. Prefill: query rows that it works on."""
    return (spec.min_ctas or 1) * ((spec.cta_q or 0) if spec.op in TILED else (spec.warps or 0) * spec.ring_bytes)


def _holds_sums(spec: KernelSpec) -> bool:
    """Whether the registers have room for the sums of a tile at all: prefill's O and S, in float32; decode leaves it to the compiler."""
    if spec.op not in TILED:
        return True
    sums = (spec.cta_q or 0) * (spec.head_dim + (spec.cta_s or 0)) // spec.threads
    return sums < min(_THREAD_REGISTERS, _REGISTERS // (spec.threads * (spec.min_ctas or 1)))


def _distance(tile: Tile, shipped: Tile) -> float:
    return sum(abs(math.log2(mine / theirs)) for mine, theirs in zip(tile, shipped, strict=True))
