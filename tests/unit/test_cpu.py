"""CpuDevice: what the table of cases does not see: small chunks, bounded memory, long prompts."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import reference
from pagedattn.devices import cpu_attention
from tests.attention.cases import CASES, Case
from tests.attention.test_attention import test_case as run_case

CHUNKED = [
    case for case in CASES if case.id.startswith(("prefill-ramp", "window", "all-options", "spoiled", "sinks", "full", "chunk", "mixed"))
]


@pytest.mark.parametrize("case", CHUNKED, ids=lambda case: case.id)
def test_chunks_of_any_size(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_QUERY_ROWS", 48)
    monkeypatch.setattr(cpu_attention, "_SCORES", 1 << 12)
    monkeypatch.setattr(cpu_attention, "_ELEMENTS", 1 << 12)
    run_case(case, "cpu")


def test_memory_of_a_long_prompt_is_bounded() -> None:
    tokens, heads, dim = 3000, 4, 64
    cache = pa.KVCache(tokens // 64 + 1, num_kv_heads=1, head_dim=dim, device="cpu")
    sequence = cache.new_sequence()
    q = np.ones((tokens, heads, dim), np.float16)
    batch = cache.extend([sequence], [tokens])
    pa.append(q[:, :1], q[:, :1], cache, batch)
    out = np.empty_like(q)
    tracemalloc.start()
    pa.paged_attention(q, cache, batch, out=out)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scores = heads * tokens * tokens * 4
    assert peak < scores / 4
    np.testing.assert_allclose(out.astype(np.float32), 1.0, rtol=1e-3)


def test_values_that_overflow_float16_become_infinite_without_a_warning() -> None:
    cache = pa.KVCache(1, num_kv_heads=1, head_dim=64, block_len=16, dtype="float16", device="cpu")
    batch = cache.extend([cache.new_sequence()], [2])
    v = np.full((2, 1, 64), 65504, np.float16)
    out = pa.paged_attention(np.ones((2, 1, 64), np.float16), cache, batch, k=np.full_like(v, np.inf), v=v)
    assert np.isnan(out).all()


def test_the_reference_reads_its_own_bytes() -> None:
    """The witness's offsets, against a literal walk: layers, heads, K before V, tokens."""
    shape = reference.Shape(num_kv_heads=2, head_dim=8, block_len=4, num_layers=2, dtype="float16")
    cells = np.arange(2 * 2 * 2 * 4 * 8, dtype=np.uint16).reshape(2, 2, 2, 4, 8)  # layer, head, K or V, token, dim
    pool = cells.reshape(1, -1).view(np.uint8).copy()
    assert pool.shape == (1, shape.block_bytes)
    k, v = reference.read_rows(pool, [0], 3, 1, shape)
    np.testing.assert_array_equal(k, cells[1, :, 0, :3].swapaxes(0, 1))
    np.testing.assert_array_equal(v, cells[1, :, 1, :3].swapaxes(0, 1))
    blank = np.zeros_like(pool)
    reference.write_rows(blank, [0], 1, k[1:], v[1:], 1, shape)
    again = reference.read_rows(blank, [0], 3, 1, shape)
    np.testing.assert_array_equal(again[0][1:], k[1:])
    np.testing.assert_array_equal(again[1][1:], v[1:])
    assert not again[0][0].any()
