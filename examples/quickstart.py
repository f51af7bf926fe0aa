"""Paged attention on one screen: two prompts are prefilled together, then both decode a token. On a GPU where there is one."""

import numpy as np

import pagedattn as pa

cache = pa.KVCache(num_blocks=64, num_kv_heads=8, head_dim=128, block_len=16)
rng = np.random.default_rng(0)


def project(num_tokens):
    """Stands for a model's projections: 32 query heads on 8 KV heads."""
    return [cache.device.asarray(rng.standard_normal((num_tokens, heads, 128)).astype(np.float16)) for heads in (32, 8, 8)]


sequences = [cache.new_sequence(), cache.new_sequence()]
batch = cache.extend(sequences, [100, 7])  # room for the prompts, of any lengths
q, k, v = project(batch.num_tokens)
pa.append(k, v, cache, batch)
out = pa.paged_attention(q, cache, batch)  # (107, 32, 128)

batch = cache.extend(sequences, [1, 1])
q, k, v = project(batch.num_tokens)
out = pa.paged_attention(q, cache, batch, k=k, v=v)  # appends and attends, here in one launch: (2, 32, 128)
print(pa.explain(q, cache, batch, k=k, v=v), cache, sep="\n")
