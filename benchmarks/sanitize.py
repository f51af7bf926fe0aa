"""Every kernel of this GPU once, on small ragged batches, for NVIDIA's checker to watch.

compute-sanitizer --tool memcheck|racecheck|initcheck|synccheck python -m benchmarks.sanitize [DEVICE [HEAD_DIM]]

DEVICE "cuda+sm_75" or "cuda+sm_70" stands for the kernels that such a GPU would get. Without a HEAD_DIM all are run.
"""

from __future__ import annotations

import itertools
import sys

import cupy as cp
import numpy as np

import pagedattn as pa
from pagedattn import dtypes
from pagedattn.layout import HEAD_DIMS

SEQLENS_Q = [1, 40, 1, 0, 130, 1]
SEQLENS_K = [700, 40, 33, 5, 200, 64]


def once(device: str, dtype: str, kv_dtype: str | None, head_dim: int, block_len: int, num_heads: int) -> None:
    """One append, attention in every way of splitting, a decode step, gather and merge."""
    rng = cp.random.default_rng(0)
    layout = pa.BlockLayout(2, head_dim, block_len, 1, dtype, kv_dtype)
    # zeroed: decode reads whole tiles, rows past a sequence's end included, and masks them; initcheck shall report only what is not so
    pool = cp.zeros((100, layout.block_bytes), cp.uint8)
    cache = pa.KVCache(
        100, num_kv_heads=2, head_dim=head_dim, block_len=block_len, dtype=dtype, kv_dtype=kv_dtype, device=device, pool=pool
    )
    sequences = [cache.new_sequence() for _ in SEQLENS_K]
    element = dtypes.of(dtype).numpy

    def normal(tokens: int, heads: int) -> cp.ndarray:
        return rng.standard_normal((tokens, heads, head_dim), dtype=cp.float32).astype(element)

    before = [k - q for q, k in zip(SEQLENS_Q, SEQLENS_K, strict=True)]
    pa.append(normal(sum(before), 2), normal(sum(before), 2), cache, cache.extend(sequences, before))
    batch = cache.extend(sequences, SEQLENS_Q)
    tokens = sum(SEQLENS_Q)
    q, k, v = normal(tokens, num_heads), normal(tokens, 2), normal(tokens, 2)
    sinks = cp.zeros(num_heads, cp.float32)
    out, lse = pa.paged_attention(q, cache, batch, k=k, v=v, return_lse=True)
    for keywords in (
        {"num_splits": 3, "window_size": 50},
        {"num_splits": "fixed:256"},
        {"window_size": 50, "softcap": 20.0, "sinks": sinks},
        {"causal": False},
        {"mask": mask_of(SEQLENS_Q, SEQLENS_K), "alibi_slopes": cp.full(num_heads, 0.1, cp.float32)},
    ):
        pa.paged_attention(q, cache, batch, return_lse=True, **keywords)
    merged, _ = pa.merge([out, out], [lse, lse])
    for softcap in (None, 20.0):
        step = cache.extend(sequences, [1] * len(sequences))  # decode writes the new rows itself, where it can
        k, v = normal(len(sequences), 2), normal(len(sequences), 2)
        pa.paged_attention(normal(len(sequences), num_heads), cache, step, k=k, v=v, softcap=softcap)
    pa.gather(cache, step)
    assert bool(cp.isfinite(merged.astype(cp.float32)).all())
    assert np.allclose(cp.asnumpy(merged.astype(cp.float32)), cp.asnumpy(out.astype(cp.float32)), atol=1e-2)


def mask_of(seqlens_q: list[int], seqlens_k: list[int], kept: float = 0.5) -> cp.ndarray:
    """So many keys at random, in memory that ends where the mask does: the checker sees a word that is read behind it."""
    keys = sum(q * k for q, k in zip(seqlens_q, seqlens_k, strict=True))
    mask = cp.ndarray((keys,), bool, cp.cuda.MemoryPointer(cp.cuda.Memory(keys), 0))
    mask[...] = cp.random.default_rng(1).random(keys, dtype=cp.float32) < kept
    return mask


def masked(device: str, dtype: str, kv_dtype: str | None, head_dim: int) -> None:
    """Sequences that are long enough for the kernel that looks for what a mask keeps: much, little, or nothing."""
    new, tokens = [130, 3, 64], [1101, 3, 77]
    cache = pa.KVCache(24, num_kv_heads=2, head_dim=head_dim, block_len=64, dtype=dtype, kv_dtype=kv_dtype, device=device)
    rng, element = cp.random.default_rng(0), dtypes.of(dtype).numpy
    q, k, v = (
        rng.standard_normal((n, heads, head_dim), dtype=cp.float32).astype(element)
        for n, heads in ((sum(new), 8), (sum(tokens), 2), (sum(tokens), 2))
    )
    whole = cache.extend([cache.new_sequence() for _ in tokens], tokens)
    pa.append(k, v, cache, whole)
    batch = pa.Batch(whole.block_table, new, tokens, device=device)
    for kept, causal in ((0.5, True), (1e-4, False), (0.0, False)):
        out = pa.paged_attention(q, cache, batch, mask=mask_of(new, tokens, kept), causal=causal)
        assert bool(cp.isfinite(out.astype(cp.float32)).all())


def parts(device: str, dtype: str, kv_dtype: str | None, head_dim: int) -> None:
    """New tokens at the end of a long prompt: several CTAs share the keys of each query tile."""
    cache = pa.KVCache(33, num_kv_heads=2, head_dim=head_dim, block_len=64, dtype=dtype, kv_dtype=kv_dtype, device=device)
    rng, sequence = cp.random.default_rng(0), cache.new_sequence()
    for new in (2060, 40):
        batch = cache.extend([sequence], [new])
        q, k, v = (rng.standard_normal((new, n, head_dim), dtype=cp.float32).astype(dtypes.of(dtype).numpy) for n in (8, 2, 2))
        pa.append(k, v, cache, batch)
    for keywords in ({}, {"mask": mask_of([40], [2100])}):
        shared = pa.paged_attention(q, cache, batch, **keywords)
        whole = pa.paged_attention(q, cache, batch, num_splits=1, **keywords)  # by the other kernel
        assert np.allclose(cp.asnumpy(shared.astype(cp.float32)), cp.asnumpy(whole.astype(cp.float32)), atol=2e-2)


def long(device: str, dtype: str) -> None:
    """One sequence that is long enough for the prefill kernel of long sequences."""
    tokens, rng = 2048, cp.random.default_rng(0)
    cache = pa.KVCache(tokens // 64, num_kv_heads=2, head_dim=128, block_len=64, dtype=dtype, device=device)
    batch = cache.extend([cache.new_sequence()], [tokens])
    q, k, v = (rng.standard_normal((tokens, n, 128), dtype=cp.float32).astype(dtypes.of(dtype).numpy) for n in (16, 2, 2))
    out = pa.paged_attention(q, cache, batch, k=k, v=v)
    whole = pa.paged_attention(q, cache, batch, num_splits=1)  # by the other kernel
    assert np.allclose(cp.asnumpy(out.astype(cp.float32)), cp.asnumpy(whole.astype(cp.float32)), atol=2e-2)


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    head_dims = tuple(map(int, sys.argv[2:])) or HEAD_DIMS
    source = pa.devices.get(device).source
    dtypes_here = ("float16", "bfloat16") if source and source.family == "sm80" else ("float16",)
    for dtype, kv_dtype, head_dim in itertools.product(dtypes_here, (None, "int8", "int4"), head_dims):
        for block_len, num_heads in ((16, 8), (64, 24)):
            once(device, dtype, kv_dtype, head_dim, block_len, num_heads)
            cp.cuda.Device().synchronize()
        parts(device, dtype, kv_dtype, head_dim)
        masked(device, dtype, kv_dtype, head_dim)
        cp.cuda.Device().synchronize()
        print(dtype, kv_dtype or dtype, head_dim, flush=True)
    for dtype in dtypes_here:
        long(device, dtype)
        cp.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
