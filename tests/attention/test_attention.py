"""paged_attention against the float64 reference, over the table of cases, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from tests.attention.cases import CASES, Case
from tests.attention.tolerance import worst
from tests.attention.world import NAN_BYTE, World, cache_of, make

GUARD = 3  # tokens around an out= that the call must leave alone


def devices_of(case: Case) -> tuple[str, ...]:
    """Where a case runs. A GPU also runs what it would if it were a Turing or a Volta; mma.m8n8k4 is slow on newer ones."""
    if "cuda" not in case.devices or case.dtype != "float16":
        return case.devices
    slow = case.id.startswith(("large", "long-wide")) or case.keywords.get("num_splits") == "fixed:16"  # whose tiles are of 32 keys
    return (*case.devices, "cuda+sm_75", *(() if slow else ("cuda+sm_70",)))


ROWS = [
    pytest.param(case, device, id=f"{case.id}-{device}", marks=[pytest.mark.cuda] if device.startswith("cuda") else [])
    for case in CASES
    for device in devices_of(case)
]


@pytest.mark.parametrize(("case", "device"), ROWS)
def test_case(case: Case, device: str | pa.devices.base.Device) -> None:
    world = make(case)
    cache = cache_of(world, device)
    batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
    q, k, v = arrays(world, cache.device)
    keywords = dict(case.keywords, layer=case.num_layers - 1, return_lse=case.return_lse)
    if case.sinks:
        keywords["sinks"] = cache.device.asarray(world.sinks)
    if case.append:
        keywords.update(k=k, v=v)
    keywords.update(changing(world, cache.device))
    room, out = room_for(case, q, cache.device)
    if out is not None:
        keywords["out"] = out
    answer = pa.paged_attention(q, cache, batch, **keywords)
    found, lse = answer if case.return_lse else (answer, None)

    assert out is None or found is out
    assert type(found) is cache.device.array_type
    assert found.shape == world.q.shape
    assert found.dtype == world.q.dtype
    if world.turned.rows_change:
        world.settle(cache.device.to_host(cache.pool))
    else:
        np.testing.assert_array_equal(cache.device.to_host(cache.pool), world.full_pool, "the pool")
    compare(world, cache.device.to_host(found), None if lse is None else cache.device.to_host(lse))
    if room is not None:
        outside = np.array(cache.device.to_host(room).view(np.uint8))
        inside = guarded(case, outside, len(world.q))
        inside[...] = NAN_BYTE
        assert (outside == NAN_BYTE).all(), "something around out= was written"


def changing(world: World, device: pa.devices.base.Device) -> dict[str, Any]:
    """The keywords by which rows change on their way in, and scores before the softmax."""
    case, turned, keywords = world.case, world.turned, {}
    if case.rope:
        rope = pa.Rope(**case.rope)
        keywords["rope"] = rope if turned.positions is None else rope.at(turned.positions)
    for name, bias in turned.biases.items():
        if case.append or name == "q_bias":
            keywords[name] = device.asarray(bias)
    if case.logn:
        keywords["logn_max_position"] = case.logn
    if world.slopes is not None:
        keywords["alibi_slopes"] = device.asarray(world.slopes)
    if world.masks:
        keywords["mask"] = device.asarray(np.concatenate([mask.reshape(-1) for mask in world.masks]))
    return keywords


def compare(world: World, found: np.ndarray[Any, Any], lse: np.ndarray[Any, Any] | None) -> None:
    """Every sequence's rows within their bounds."""
    results, limits = world.expected()
    start = 0
    for b, (result, limit) in enumerate(zip(results, limits, strict=True)):
        rows = slice(start, start + len(result.out))
        start = rows.stop
        check(f"out of sequence {b}", found[rows].astype(np.float64), result.out, limit.out)
        if lse is not None:
            assert lse.dtype == np.float32
            check(f"lse of sequence {b}", lse[rows].astype(np.float64), result.lse, limit.lse)


def check(what: str, found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], bound: np.ndarray[Any, Any]) -> None:
    ratio, index = worst(found, expected, bound)
    assert ratio <= 1.0, f"{what}: {found[index]} at {index}, expected {expected[index]} +- {bound[index]:.2e}; {ratio:.1f} times the bound"


def arrays(world: World, device: pa.devices.base.Device) -> tuple[Any, Any, Any]:
    """q, k, v on the device; views of one buffer if the case says so."""
    if not world.case.fused:
        return tuple(device.asarray(x) for x in (world.q, world.k, world.v))
    heads, kv_heads = world.case.num_heads, world.case.num_kv_heads
    buffer = device.asarray(np.concatenate([world.q, world.k, world.v], axis=1))
    return buffer[:, :heads], buffer[:, heads : heads + kv_heads], buffer[:, heads + kv_heads :]


def room_for(case: Case, q: Any, device: pa.devices.base.Device) -> tuple[Any, Any]:
    """(NaN-filled memory, the view of it that is out=), or two None."""
    if case.out == "new":
        return None, None
    tokens, heads, dim = q.shape
    width = heads if case.out == "given" else heads + 2
    room = device.asarray(np.full((tokens + 2 * GUARD, width, dim * 2), NAN_BYTE, np.uint8)).view(q.dtype)
    return room, room[GUARD : GUARD + tokens, :heads]


def guarded(case: Case, outside: np.ndarray[Any, Any], tokens: int) -> np.ndarray[Any, Any]:
    """The part of `outside`, the bytes of such memory, that belongs to out=."""
    return outside[GUARD : GUARD + tokens, : case.num_heads]
