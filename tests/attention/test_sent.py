"""Pieces that CTAs of decode's flat list send each other: right however their shares meet the sequences, and the words are zero again."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.ptx import machine
from pagedattn.workspace import COUNTER_BYTES
from tests.attention.cases import Case
from tests.attention.test_attention import compare
from tests.attention.world import cache_of, make

# 16-bit tiles have 16 keys, those of codes 32; with one unit of overhead a segment of 15 tiles is 16 units
LENGTHS = {
    "one": ((1, 1000),),
    "even": ((1, 240), (1, 240), (1, 240), (1, 240)),  # shares end where segments do
    "ragged": ((1, 700), (1, 1), (0, 20), (1, 33), (3, 60), (1, 416)),
    "few": ((1, 17), (1, 3)),  # fewer units than warps
    "long": ((1, 2000),),
}
ROWS: list[tuple[str, str, str | None, int, int, int, dict[str, Any]]] = [
    ("one", "sm_90", None, 4, 1, 64, {}),
    ("one", "sm_90", "int4", 5, 1, 96, {}),
    ("one", "sm_75", None, 8, 1, 64, {}),
    ("even", "sm_80", None, 2, 2, 64, {}),
    ("even", "sm_70", None, 4, 2, 64, {"window_size": 100}),
    ("ragged", "sm_90", "int8", 12, 2, 128, {}),
    ("ragged", "sm_80", None, 17, 1, 64, {"window_size": 300}),
    ("few", "sm_90", None, 3, 1, 64, {}),
]


@pytest.mark.parametrize(("lengths", "target", "kv_dtype", "heads", "kv_heads", "dim", "keywords"), ROWS, ids=str)
def test_any_number_of_ctas(
    lengths: str, target: str, kv_dtype: str | None, heads: int, kv_heads: int, dim: int, keywords: dict[str, Any]
) -> None:
    case = Case(f"sent-{lengths}", "", LENGTHS[lengths], heads, kv_heads, dim, 16, kv_dtype=kv_dtype, keywords=keywords)
    world = make(case)
    for sm_count in (1, 2, 3, 7):
        device = InterpreterDevice(target)
        device.sm_count = sm_count
        cache = cache_of(world, device)
        batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
        room = device.zeros((COUNTER_BYTES + (1 << 22),), np.uint8)
        found = []
        for _ in range(2):
            out, lse = pa.paged_attention(device.asarray(world.q), cache, batch, workspace=room, return_lse=True, **keywords)
            compare(world, device.to_host(out), device.to_host(lse))
            assert not room[:COUNTER_BYTES].any()
            found.append((device.to_host(out).tobytes(), device.to_host(lse).tobytes()))
        assert found[0] == found[1]


# 9 heads of 192 dims are more items than threads: those that have none in the last pass must not clear what the others still read
LATE = [("one", None, 4, 64, 5), ("even", "int8", 5, 96, 5), ("long", None, 9, 192, 14)]


@pytest.mark.parametrize(("lengths", "kv_dtype", "heads", "dim", "sm_count"), LATE, ids=str)
def test_pieces_that_come_late(
    monkeypatch: pytest.MonkeyPatch, lengths: str, kv_dtype: str | None, heads: int, dim: int, sm_count: int
) -> None:
    """CTAs that run in any order ask for pieces before they are there, and ask again."""
    case = Case(f"late-{lengths}", "", LENGTHS[lengths], heads, 1, dim, 16, kv_dtype=kv_dtype)
    world = make(case)
    for seed in range(6):
        rng = random.Random(seed)
        monkeypatch.setattr(machine._Machine, "_turn", lambda _, __, rng=rng: rng.random())
        device = InterpreterDevice("sm_90")
        device.sm_count = sm_count
        batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
        room = device.zeros((COUNTER_BYTES + (1 << 22),), np.uint8)
        out, lse = pa.paged_attention(device.asarray(world.q), cache_of(world, device), batch, workspace=room, return_lse=True)
        compare(world, device.to_host(out), device.to_host(lse))
        assert not room[:COUNTER_BYTES].any()
