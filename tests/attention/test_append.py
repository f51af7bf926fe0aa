"""append and gather: bit for bit what the reference puts into the pool, and reads from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes, quant, reference
from tests.attention.cases import BLOCK_LENS, HEAD_DIMS, MIXED, PREFILL, Case, Lengths
from tests.attention.rows import mixture
from tests.attention.world import NAN_BYTE, scattered, shape_of

CASES = [
    *(
        Case(f"d{d}-block{b}", "rows of every width, in blocks of every length", MIXED, head_dim=d, block_len=b)
        for d, b in zip(HEAD_DIMS, BLOCK_LENS, strict=True)
    ),
    *(Case(f"d{d}-bf16", "the same bits whatever they mean", MIXED, head_dim=d, block_len=16, dtype="bfloat16") for d in (64, 96)),
    Case("layers", "the middle of three layers", PREFILL, num_layers=3, block_len=32),
    Case("fused", "views of one buffer", PREFILL, fused=True),
    Case("heads1", "a single head", PREFILL, num_kv_heads=1, block_len=16),
    Case("heads32", "more heads than a CTA's warps", MIXED, num_kv_heads=32, head_dim=64),
    Case("decode", "one row of each sequence", tuple((1, n) for n in (1, 16, 17, 64, 65, 1000)), block_len=16),
    Case("empty", "nothing to move", ()),
    Case("no-queries", "nothing to append, much to gather", ((0, 100), (0, 0))),
]
CASES += [
    replace(case, id=f"{case.id}-{kv_dtype}", kv_dtype=kv_dtype)
    for kv_dtype in ("int8", "int4")
    for case in (
        *CASES,
        *(Case(f"d{d}-bf16", "lanes that idle, in the other type", MIXED, head_dim=d, dtype="bfloat16") for d in (128, 192, 256)),
    )
]
# The kernels' quantiser on rows of every kind
ODD = [
    Case(f"odd-d{dim}-{dtype}-{kv_dtype}", why, ((15, 40),), head_dim=dim, dtype=dtype, kv_dtype=kv_dtype)
    for dim, why in ((96, "lanes that idle"), (256, "a row is a warp's"))
    for dtype in ("float16", "bfloat16")
    for kv_dtype in ("int8", "int4")
]


def layer_of(case: Case) -> int:
    return case.num_layers // 2


ROWS = [
    *((case, device) for case in CASES for device in ("cpu", "cuda")),
    *((case, f"interpreter:{target}") for case in ODD for target in ("sm_80", *(("sm_70",) if case.dtype == "float16" else ()))),
]


@pytest.mark.parametrize(
    ("case", "device"),
    [pytest.param(*row, id=f"{row[0].id}-{row[1]}", marks=[pytest.mark.cuda] if row[1] == "cuda" else []) for row in ROWS],
)
def test_append_then_gather(case: Case, device: str) -> None:
    rng = np.random.default_rng(7)
    shape, layer = shape_of(case), layer_of(case)
    seqlens_q, seqlens_k = (np.array([pair[i] for pair in case.lengths], np.int64) for i in (0, 1))
    table, num_blocks = scattered(rng, seqlens_k, case.block_len)
    size = (2, int(seqlens_k.sum()), case.num_kv_heads, case.head_dim)
    if case.kv_dtype is None:
        k, v = rng.integers(0, 2**16, size, np.uint16)  # NaN payloads and subnormals move like the rest
    else:
        k, v = mixture(rng, size[0] * size[1] * size[2], case.head_dim, case.dtype).reshape(size)
    where = pa.devices.get(device)
    expected = np.full((num_blocks, shape.block_bytes), NAN_BYTE, np.uint8)
    cache = pa.KVCache(
        num_blocks,
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        block_len=case.block_len,
        num_layers=case.num_layers,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        pool=where.asarray(expected.copy()),
        device=device,
    )
    old = seqlens_k - seqlens_q
    for lengths_new, lengths_now, skipped in ((old, old, old * 0), (seqlens_q, seqlens_k, old)):
        rows = rows_of(seqlens_k, skipped, lengths_now)
        append(case, cache, pa.Batch(table, lengths_new, lengths_now, device=device), k[rows], v[rows], layer)
        start = 0
        for row, first, last in zip(table.tolist(), skipped.tolist(), lengths_now.tolist(), strict=True):
            part = slice(start, start + last - first)
            reference.write_rows(expected, row, first, k[rows][part], v[rows][part], layer, shape)
            start = part.stop
        np.testing.assert_array_equal(where.to_host(cache.pool), expected)
    found = pa.gather(cache, pa.Batch(table, seqlens_q, seqlens_k, device=device), layer=layer)
    for name, rows, bits in zip("kv", found, (k, v), strict=True):
        host, given = where.to_host(rows), bits.view(dtypes.of(case.dtype).numpy)
        if case.kv_dtype is None:
            np.testing.assert_array_equal(host.view(np.uint16), bits, name)
        else:
            read = quant.dequantise(*quant.quantise(given, shape.bits), shape.bits)
            np.testing.assert_array_equal(host.astype(np.float32), read.astype(np.float32), name)


def rows_of(seqlens_k: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Indices, among all tokens, of the tokens first .. last-1 of each sequence."""
    starts = np.cumsum(seqlens_k) - seqlens_k
    parts = [np.arange(a, b) + s for a, b, s in zip(first.tolist(), last.tolist(), starts.tolist(), strict=True)]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def append(case: Case, cache: pa.KVCache, batch: pa.Batch, k: np.ndarray, v: np.ndarray, layer: int) -> None:
    """Append bit patterns, from one buffer if the case says so."""
    dtype = dtypes.of(case.dtype).numpy
    if case.fused:
        buffer = cache.device.asarray(np.concatenate([k, v, k], axis=1).view(dtype))
        heads = case.num_kv_heads
        pa.append(buffer[:, :heads], buffer[:, heads : 2 * heads], cache, batch, layer=layer)
    else:
        pa.append(cache.device.asarray(k.view(dtype)), cache.device.asarray(v.view(dtype)), cache, batch, layer=layer)


def test_lengths_of_the_table_reach_every_edge() -> None:
    lengths: Lengths = MIXED
    assert any(n % 16 == 0 for _, n in lengths)
    assert any(q == 0 < n for q, n in lengths)


@pytest.mark.cuda
def test_a_pool_of_more_than_4_gib() -> None:
    """Byte offsets that int32 and uint32 cannot hold."""
    where = pa.devices.get("cuda")
    layout = pa.BlockLayout(num_kv_heads=8, head_dim=128, block_len=256, num_layers=2)
    num_blocks = 5 * 2**30 // layout.block_bytes + 1
    cache = pa.KVCache(num_blocks, num_kv_heads=8, head_dim=128, block_len=256, num_layers=2, device="cuda")
    rng = np.random.default_rng(0)
    table = np.array([[num_blocks - 1, 0, num_blocks // 2]], np.int32)
    k, v = rng.standard_normal((2, 700, 8, 128)).astype(np.float16)
    for layer in (0, 1):
        pa.append(where.asarray(k), where.asarray(v), cache, pa.Batch(table, [700], [700], device="cuda"), layer=layer)
    batch = pa.Batch(table, [1], [700], device="cuda")
    for found, rows in zip(pa.gather(cache, batch, layer=1), (k, v), strict=True):
        np.testing.assert_array_equal(where.to_host(found), rows)
    for tokens in (1, 100):
        q = rng.standard_normal((tokens, 32, 128)).astype(np.float16)
        out = pa.paged_attention(where.asarray(q), cache, pa.Batch(table, [tokens], [700], device="cuda"), layer=1)
        expected = reference.attention(q.astype(np.float64), k.astype(np.float64), v.astype(np.float64))
        np.testing.assert_allclose(where.to_host(out).astype(np.float64), expected.out, rtol=0, atol=2e-3)
