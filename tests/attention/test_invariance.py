"""What must not change a result: the rest of the batch, the order of blocks, a second run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.spec import KernelSpec
from pagedattn.values import splits as cuts_of
from pagedattn.workspace import COUNTER_BYTES
from tests.attention import world
from tests.attention.cases import Case
from tests.attention.world import World, cache_of, make

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))
LENGTHS = ((1, 700), (1, 33), (1, 2100), (1, 256), (40, 300))


def outputs(made: World, device: Any, sequences: list[int], **keywords: Any) -> list[bytes]:
    """The bytes of each chosen sequence's rows, when just these sequences are in the batch; over a copy of the pool."""
    cache = cache_of(made, device)
    starts = np.cumsum(made.seqlens_q) - made.seqlens_q
    q = np.concatenate([made.q[starts[b] : starts[b] + made.seqlens_q[b]] for b in sequences])
    batch = pa.Batch(made.table[sequences], made.seqlens_q[sequences], made.seqlens_k[sequences], device=device)
    out = cache.device.to_host(pa.paged_attention(cache.device.asarray(q), cache, batch, **keywords))
    return [part.tobytes() for part in np.split(out, np.cumsum(made.seqlens_q[sequences])[:-1])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", [None, "int8", "int4"])
@pytest.mark.parametrize("keywords", [{}, {"window_size": 333}], ids=["plain", "window"])
@pytest.mark.parametrize("splits", ["fixed:1024", "fixed:256", "fixed:96", "fixed:32", 3])
def test_cuts_do_not_depend_on_the_batch(device: str, splits: str | int, keywords: dict[str, Any], kv_dtype: str | None) -> None:
    made = make(Case("invariance", "", (*LENGTHS, (1, 255), (1, 257), (1, 96), (1, 1025)), kv_dtype=kv_dtype))
    together = outputs(made, device, [*range(9)], num_splits=splits, **keywords)
    for b in range(9):
        assert outputs(made, device, [b], num_splits=splits, **keywords) == [together[b]], f"sequence {b} alone"
    some = [8, 2, 5, 0, 2]
    assert outputs(made, device, some, num_splits=splits, **keywords) == [together[b] for b in some]


@pytest.mark.parametrize("device", ["interpreter:sm_90", "interpreter:sm_75", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("splits", "dim"), [("fixed:64", 128), (2, 64)])
def test_short_queries_do_not_depend_on_longer_ones(device: str, splits: str | int, dim: int) -> None:
    """Eight heads of a group could share a query tile where all queries are short. Scores are spread, so that references move."""
    made = make(Case("short", "", ((16, 150), (17, 40)), num_heads=16, num_kv_heads=2, head_dim=dim))
    (alone,) = outputs(made, device, [0], num_splits=splits, softmax_scale=0.3)
    assert outputs(made, device, [0, 1], num_splits=splits, softmax_scale=0.3)[0] == alone


WINDOWED: dict[str, Any] = {"window_size": 300}
CUTS = [
    ("sm_80", None, {"num_splits": "fixed:256"}),
    ("sm_80", None, {"num_splits": "fixed:1024", **WINDOWED}),
    ("sm_80", None, {"num_splits": 3}),
    ("sm_80", "int8", {"num_splits": "fixed:96", **WINDOWED}),
    ("sm_80", "int8", {"num_splits": "fixed:1024"}),
    ("sm_80", "int4", {"num_splits": "fixed:512"}),
    ("sm_80", "int4", {"num_splits": "fixed:1184", **WINDOWED}),
    ("sm_75", None, {"num_splits": "fixed:16"}),
    ("sm_75", "int4", {"num_splits": "fixed:1024"}),
    ("sm_70", None, {"num_splits": "fixed:256", **WINDOWED}),
    ("sm_70", "int8", {"num_splits": "fixed:512"}),
]


@pytest.mark.parametrize(("target", "kv_dtype", "keywords"), CUTS, ids=str)
def test_cuts_do_not_depend_on_the_gpu(target: str, kv_dtype: str | None, keywords: dict[str, Any]) -> None:
    """Warps and CTAs meet in other parts of the sequences on a GPU of more multiprocessors, in another batch and in another order.

    The sums of groups are compared as well: in float32, where 16 bits of the result hide what a few roundings change.
    """
    lengths = ((1, 1300), (1, 33), (1, 512), (1, 513), (1, 511), (1, 1))
    made = make(Case("gpus", "", lengths, num_heads=8, num_kv_heads=2, head_dim=64, block_len=16, kv_dtype=kv_dtype))
    found, sums = {}, {}
    for sm_count in (1, 2, 5, 13):
        device = InterpreterDevice(target)
        device.sm_count = sm_count
        sizes = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "kv_dtype": kv_dtype, "num_splits": keywords["num_splits"]}
        room = np.zeros(pa.workspace_bytes(batch_size=6, max_seqlen_k=1300, **sizes, arch=target, sm_count=sm_count), np.uint8)  # type: ignore[arg-type]
        found[sm_count] = outputs(made, device, [*range(6)], workspace=room, **keywords)
        spec = KernelSpec("decode", head_dim=64, kv_dtype=kv_dtype, arch=target, splits="cut")
        places = 6 * 2 * spec.group_places(cuts_of(keywords["num_splits"]), 1300)
        sums[sm_count] = room[COUNTER_BYTES : COUNTER_BYTES + places * spec.piece_bytes].tobytes()
        assert any(sums[1])
        assert found[sm_count] == found[1]
        assert sums[sm_count] == sums[1]
        for some in ([0], [4, 3], [5, 2, 0, 1]):
            assert outputs(made, device, some, **keywords) == [found[1][b] for b in some]
    balanced = outputs(made, device, [0], **{name: value for name, value in keywords.items() if name == "window_size"})
    assert balanced != found[1][:1]  # the order of sums shows


@pytest.mark.parametrize("device", ["interpreter", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("splits", ["fixed:64", 3])
def test_cuts_of_a_batch_that_was_made_for_longer_sequences(device: str, splits: str | int) -> None:
    """As a captured step is replayed: the room for groups is that of the longest sequences, whatever is assigned."""
    case = Case("assigned", "", ((1, 700), (1, 90), (1, 400)), num_heads=4, num_kv_heads=1, head_dim=64, block_len=16)
    made = make(case)
    cache = cache_of(made, device)
    q = cache.device.asarray(made.q)
    room = pa.Batch(made.table, made.seqlens_q, made.seqlens_k, device=device)
    pa.paged_attention(q, cache, room, num_splits=splits)
    lengths = np.array([65, 90, 384])
    shorter = pa.Batch(made.table, made.seqlens_q, lengths, device=device)
    room.assign(shorter)
    found, wanted = (cache.device.to_host(pa.paged_attention(q, cache, batch, num_splits=splits)) for batch in (room, shorter))
    assert room.max_seqlen_k == 700
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("splits", [None, 3])
def test_a_second_run_gives_the_same_bits(device: str, splits: int | None) -> None:
    made = make(Case("again", "", LENGTHS, dtype="bfloat16"))
    runs = [outputs(made, device, [0, 1, 2, 3, 4], num_splits=splits) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kv_dtype", [None, "int8", "int4"])
@pytest.mark.parametrize("keywords", [{}, {"num_splits": 3}, {"window_size": 50}], ids=["plain", "splits", "window"])
def test_what_lies_past_the_end_changes_nothing(
    keywords: dict[str, Any], kv_dtype: str | None, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN, infinities, large and small numbers, as rows, codes and parameters."""
    case = Case("past", "", LENGTHS, kv_dtype=kv_dtype)
    found = []
    for byte in (0xFF, 0x7C, 0x7B, 0x00):
        monkeypatch.setattr(world, "NAN_BYTE", byte)
        found.append(outputs(make(case), device, [0, 1, 2, 3, 4], **keywords))
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("device", DEVICES)
def test_a_fork_reads_what_its_source_wrote(device: str) -> None:
    rng = np.random.default_rng(0)
    where = pa.devices.get(device)
    cache = pa.KVCache(40, num_kv_heads=2, head_dim=64, block_len=16, num_layers=2, device=device)

    def write(sequence: int, count: int) -> None:
        batch = cache.extend([sequence], [count])
        for layer in (0, 1):
            k, v = rng.standard_normal((2, count, 2, 64)).astype(np.float16)
            pa.append(where.asarray(k), where.asarray(v), cache, batch, layer=layer)

    def read(sequence: int) -> list[np.ndarray]:
        return [where.to_host(x) for layer in (0, 1) for x in pa.gather(cache, cache.batch([sequence]), layer=layer)]

    first = cache.new_sequence()
    write(first, 37)
    before = read(first)
    second = cache.fork(first)
    write(second, 30)
    write(first, 3)
    for old, new, other in zip(before, read(first), read(second), strict=True):
        np.testing.assert_array_equal(new[:37], old)
        np.testing.assert_array_equal(other[:37], old)
    # truncated into a shared block: the next token goes to a copy
    held = read(first)
    cache.truncate(second, 20)
    write(second, 1)
    for old, new, other in zip(held, read(first), read(second), strict=True):
        np.testing.assert_array_equal(new, old)
        np.testing.assert_array_equal(other[:20], old[:20])
