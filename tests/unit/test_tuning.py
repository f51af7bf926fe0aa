"""The tuning table: every row is the first that fits somewhere, on a target or on a newer GPU that runs its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from pagedattn import arch, dispatch, tuned, tuning
from pagedattn.errors import UnsupportedError
from pagedattn.layout import HEAD_DIMS
from pagedattn.spec import KV_DTYPES, SPLITS, decode_heads
from pagedattn.tuning import Key, Tile

BITS = {False: (16,), True: (8, 4)}  # of what prefill's rows without and with codes are for
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
    for adjusted in (False, True):
        yield "varlen", None, {"adjusted": adjusted}
        yield from (("prefill", kv_dtype, {"adjusted": adjusted}) for kv_dtype in KV_DTYPES)
    for kv_dtype in KV_DTYPES:
        for heads in decode_heads(dim, kv_dtype or "float16", source.mma):
            yield from (("decode", kv_dtype, {"heads": heads, "splits": splits}) for splits in SPLITS)


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
    return found


@pytest.mark.parametrize(("mma", "keys", "rows"), ENTRIES, ids=[f"{mma}-{'-'.join(map(str, keys[0]))}" for mma, keys, _ in ENTRIES])
def test_every_row_is_taken_somewhere(mma: str, keys: list[Key], rows: tuple[Tile, ...]) -> None:
    assert [row for row in rows if not any((mma, key, row) in taken() for key in keys)] == []
