"""FlashAttention's own package: decode with its KV cache call where lengths are one, else its variable-length call; contiguous keys."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import flash_attn
import torch

from benchmarks.peers import Form, Peer

if TYPE_CHECKING:
    from benchmarks.work_table import Workload


def peers() -> list[Peer]:
    return [Peer("flash-attn", flash_attn.__version__, True, _forms)]


@lru_cache(maxsize=1)
def _flat(work: Workload) -> list[tuple[Any, Any]]:
    """K and V of each layer as tensors (tokens, num_kv_heads, head_dim)."""
    found = [work.keys_and_values(layer) for layer in range(work.layers)]
    return [(torch.from_dlpack(k), torch.from_dlpack(v)) for k, v in found]


def _forms(work: Workload) -> list[Form]:
    row, layers, q = work.row, _flat(work), torch.from_dlpack(work.q)
    batch, tokens = len(row.seqlens_k), sum(row.seqlens_q)
    shape = (batch, row.seqlens_k[0], row.num_kv_heads, work.head_dim)
    cu_q, cu_k = (torch.from_dlpack(x).clone() for x in (work.batch.cu_seqlens_q, work.batch.cu_seqlens_k))
    longest = (max(row.seqlens_q), max(row.seqlens_k))

    def cached(i: int) -> Any:
        k, v = (x.view(shape) for x in layers[i % len(layers)])
        return flash_attn.flash_attn_with_kvcache(q[:, None], k, v, cache_seqlens=row.seqlens_k[0], causal=True)

    def ragged(i: int) -> Any:
        return flash_attn.flash_attn_varlen_func(q, *layers[i % len(layers)], cu_q, cu_k, *longest, causal=True)

    def rows(out: Any) -> Any:
        return out.reshape(tokens, row.num_heads, work.head_dim).contiguous()

    forms = [Form("flash_attn_varlen_func", ragged, rows)]
    if row.decode and row.uniform:
        forms.append(Form("flash_attn_with_kvcache", cached, rows))
    return forms
