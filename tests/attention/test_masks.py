"""Masks of the caller's: wherever their bytes lie, and whatever the bytes are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from tests.attention.cases import Case
from tests.attention.test_attention import arrays, changing
from tests.attention.world import cache_of, make

CASE = Case("mask", "rows of every place in a word", ((9, 77), (1, 66), (70, 133)), mask="random", num_heads=4, head_dim=64)
HOST = ("cpu", "interpreter", "interpreter:sm_75", "interpreter:sm_70")
GPU = tuple(pytest.param(f"cuda{source}", marks=pytest.mark.cuda) for source in ("", "+sm_75", "+sm_70"))


def attention(device: str) -> tuple[Any, Any, Any]:
    """A function from a mask to the bits of a call's results; the case's mask on the device; the device."""
    world = make(CASE)
    cache = cache_of(world, device)
    batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
    q, _, _ = arrays(world, cache.device)

    def bits(mask: Any) -> tuple[bytes, ...]:
        return tuple(cache.device.to_host(x).tobytes() for x in pa.paged_attention(q, cache, batch, mask=mask, return_lse=True))

    return bits, changing(world, cache.device)["mask"], cache.device


@pytest.mark.parametrize("device", [*HOST, *GPU])
@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_mask_may_begin_anywhere(device: str, offset: int) -> None:
    bits, mask, on = attention(device)
    for around in (False, True):  # what lies beside it does not count
        room = on.asarray(np.full(mask.size + offset + 5, around))
        room[offset : offset + mask.size] = mask
        assert bits(room[offset : offset + mask.size]) == bits(mask)


@pytest.mark.parametrize("device", [*HOST, *GPU])
def test_bytes_count_where_they_are_not_zero(device: str) -> None:
    bits, mask, on = attention(device)
    numbers = np.random.default_rng(0).integers(1, 256, mask.size).astype(np.uint8)
    counted = on.asarray(np.where(on.to_host(mask), numbers, 0).astype(np.uint8))
    assert bits(counted) == bits(counted.view(bool)) == bits(mask)  # a view may make a bool of any byte
    assert bits(on.asarray(~on.to_host(mask))) != bits(mask)
