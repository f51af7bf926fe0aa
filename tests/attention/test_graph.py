"""A decode step with everything given: the same batch, outputs and workspace, step after step; on a GPU captured once and replayed."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.workspace import COUNTER_BYTES

EXAMPLE = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "cuda_graph.py"))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.mark.parametrize("device", DEVICES)
def test_every_replayed_step_is_that_of_a_call(device: str) -> None:
    """Replayed results equal those of plain calls over what the cache held then: lengths grow over block borders, tables with them."""
    results, cache, sequences = EXAMPLE["on_a_stream"](device)
    assert len(results) == 20
    lengths = [cache.seqlen(s) for s in sequences]
    assert lengths == [120, 21, 51]
    table = cache.device.to_host(cache.batch(sequences).block_table)
    for back, (q, out) in enumerate(reversed(results)):
        batch = pa.Batch(table, [1] * 3, [n - back for n in lengths], device=cache.device)
        for layer in range(EXAMPLE["LAYERS"]):
            expected = pa.paged_attention(cache.device.asarray(q[layer]), cache, batch, layer=layer)
            np.testing.assert_allclose(
                out[layer], cache.device.to_host(expected), rtol=0, atol=2e-3, err_msg=f"{back} steps before the last"
            )


@pytest.mark.cuda
@pytest.mark.parametrize("num_splits", [None, 4, "fixed:64"])
def test_nothing_is_allocated_within_a_call(num_splits: Any) -> None:
    import cupy

    cache = pa.KVCache(64, num_kv_heads=2, head_dim=64, block_len=16, device="cuda")
    sequences = [cache.new_sequence() for _ in range(3)]
    cache.extend(sequences, [300, 5, 17])
    batch = cache.extend(sequences, [1] * 3)
    q, k = cupy.ones((3, 8, 64), np.float16), cupy.ones((3, 2, 64), np.float16)
    out, lse = cupy.empty_like(q), cupy.empty((3, 8), np.float32)
    sizes = {"batch_size": 3, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64, "max_seqlen_k": 301}
    gpu = {"arch": cache.device.arch.name, "sm_count": cache.device.sm_count}
    wanted = pa.workspace_bytes(**sizes, num_splits=num_splits, **gpu)  # type: ignore[arg-type]
    workspace = cupy.zeros(wanted, np.uint8)

    def call() -> None:
        pa.paged_attention(q, cache, batch, k=k, v=k, out=out, lse=lse, return_lse=True, num_splits=num_splits, workspace=workspace)

    call()
    taken: list[int] = []

    class Hook(cupy.cuda.MemoryHook):
        name = "notes what is taken from the pool"

        def malloc_preprocess(self, **keywords: Any) -> None:
            taken.append(keywords["mem_size"])

    with Hook():
        call()
    assert taken == []
    assert not workspace[:COUNTER_BYTES].any(), "counters are zero between launches"


@pytest.mark.cuda
def test_the_level_below() -> None:
    """A kernel launched by its struct writes what the operation writes."""
    import cupy

    cache = pa.KVCache(16, num_kv_heads=2, head_dim=64, block_len=16, num_layers=2, device="cuda")
    twin = pa.KVCache(16, num_kv_heads=2, head_dim=64, block_len=16, num_layers=2, device="cuda")
    cache.pool[...], twin.pool[...] = 0, 0
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 5])
    k, v = cupy.random.default_rng(0).standard_normal((2, 25, 2, 64), dtype=np.float32).astype(np.float16)
    pa.append(k, v, cache, batch, layer=1)
    layout, p = twin.layout, np.zeros((), pa.AttentionParams)
    p["k"], p["v"], p["k_stride"], p["v_stride"], p["num_tokens"] = k.data.ptr, v.data.ptr, 128, 128, 25
    p["pool"], p["block_bytes"], p["head_bytes"] = twin.pool.data.ptr + layout.layer_bytes, layout.block_bytes, layout.k_rows.per_head
    p["v_offset"], p["block_len_log2"], p["max_blocks"] = layout.v_rows.base - layout.k_rows.base, 4, batch.max_blocks
    p["block_table"], p["cu_seqlens_q"] = batch.block_table.data.ptr, batch.cu_seqlens_q.data.ptr
    p["cu_seqlens_k"], p["batch_size"], p["num_kv_heads"] = batch.cu_seqlens_k.data.ptr, 2, 2
    assert cache.device.arch is not None
    kernel = pa.compile(pa.KernelSpec(op="append", head_dim=64, arch=cache.device.arch.name))
    kernel(p, 25)
    np.testing.assert_array_equal(cupy.asnumpy(twin.pool), cupy.asnumpy(cache.pool))
    assert cache.pool.any()
