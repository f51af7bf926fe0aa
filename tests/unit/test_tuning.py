"""The tuning table: every row is the first that fits somewhere, on a target or on a newer GPU that runs its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch, dispatch, tuned, tuning, workspace
from pagedattn.errors import UnsupportedError
from pagedattn.layout import HEAD_DIMS
from pagedattn.shipped import shipped
from pagedattn.spec import KV_DTYPES, SPLITS, decode_heads
from pagedattn.tuning import Key, Tile

BITS = {False: (16,), True: (8, 4)}  # of what prefill's rows without and with codes are for
LONG: set[tuple[str | None, Key, Tile]] = set()  # rows for long sequences that some kernel takes, once `taken` has run
ENTRIES = [
    *((mma, [Key("decode", *key)], rows) for mma, table in tuning.DECODE_OF.items() for key, rows in table.items()),
    *(
        (mma, [Key("prefill", dim, 0, n) for n in BITS[codes]], rows)
        for mma, table in tuning.PREFILL_OF.items()
        for (dim, codes), rows in table.items()
    ),
]


def pairs() -> Iterator[tuple[arch.Arch, arch.Arch]]:
    """A GPU, and whose kernels it may run: its own, and those of sm_70 and sm_75 where it is newer (`cuda+sm_70`)."""
    for own in arch.ARCHS.values():
        yield own, own
        yield from ((own, old) for old in arch.ARCHS.values() if old.family == "sm70" and old < own)


def kinds(dim: int, source: arch.Arch) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Of every kernel with a tile that a source has: its operation, what the cache stores, and the rest.

    "flat" keeps pieces in shared memory, and so takes other rows than "cut".
    """
    for general in (False, True):
        yield "varlen", None, {"general": general}
        yield from (("prefill", kv_dtype, {"general": general}) for kv_dtype in KV_DTYPES)
    for kv_dtype in KV_DTYPES:
        for heads in decode_heads(dim, kv_dtype or "float16", source.mma):
            for general in (False, True):
                yield from (("decode", kv_dtype, {"heads": heads, "splits": splits, "general": general}) for splits in SPLITS)


@cache
def taken() -> set[tuple[str | None, Key, Tile]]:
    """The rows of all kernels that calls can ask for."""
    found = set()
    for own, source in pairs():
        for dim in HEAD_DIMS:
            for op, kv_dtype, fields in kinds(dim, source):
                try:
                    spec = dispatch.spec_for(op, "float16", kv_dtype or "float16", dim, own.name, source.name, **fields)
                except UnsupportedError:
                    assert own != source, "what a target ships fits it"
                    continue
                found.add((spec.mma, spec.key, tuned.row_of(spec, "").tile))
                if long := tuned.for_long(spec, ""):
                    LONG.add((spec.mma, spec.key, tuned.row_of(long, "").tile))
    return found


@pytest.mark.parametrize(("mma", "keys", "rows"), ENTRIES, ids=[f"{mma}-{'-'.join(map(str, keys[0]))}" for mma, keys, _ in ENTRIES])
def test_every_row_is_taken_somewhere(mma: str, keys: list[Key], rows: tuple[Tile, ...]) -> None:
    assert [row for row in rows if not any((mma, key, row) in taken() for key in keys)] == []


def test_every_row_for_long_sequences_is_taken_somewhere() -> None:
    taken()
    rows = [
        (mma, Key("prefill", dim, 0, n), row)
        for mma, table in tuning.PREFILL_LONG.items()
        for (dim, codes), row in table.items()
        for n in BITS[codes]
    ]
    assert rows
    assert set(rows) == LONG


@pytest.mark.parametrize(
    ("new", "lengths", "splits", "cta_q"),
    [
        ((8192,), (8192,), 0, 256),
        ((1024,) * 8, (1024,) * 8, 0, 256),
        ((512,), (16384,), 0, 256),  # 64 tiles, of whose keys two CTAs take half each
        ((1024, 1, 1, 1), (1024, 900, 900, 900), 0, 256),
        ((512,), (512,), 0, 128),  # 64 tiles of 256 rows; twice as many of half as many have a multiprocessor each
        ((512, *[1] * 15), (4096,) * 16, 0, 128),  # decode's sequences are no work for prefill
        ((448,) * 32, (4096,) * 32, 0, 128),  # seven tiles a sequence
        ((4096, 16, 16, 16, 16, 16, 16, 16, 16), (4096, *[2000] * 8), 0, 128),
        ((1,) * 64, (8192,) * 64, 0, 128),  # with a mask
        ((8192,), (8192,), 4, 128),
        ((8192,), (8192,), -512, 128),
    ],
)
def test_long_sequences_have_a_row_of_their_own(new: tuple[int, ...], lengths: tuple[int, ...], splits: int, cta_q: int) -> None:
    """32 heads in groups of four, 132 multiprocessors; where the caller cuts sequences, nothing may depend on the others."""
    gpu: Any = SimpleNamespace(arch=arch.parse("sm_90"), source=arch.parse("sm_90"), sm_count=132, model="")
    batch = pa.Batch(np.zeros((len(new), max(lengths) // 64 + 1), np.int32), new, lengths, device="cpu")
    for op in ("prefill", "varlen"):
        spec, tiles, pack, parts = dispatch.plan_prefill(gpu, pa.BlockLayout(8, 128), 32, batch, splits, op)
        assert spec.cta_q == cta_q
        assert tiles == 8 * len(new) * -(-max(new) * pack // cta_q)
        assert spec in shipped(["sm_90"], ["float16"], [128], [op]), "it is compiled ahead of time"
        room = tiles * parts * spec.piece_bytes if parts > 1 else 0
        sizes: dict[str, Any] = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "arch": "sm_90", "sm_count": 132}
        known = pa.workspace_bytes(batch_size=len(new), max_seqlen_q=max(2, *new), max_seqlen_k=max(lengths), **sizes)
        assert room <= known - workspace.COUNTER_BYTES


def test_a_tuned_row_is_for_long_sequences_too() -> None:
    key, row = Key("prefill", 128, 0, 16), tuning.PREFILL[128, False][0]
    spec = tuned.spec_of(key, "sm_90")
    long = tuned.for_long(spec, "")
    assert long is not None
    assert tuned.row_of(long, "").origin == "row for long sequences of the shipped table"
    with tuned.trying("GPU", "sm_90", key, row):
        assert tuned.for_long(spec, "GPU") is None
    assert tuned.for_long(spec, "GPU") == long
    assert tuned.for_long(tuned.spec_of(key, "sm_80"), "") is None, "there the row for all others is the same"
