"""The table of attention cases: each row says why it exists. The same rows run on every device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

Lengths = tuple[tuple[int, int], ...]  # (new tokens, tokens) of each sequence

HEAD_DIMS = (64, 96, 128, 192, 256)
BLOCK_LENS = (16, 32, 64, 128, 256)
GROUPS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 20, 32)
DTYPES = ("float16", "bfloat16")
EVERYWHERE = ("cpu", "cuda")

# Around the edges of 16-key tiles, 64-key tiles and of blocks
DECODE: Lengths = tuple((1, n) for n in (1, 2, 15, 16, 17, 63, 64, 65, 130, 257))
# Whole prompts, and chunks whose first query stands before, on and after an edge
PREFILL: Lengths = ((2, 2), (16, 16), (63, 63), (64, 64), (65, 65), (130, 130), (17, 200), (64, 192), (100, 163))
MIXED: Lengths = ((1, 70), (33, 33), (1, 1), (0, 20), (5, 300), (1, 129), (0, 0), (80, 80))


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes
    ----------
    id, why : str
        Its name, and the reason that it is here.
    lengths
        (new tokens, tokens) of each sequence.
    num_heads, num_kv_heads, head_dim, block_len, num_layers, dtype, kv_dtype
        The cache, and the layer in use is the last.
    keywords
        Of paged_attention, as they are; `sinks` is made here.
    sinks, return_lse, append : bool
        `append`: the new tokens' rows are passed as k= and v=, the pool holds the others only.
    fused : bool
        q, k and v are views of one (tokens, heads, head_dim) buffer.
    out : str
        "new", "given" (between guard rows), or "strided" (a view with other things between its tokens).
    ramp : float
        Scores rise (fall) by this much from the first key to the last, so that the running maximum moves with every tile (never).
    positive : bool
        V has one sign: errors that always fall on the same side add up instead of cancelling.
    gain : float
        V is that much larger; of every four tokens one each by 1, 1/2, 1/4 and 1/8 of it.
    offset : float
        Added to the second half of the dims of K and V, so that zero and scale of a row differ by far.
    spoiled : bool
        V rows which the mask hides from some or all queries hold infinities and NaN.
    alibi : float
        The largest slope of alibi_slopes; 0: none.
    mask : str
        "" (none), "random" (some queries see nothing), "tree" (all old tokens, and a new one's ancestors), "documents" (90 tokens that see
        each other), "columns" (the first 16 of 64 keys are hidden) or "rows" (the first 8 of 32 queries see nothing).
    rope : dict
        Arguments of Rope; empty: none.
    positions : int
        The new tokens stand at random positions below this; 0: at their places.
    biases : bool
        q_bias, k_bias and v_bias.
    logn : int
        logn_max_position; 0: none.
    devices
        Where it runs.
    """

    id: str
    why: str
    lengths: Lengths
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 128
    block_len: int = 64
    num_layers: int = 1
    dtype: str = "float16"
    kv_dtype: str | None = None
    keywords: dict[str, Any] = field(default_factory=dict)
    sinks: bool = False
    return_lse: bool = True
    append: bool = False
    fused: bool = False
    out: str = "new"
    ramp: float = 0.0
    positive: bool = False
    gain: float = 1.0
    offset: float = 0.0
    spoiled: bool = False
    alibi: float = 0.0
    mask: str = ""
    rope: dict[str, Any] = field(default_factory=dict)
    positions: int = 0
    biases: bool = False
    logn: int = 0
    devices: tuple[str, ...] = EVERYWHERE


def _head_dims() -> Iterator[Case]:
    for dim, block_len in zip(HEAD_DIMS, BLOCK_LENS, strict=True):
        for dtype in DTYPES:
            short = "f16" if dtype == "float16" else "bf16"
            why = "every head_dim and dtype has kernels of its own"
            for name, lengths in (("decode", DECODE), ("prefill", PREFILL)):
                yield Case(f"{name}-d{dim}-{short}", why, lengths, head_dim=dim, block_len=block_len, dtype=dtype)


def _block_lens() -> Iterator[Case]:
    why = "a tile may be part of a block, a block, or span several"
    for block_len in BLOCK_LENS:
        for name, lengths in (("decode", DECODE), ("prefill", PREFILL)):
            yield Case(f"{name}-block{block_len}", why, lengths, block_len=block_len, num_heads=4)
    for dim in (96, 192):
        yield Case(f"mixed-d{dim}-block16", "rows that are no power of two, in the smallest blocks", MIXED, head_dim=dim, block_len=16)


def _groups() -> Iterator[Case]:
    why = "the heads of a group share K and V, in packs of 8 or 16 with idle places"
    for group in GROUPS:
        for name, lengths in (("decode", DECODE[::2]), ("prefill", PREFILL[::2])):
            yield Case(f"{name}-group{group}", why, lengths, num_heads=2 * group, num_kv_heads=2, head_dim=64)
    for dim in (192, 256):
        why = "packs of wide heads: the query no longer fits in registers"
        yield Case(f"decode-group16-d{dim}", why, DECODE[::2], num_heads=16, num_kv_heads=1, head_dim=dim)
        yield Case(f"decode-group20-d{dim}", why, DECODE[::2], num_heads=20, num_kv_heads=1, head_dim=dim, dtype="bfloat16")


def _masks() -> Iterator[Case]:
    longer: Lengths = ((1, 70), (33, 1100), (1, 1), (1, 1300), (80, 80), (150, 150), (2, 90))
    for window in (1, 7, 64, 1000):
        yield Case(
            f"window{window}", "tiles in front of the window are skipped, its edge is masked", longer, keywords={"window_size": window}
        )
    yield Case("full", "no causal mask: every query sees every key", MIXED, keywords={"causal": False})
    yield Case("full-prefill", "the same over whole tiles", PREFILL, keywords={"causal": False})
    yield Case("full-window7", "a window cuts the past only", MIXED, keywords={"causal": False, "window_size": 7})
    for cap in (1.0, 30.0):
        yield Case(f"softcap{cap:g}", "tanh near its limits, and near the identity", MIXED, keywords={"softcap": cap})
    for cap in (1e-3, 1e6):
        yield Case(f"softcap{cap:g}", "a cap that leaves of scores their signs, or all", MIXED, keywords={"softcap": cap}, head_dim=64)
    yield Case("sinks", "a logit that joins the sum only", MIXED, sinks=True)
    yield Case("sinks-window1", "a sink beside a single key", MIXED, sinks=True, keywords={"window_size": 1})
    together = {"softcap": 20.0, "window_size": 64, "softmax_scale": 0.2}
    yield Case("all-options", "options that meet in one call", longer, sinks=True, dtype="bfloat16", head_dim=64, keywords=together)
    yield Case("scale", "a softmax_scale of the caller's", MIXED, keywords={"softmax_scale": 0.5})


def _scores() -> Iterator[Case]:
    for ramp in (60.0, -60.0, 400.0):
        why = "the running maximum rises with every tile, or never; early weights vanish"
        for name, lengths in (("decode", ((1, 1000), (1, 77))), ("prefill", ((100, 700), (130, 130)))):
            yield Case(f"{name}-ramp{ramp:g}", why, lengths, num_heads=16, num_kv_heads=8, ramp=ramp)
    yield Case("decode-ramp-splits", "splits whose maxima differ by far merge", ((1, 1000), (1, 77)), ramp=60.0, keywords={"num_splits": 5})


def _splits() -> Iterator[Case]:
    ragged: Lengths = ((1, 2000), (1, 3), (1, 300), (1, 256), (0, 40), (9, 50), (1, 257))
    for splits in (1, 3, 64, "fixed:1024", "fixed:256", "fixed:96", "fixed:32", "fixed:16"):
        why = "more cuts than tiles, fewer, and cuts that fall on the sequence's end"
        yield Case(f"splits-{str(splits).replace(':', '')}", why, ragged, sinks=True, keywords={"num_splits": splits})
    yield Case("splits-window", "cuts that the window leaves without keys", ragged, keywords={"num_splits": 8, "window_size": 100})
    for name, lengths in (("long", ((1, 9000), (1, 700))), ("many", ((1, 600), (1, 1), (1, 530)) * 40)):
        why = "a segment that many CTAs share, and CTAs that finish many segments"
        yield Case(f"splits-{name}", why, lengths, num_heads=8, num_kv_heads=2, keywords={"num_splits": "fixed:512", "window_size": 8999})
    softcap = {"num_splits": "fixed:512", "softcap": 20.0}
    why = "groups of keys whose parts several warps share, in a general kernel"
    yield Case(
        "splits-softcap", why, ((1, 1300), (1, 512), (1, 90)), num_heads=4, num_kv_heads=1, head_dim=64, block_len=16, keywords=softcap
    )
    yield Case("splits-group20", "packs of heads times cuts", ragged, num_heads=20, num_kv_heads=1, head_dim=64, keywords={"num_splits": 3})


def _batches() -> Iterator[Case]:
    yield Case("mixed", "decode and prefill in one call, and sequences without queries or without tokens", MIXED)
    yield Case("mixed-no-lse", "nothing but the output is wanted", MIXED, return_lse=False)
    yield Case("chunk", "a chunk of a long prompt; most tiles need no mask", ((64, 1000), (7, 300), (128, 128), (2, 1025)))
    yield Case("one-token", "a prompt of one token is decode", ((1, 1),))
    yield Case("one-sequence", "few tiles for a whole GPU: nearly all of it is merging", ((1, 1500),), num_heads=4, num_kv_heads=1)
    yield Case(
        "many-sequences",
        "more sequences than processors",
        tuple((1, 1 + i % 37) for i in range(300)),
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
    )
    yield Case("no-queries", "nothing to do, and nothing to launch", ((0, 10), (0, 0)))
    yield Case("empty", "a batch without sequences", ())


def _memory() -> Iterator[Case]:
    yield Case("layers", "the last of three layers; the others are NaN", MIXED, num_layers=3, block_len=32)
    yield Case("out-given", "rows of out= and nothing around them", MIXED, out="given")
    yield Case("out-strided", "out= with other things between its tokens", MIXED, out="strided", dtype="bfloat16")
    yield Case("fused", "q is a view of a fused buffer", MIXED, fused=True)
    yield Case("append", "append, then attend, in one call", MIXED, append=True)
    yield Case("append-fused", "the same from a fused buffer", MIXED, append=True, fused=True, num_layers=2, dtype="bfloat16", head_dim=96)
    yield Case("append-decode", "the same when every sequence decodes", DECODE, append=True, fused=True, block_len=16)


def _long() -> Iterator[Case]:
    lengths: Lengths = ((1, 4000),) * 64
    why = "what tensor cores truncate adds up over thousands of keys and shows in nothing shorter"
    yield Case("long", why, lengths, num_heads=4, num_kv_heads=1, positive=True)
    yield Case("long-wide", why, lengths, num_heads=32, num_kv_heads=8, positive=True, devices=("cuda",))
    yield Case("long-bf16", why, lengths, num_heads=32, num_kv_heads=8, positive=True, dtype="bfloat16", devices=("cuda",))
    yield Case("long-prefill", why, ((64, 4000), (200, 3000)), num_heads=4, num_kv_heads=1, positive=True)


def _spoiled() -> Iterator[Case]:
    why = "on the host a value that a query does not see cannot reach it, even NaN"
    yield Case("spoiled-causal", why, ((40, 40), (30, 600)), spoiled=True, devices=("cpu",))
    yield Case("spoiled-window", why, MIXED, spoiled=True, keywords={"window_size": 9}, devices=("cpu",))


def _large() -> Iterator[Case]:
    only = ("cuda",)
    model = {"num_heads": 32, "num_kv_heads": 8, "devices": only}
    why = "the size that a server sees: full waves, many tiles a warp"
    yield Case("large-decode", why, tuple((1, 128 + i * i * 16256 // 961) for i in range(32)), **model)
    yield Case("large-decode-block16", why, tuple((1, 1 + 257 * i) for i in range(32)), block_len=16, dtype="bfloat16", **model)
    yield Case("large-decode-group1", why, ((1, 3000),) * 16, num_heads=32, num_kv_heads=32, devices=only)
    yield Case("large-prefill", why, ((2048, 2048), (700, 700), (1500, 3000)), num_heads=8, num_kv_heads=2, devices=only)
    yield Case("large-chunk", why, ((512, 8192),), num_heads=8, num_kv_heads=2, block_len=16, devices=only)
    yield Case(
        "large-mixed", why, (*(((1, 1000 + i)) for i in range(40)), (900, 900), (300, 2300)), num_heads=16, num_kv_heads=2, devices=only
    )
    for dim in (64, 96, 192, 256):
        lengths = ((1024, 1024), (1, 5000), (300, 2000))
        yield Case(f"large-d{dim}", why, lengths, num_heads=8, num_kv_heads=2, head_dim=dim, devices=only)
    yield Case("large-window", why, ((2048, 2048), (1, 5000)), keywords={"window_size": 500}, devices=only)


def _turned() -> Iterator[Case]:
    """Rows that change on their way in. In `append` the call also writes them; else the pool holds them as they should be."""
    common = {"append": True, "num_layers": 2, "block_len": 16}
    yarn = {"kind": "yarn", "factor": 4.0, "max_position": 64, "base": 1000.0}
    llama = {"kind": "llama3", "factor": 8.0, "max_position": 64, "base": 500.0}
    decode, prefill = DECODE[::2], PREFILL[1::3]
    yield Case("rope-decode", "q turns in decode, where a warp's ring holds it meanwhile", decode, rope={"kind": "default"}, **common)
    yield Case("rope-prefill", "q turns in prefill's query tile", prefill, rope={"kind": "default"}, **common)
    yield Case("rope-group20-d192", "packs with idle heads; the query lies in shared memory", MIXED, 20, 1, 192, rope=llama, **common)
    yield Case(
        "rope-all",
        "bias, then part of the head turns, then logn",
        MIXED,
        rope={**yarn, "dim": 32, "interleaved": True},
        biases=True,
        logn=30,
        **common,
    )
    yield Case(
        "rope-odd-half", "half of the turning dims is no multiple of 8", MIXED, head_dim=64, rope={"dim": 20, "base": 50.0}, **common
    )
    yield Case("rope-d96-bf16", "lanes that idle", MIXED, head_dim=96, dtype="bfloat16", rope=yarn, biases=True, fused=True, **common)
    yield Case("rope-d256", "a lane brings several parts of a row", MIXED, head_dim=256, rope={"interleaved": True}, **common)
    yield Case("rope-dynamic", "a table for each sequence", MIXED, rope={"kind": "dynamic", "factor": 2.0, "max_position": 60}, **common)
    mrope = {"kind": "mrope", "mrope_section": (16, 24, 24)}
    yield Case("mrope", "three positions a token", MIXED, rope=mrope, positions=3000, biases=True, **common)
    yield Case("rope-positions", "positions of the caller's", MIXED, rope={"kind": "linear", "factor": 3.0}, positions=10**6, **common)
    yield Case(
        "rope-window-splits",
        "options meet",
        MIXED,
        rope=yarn,
        sinks=True,
        keywords={"window_size": 40, "softcap": 20.0, "num_splits": 3},
        **common,
    )
    yield Case("biases", "bias alone", MIXED, biases=True, **common)
    yield Case("rope-held", "the keys were turned before this call", MIXED, rope=llama, logn=64, block_len=32)


def _adjusted() -> Iterator[Case]:
    """Scores that change before the softmax."""
    why = "a slope for each head, in both kernels"
    yield Case("alibi", why, MIXED, alibi=0.5, block_len=16)
    yield Case("alibi-group20", "packs with idle heads", MIXED, 20, 1, 64, alibi=0.5)
    yield Case("alibi-steep", "far keys vanish, and the running maximum rises with every tile", MIXED, 4, 2, 64, alibi=8.0)
    yield Case("alibi-full", "keys after the query gain", MIXED, alibi=0.1, keywords={"causal": False})
    together = {"softcap": 5.0, "window_size": 40, "softmax_scale": 0.3}
    yield Case("alibi-softcap", "softcap comes first", MIXED, alibi=0.3, keywords=together, sinks=True, dtype="bfloat16", head_dim=96)
    yield Case("alibi-splits", "cuts", MIXED, alibi=0.2, keywords={"num_splits": 3}, head_dim=256)
    why = "a mask of the caller's, which prefill reads for every sequence"
    yield Case("mask-random", why, MIXED, mask="random", sinks=True, block_len=16)
    yield Case("mask-full", "no causal mask besides", MIXED, mask="random", keywords={"causal": False}, dtype="bfloat16", head_dim=64)
    yield Case("mask-decode", "single queries only", DECODE, mask="random", keywords={"num_splits": 3})
    for dim in (96, 192, 256):
        yield Case(f"mask-d{dim}", "lanes read other parts of a row where tiles have fewer keys", MIXED, mask="random", head_dim=dim)
    ends = ((3, 5), (32, 128), (5, 20), (16, 64))
    yield Case("mask-ends", "a mask that ends where a tile does", ends, mask="random", head_dim=64, keywords={"causal": False})
    few = ((16, 40), (15, 97), (2, 50))
    yield Case(
        "mask-group8", "a warp's slabs are of two heads", few, num_kv_heads=1, mask="random", head_dim=64, keywords={"causal": False}
    )
    for kind in ("columns", "rows"):
        yield Case(f"mask-{kind}", "all that some lanes hold is kept", ((40, 140),), mask=kind, head_dim=64, keywords={"causal": False})
    yield Case("mask-rows-d256", "the same in tiles of 16 keys", ((40, 140),), mask="rows", head_dim=256, keywords={"causal": False})
    documents = ((150, 700), (1, 70), (40, 777), (5, 300), (2, 2))
    yield Case("mask-documents", "tiles of which all keys are kept, and none", documents, mask="documents", keywords={"causal": False})
    tree = ((7, 300), (1, 65), (30, 500), (16, 16), (0, 9))
    yield Case(
        "mask-tree", "drafted tokens of one depth share a position", tree, mask="tree", rope={"kind": "default"}, positions=700, append=True
    )
    yield Case("mask-rope", "a rope asks for nothing else", tree, mask="tree", rope={"kind": "default"}, append=True, head_dim=64)
    yield Case("mask-window", "options meet", tree, mask="tree", alibi=0.2, keywords={"window_size": 50, "softcap": 9.0}, num_heads=12)
    rope = {"kind": "linear", "factor": 2.0, "dim": 64}
    yield Case("alibi-rope", "all at once", MIXED, alibi=0.3, rope=rope, biases=True, keywords={"softcap": 30.0}, append=True)


# Rows whose reason holds for codes as well: everything but how out= lies in memory, thinned out where the device does not care.
_AS_CODES = (
    *(f"{name}-d{dim}-{short}" for name in ("decode", "prefill") for dim in HEAD_DIMS for short in ("f16", "bf16")),
    *(f"{name}-block{block_len}" for name in ("decode", "prefill") for block_len in BLOCK_LENS),
    *(f"{name}-group{group}" for name in ("decode", "prefill") for group in (1, 3, 8, 20)),
    *(
        "mixed-d96-block16",
        "mixed-d192-block16",
        "decode-group16-d192",
        "decode-group16-d256",
        "decode-group20-d192",
        "decode-group20-d256",
    ),
    *(
        "window1",
        "window7",
        "window1000",
        "full",
        "full-prefill",
        "softcap1",
        "softcap30",
        "sinks",
        "sinks-window1",
        "all-options",
        "scale",
    ),
    *("decode-ramp60", "decode-ramp-60", "decode-ramp400", "prefill-ramp60", "decode-ramp-splits"),
    *("splits-1", "splits-3", "splits-64", "splits-fixed256", "splits-fixed32", "splits-window", "splits-softcap", "splits-group20"),
    *("mixed", "chunk", "one-token", "one-sequence", "many-sequences", "no-queries", "empty"),
    *("layers", "append", "append-fused", "append-decode", "long", "long-wide", "long-bf16", "long-prefill"),
    *("spoiled-causal", "spoiled-window", "large-decode", "large-decode-block16", "large-decode-group1", "large-prefill", "large-chunk"),
    *(
        "rope-decode",
        "rope-prefill",
        "rope-group20-d192",
        "rope-all",
        "rope-d96-bf16",
        "rope-d256",
        "mrope",
        "rope-window-splits",
        "rope-held",
    ),
    *("alibi", "alibi-group20", "alibi-full", "alibi-softcap", "alibi-rope", "mask-random", "mask-tree", "mask-window", "mask-documents"),
    *("large-mixed", "large-d64", "large-d96", "large-d192", "large-d256", "large-window"),
)


def _codes(rows: dict[str, Case]) -> Iterator[Case]:
    for kv_dtype in ("int8", "int4"):
        for name in _AS_CODES:
            devices = ("cuda",) if name == "long" else rows[name].devices  # on the host, long-prefill is long enough
            yield replace(rows[name], id=f"{name}-{kv_dtype}", kv_dtype=kv_dtype, devices=devices)
        for dtype, short in (("float16", "f16"), ("bfloat16", "bf16")):
            for name, lengths in (("decode", DECODE), ("prefill", PREFILL)):
                keywords = {"lengths": lengths, "dtype": dtype, "kv_dtype": kv_dtype}
                tail = f"{name}-{short}-{kv_dtype}"
                yield Case(f"offset-{tail}", "zero is far larger than scale, and cancels in nothing", offset=20.0, **keywords)
                yield Case(f"large-values-{tail}", "V's scale times P passes what float16 holds if P may", gain=12000.0, **keywords)
                yield Case(f"small-values-{tail}", "V's scale is subnormal in float16, and times P more so", gain=2.0**-7, **keywords)
    lengths = tuple((1, n) for n in (1, 31, 32, 33, 63, 64, 65, 95, 96, 97, 130))
    for block_len, window in ((16, 40), (32, 9), (64, 40), (256, 0)):
        why = "a tile of 64 keys is computed in two steps; the first or the second may have no key"
        keywords = {"window_size": window} if window else {}
        yield Case(f"steps-block{block_len}", why, lengths, head_dim=64, block_len=block_len, kv_dtype="int4", keywords=keywords)


_SIXTEEN_BITS = tuple(
    case
    for rows in (_head_dims, _block_lens, _groups, _masks, _scores, _splits, _batches, _memory, _turned, _adjusted, _long, _spoiled, _large)
    for case in rows()
)
CASES: tuple[Case, ...] = (*_SIXTEEN_BITS, *_codes({case.id: case for case in _SIXTEEN_BITS}))
