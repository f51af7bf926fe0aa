"""The tuning table: which tile a kernel uses, in order of preference; the first row that fits the target is taken.

`pagedattn tune` measures on a GPU whether another row serves it better; what it finds is kept beside the store (tuned.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Key(NamedTuple):
    """What a row is for.

    Attributes
    ----------
    op : str
        "decode", or "prefill", whose rows varlen takes too.
    head_dim : int
    heads : int
        Query heads of a pack; 0 for prefill.
    bits : int
        Of a stored element.
    """

    op: str
    head_dim: int
    heads: int
    bits: int


class DecodeTile(NamedTuple):
    """A CTA of `warps` independent warps, each with a ring of `stages` tiles of `cta_s` keys.

    Codes are computed 32 keys at a time. Tiles of 64 cost fewer instructions a key where a step of 32 has few (head_dim 64) or two warps a
    scheduler have to do (packs of 16); cuts lie at 32 keys, and take the first row that does.
    """

    warps: int
    stages: int
    cta_s: int = 16


class PrefillTile(NamedTuple):
    """A CTA of `warps` warps over `cta_q` query rows and key tiles of `cta_s`; `min_ctas` of them share a multiprocessor.

    Where query tiles are few, up to `most_parts` CTAs share the keys of each, if that leaves `part_tiles` key tiles to every one of them:
    with fewer, sharing costs more than it brings.
    """

    warps: int
    cta_q: int
    cta_s: int
    min_ctas: int
    stages: int = 2
    part_tiles: int = 8
    most_parts: int = 16


Tile = DecodeTile | PrefillTile
SPEC_FIELDS = ("cta_s", "cta_q", "stages", "warps", "min_ctas")  # of a row, those that change machine code

# (head_dim, heads of a pack, bits of a stored element) -> rows. Registers bound the warps: large head_dims keep more of O and Q, and with
# codes to convert leave no room for packs of 16.
DECODE: dict[tuple[int, int, int], tuple[DecodeTile, ...]] = {
    (64, 8, 16): (DecodeTile(12, 3), DecodeTile(8, 2)),
    (64, 16, 16): (DecodeTile(8, 3), DecodeTile(8, 2)),
    (96, 8, 16): (DecodeTile(12, 2), DecodeTile(8, 2), DecodeTile(6, 2)),
    (96, 16, 16): (DecodeTile(8, 2), DecodeTile(4, 2)),
    (128, 8, 16): (DecodeTile(10, 2), DecodeTile(8, 2), DecodeTile(4, 2)),
    (128, 16, 16): (DecodeTile(8, 2), DecodeTile(6, 2), DecodeTile(4, 2)),
    (192, 8, 16): (DecodeTile(7, 2), DecodeTile(5, 2), DecodeTile(3, 2)),
    (192, 16, 16): (DecodeTile(6, 2), DecodeTile(4, 2), DecodeTile(2, 2)),
    (256, 8, 16): (DecodeTile(5, 2), DecodeTile(4, 2), DecodeTile(2, 2)),
    (256, 16, 16): (DecodeTile(4, 2), DecodeTile(2, 2), DecodeTile(1, 2)),
    (64, 8, 8): (DecodeTile(12, 2, 32), DecodeTile(8, 2, 32)),
    (64, 16, 8): (DecodeTile(8, 2, 32), DecodeTile(4, 2, 32)),
    (96, 8, 8): (DecodeTile(12, 2, 32), DecodeTile(8, 2, 32), DecodeTile(6, 2, 32)),
    (96, 16, 8): (DecodeTile(8, 2, 32), DecodeTile(6, 2, 32), DecodeTile(4, 2, 32)),
    (128, 8, 8): (DecodeTile(8, 2, 32), DecodeTile(7, 2, 32), DecodeTile(4, 2, 32)),
    (128, 16, 8): (DecodeTile(8, 2, 32), DecodeTile(6, 2, 32), DecodeTile(4, 2, 32), DecodeTile(3, 2, 32)),
    (192, 8, 8): (DecodeTile(7, 2, 32), DecodeTile(5, 2, 32), DecodeTile(3, 2, 32)),
    (256, 8, 8): (DecodeTile(5, 2, 32), DecodeTile(3, 2, 32), DecodeTile(2, 2, 32)),
    (64, 8, 4): (DecodeTile(12, 2, 64), DecodeTile(12, 3, 32), DecodeTile(12, 2, 32)),
    (64, 16, 4): (DecodeTile(12, 2, 64), DecodeTile(12, 2, 32), DecodeTile(8, 2, 32)),
    (96, 8, 4): (DecodeTile(12, 3, 32), DecodeTile(12, 2, 32), DecodeTile(8, 2, 32)),
    (96, 16, 4): (DecodeTile(8, 2, 32), DecodeTile(6, 2, 32)),
    (128, 8, 4): (DecodeTile(12, 2, 32), DecodeTile(10, 2, 32), DecodeTile(6, 2, 32)),
    (128, 16, 4): (DecodeTile(8, 2, 64), DecodeTile(8, 2, 32), DecodeTile(4, 2, 32)),
    (192, 8, 4): (DecodeTile(8, 2, 32), DecodeTile(7, 2, 32), DecodeTile(4, 2, 32)),
    (256, 8, 4): (DecodeTile(8, 2, 32), DecodeTile(6, 2, 32), DecodeTile(3, 2, 32)),
}

# The SM70 family: one slot a warp, which K and V take in turn; a tile waits in registers while the one before it is computed.
DECODE_M16N8K8: dict[tuple[int, int, int], tuple[DecodeTile, ...]] = {
    (64, 8, 16): (DecodeTile(12, 1),),
    (64, 16, 16): (DecodeTile(12, 1),),
    (96, 8, 16): (DecodeTile(12, 1),),
    (96, 16, 16): (DecodeTile(8, 1),),
    (128, 8, 16): (DecodeTile(12, 1),),
    (128, 16, 16): (DecodeTile(8, 1),),
    (192, 8, 16): (DecodeTile(8, 1),),
    (192, 16, 16): (DecodeTile(4, 1),),
    (256, 8, 16): (DecodeTile(7, 1),),
    (256, 16, 16): (DecodeTile(3, 1),),
    (64, 8, 8): (DecodeTile(12, 1, 32),),
    (64, 16, 8): (DecodeTile(8, 1, 32),),
    (96, 8, 8): (DecodeTile(8, 1, 32),),
    (96, 16, 8): (DecodeTile(8, 1, 32),),
    (128, 8, 8): (DecodeTile(8, 1, 32),),
    (128, 16, 8): (DecodeTile(8, 1, 32),),
    (192, 8, 8): (DecodeTile(8, 1, 32),),
    (256, 8, 8): (DecodeTile(7, 1, 32),),
    (64, 8, 4): (DecodeTile(12, 1, 32),),
    (64, 16, 4): (DecodeTile(8, 1, 32),),
    (96, 8, 4): (DecodeTile(12, 1, 32),),
    (96, 16, 4): (DecodeTile(8, 1, 32),),
    (128, 8, 4): (DecodeTile(12, 1, 32),),
    (128, 16, 4): (DecodeTile(8, 1, 32),),
    (192, 8, 4): (DecodeTile(8, 1, 32),),
    (256, 8, 4): (DecodeTile(7, 1, 32),),
}
DECODE_M8N8K4: dict[tuple[int, int, int], tuple[DecodeTile, ...]] = {
    (64, 8, 16): (DecodeTile(8, 1, 32),),
    (64, 16, 16): (DecodeTile(8, 1, 32),),
    (96, 8, 16): (DecodeTile(8, 1, 32),),
    (96, 16, 16): (DecodeTile(8, 1, 32), DecodeTile(5, 1, 32)),
    (128, 8, 16): (DecodeTile(8, 1, 32), DecodeTile(5, 1, 32)),
    (128, 16, 16): (DecodeTile(6, 1, 32), DecodeTile(4, 1, 32)),
    (192, 8, 16): (DecodeTile(5, 1, 32), DecodeTile(3, 1, 32)),
    (256, 8, 16): (DecodeTile(4, 1, 32), DecodeTile(2, 1, 32)),
    (64, 8, 8): (DecodeTile(8, 1, 32),),
    (64, 16, 8): (DecodeTile(8, 1, 32),),
    (96, 8, 8): (DecodeTile(8, 1, 32),),
    (96, 16, 8): (DecodeTile(8, 1, 32),),
    (128, 8, 8): (DecodeTile(8, 1, 32),),
    (128, 16, 8): (DecodeTile(6, 1, 32),),
    (192, 8, 8): (DecodeTile(8, 1, 32), DecodeTile(5, 1, 32)),
    (256, 8, 8): (DecodeTile(6, 1, 32), DecodeTile(4, 1, 32)),
    (64, 8, 4): (DecodeTile(8, 1, 32),),
    (64, 16, 4): (DecodeTile(8, 1, 32),),
    (96, 8, 4): (DecodeTile(8, 1, 32),),
    (96, 16, 4): (DecodeTile(8, 1, 32),),
    (128, 8, 4): (DecodeTile(8, 1, 32),),
    (128, 16, 4): (DecodeTile(6, 1, 32),),
    (192, 8, 4): (DecodeTile(8, 1, 32),),
    (256, 8, 4): (DecodeTile(6, 1, 32),),
}
DECODE_OF = {"m16n8k16": DECODE, "m16n8k8": DECODE_M16N8K8, "m8n8k4": DECODE_M8N8K4}

# (head_dim, whether the cache holds codes) -> rows. Codes become elements once a CTA: more query rows share the work. With two stages warps
# make one tile of elements while others compute another.
PREFILL: dict[tuple[int, bool], tuple[PrefillTile, ...]] = {
    (64, False): (PrefillTile(4, 128, 64, 2),),
    (96, False): (PrefillTile(4, 128, 64, 2), PrefillTile(4, 128, 64, 1)),
    (128, False): (PrefillTile(4, 128, 64, 2), PrefillTile(8, 256, 64, 1), PrefillTile(4, 128, 64, 1)),
    (192, False): (PrefillTile(8, 128, 64, 1), PrefillTile(4, 64, 32, 1)),
    (256, False): (PrefillTile(8, 128, 64, 1), PrefillTile(8, 128, 32, 1), PrefillTile(4, 64, 32, 1)),
    (64, True): (PrefillTile(8, 256, 64, 1),),
    (96, True): (PrefillTile(8, 256, 64, 1), PrefillTile(8, 256, 64, 1, stages=1)),
    (128, True): (PrefillTile(8, 256, 64, 1), PrefillTile(4, 128, 64, 1, stages=1)),
    (192, True): (PrefillTile(8, 128, 64, 1), PrefillTile(8, 128, 64, 1, stages=1), PrefillTile(4, 64, 32, 1)),
    (256, True): (PrefillTile(8, 128, 64, 1), PrefillTile(8, 128, 64, 1, stages=1), PrefillTile(4, 64, 32, 1, stages=1)),
}
# The SM70 family: with one stage V stands where K stood, which makes room for longer tiles; those won wherever they fitted. 64 KB hold 256
# rows of queries up to head_dim 96, 96 KB up to 128.
PREFILL_M16N8K8: dict[tuple[int, bool], tuple[PrefillTile, ...]] = {
    (dim, quantised): (tile,)
    for quantised in (False, True)
    for dim, tile in {
        64: PrefillTile(8, 256, 64, 1),
        96: PrefillTile(8, 256, 32, 1, stages=1),
        128: PrefillTile(8, 128, 64, 1, stages=1),
        192: PrefillTile(8, 128, 32, 1, stages=1),
        256: PrefillTile(4, 64, 16, 1),
    }.items()
}
PREFILL_M8N8K4: dict[tuple[int, bool], tuple[PrefillTile, ...]] = {
    (dim, quantised): (tile,)
    for quantised in (False, True)
    for dim, tile in {
        64: PrefillTile(8, 256, 64, 1),
        96: PrefillTile(8, 256, 32, 1),
        128: PrefillTile(8, 256, 32, 1),
        192: PrefillTile(8, 128, 32, 1),
        256: PrefillTile(8, 128, 32, 1, stages=1),
    }.items()
}
PREFILL_OF = {"m16n8k16": PREFILL, "m16n8k8": PREFILL_M16N8K8, "m8n8k4": PREFILL_M8N8K4}

# The same for long sequences, in place of the row above: K and V are read for twice the queries. Where query tiles are few, twice as many
# CTAs serve better, and in short sequences the last tile's empty rows are too large a share.
PREFILL_LONG: dict[str, dict[tuple[int, bool], PrefillTile]] = {"m16n8k16": {(128, False): PrefillTile(8, 256, 64, 1)}}
LONG_TILES = 8  # sequences are long that have so many query tiles of such a row each

# head_dims whose prefill kernels are assembled at ptxas's level 1, which keeps the order of the source: where registers are all in use, the
# default level moves the exponentials of a tile to the front, and spills.
PREFILL_IN_ORDER = {"m16n8k16": (96, 128, 192, 256), "m16n8k8": (), "m8n8k4": (128,)}


def rows(mma: str, key: Key) -> tuple[Tile, ...]:
    """The rows for a key, in order of preference; none where no kernel exists.

    >>> rows("m16n8k16", Key("decode", 256, 16, 8)), len(rows("m16n8k16", Key("prefill", 128, 0, 16)))
    ((), 3)
    """
    if key.op == "decode":
        return DECODE_OF[mma].get(key[1:], ())
    return PREFILL_OF[mma].get((key.head_dim, key.bits < 16), ())


def long_row(mma: str, key: Key) -> PrefillTile | None:
    """Prefill's row for long sequences, if there is one.

    >>> long_row("m16n8k16", Key("prefill", 128, 0, 16))
    PrefillTile(warps=8, cta_q=256, cta_s=64, min_ctas=1, stages=2, part_tiles=8, most_parts=16)
    """
    return PREFILL_LONG.get(mma, {}).get((key.head_dim, key.bits < 16)) if key.op == "prefill" else None


def fields_of(row: Tile) -> dict[str, Any]:
    """The fields of a KernelSpec that a row fills.

    >>> fields_of(PrefillTile(8, 128, 64, 1))
    {'warps': 8, 'cta_q': 128, 'cta_s': 64, 'min_ctas': 1, 'stages': 2}
    """
    return {name: value for name, value in row._asdict().items() if name in SPEC_FIELDS}


COPY_WARPS = 8  # append, gather, merge, ranges: what only moves or looks
