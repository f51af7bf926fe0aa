"""PyTorch's scaled_dot_product_attention over a contiguous copy of the keys, by each of its backends; varlen_attn for ragged batches."""

from __future__ import annotations

import inspect
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers import Form, Peer, UnfitError

if TYPE_CHECKING:
    from benchmarks.work_table import Workload

BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def peers() -> list[Peer]:
    if not torch.cuda.is_available():
        raise ImportError(f"PyTorch {torch.__version__} finds no GPU")
    cudnn = torch.backends.cudnn.version()
    found = []
    for name, backend in BACKENDS.items():
        version = f"PyTorch {torch.__version__}" + (f", cuDNN {cudnn}" if "cuDNN" in name else "")
        found.append(Peer(name, version, "cuDNN" not in name, partial(_forms, backend)))
    return [*found, Peer("varlen_attn", f"PyTorch {torch.__version__}", True, _varlen)]


@lru_cache(maxsize=1)
def _flat(work: Workload) -> list[tuple[Any, Any]]:
    """K and V of each layer as tensors (tokens, num_kv_heads, head_dim)."""
    found = [work.keys_and_values(layer) for layer in range(work.layers)]
    return [(torch.from_dlpack(k), torch.from_dlpack(v)) for k, v in found]


@lru_cache(maxsize=1)
def _dense(work: Workload) -> list[tuple[Any, Any]]:
    """K and V of each layer, (batch, num_kv_heads, tokens, head_dim), contiguous."""
    row = work.row
    shape = (len(row.seqlens_k), row.seqlens_k[0], row.num_kv_heads, work.head_dim)
    return [tuple(x.view(shape).transpose(1, 2).contiguous() for x in pair) for pair in _flat(work)]


def _forms(backend: SDPBackend, work: Workload) -> list[Form]:
    if not work.row.uniform:
        raise UnfitError("ragged batches are varlen_attn's")
    return _decode(backend, work) if work.row.decode else _prefill(backend, work)


def _form(backend: SDPBackend, work: Workload, name: str, q: Any, layers: list[tuple[Any, Any]], **keywords: Any) -> Form:
    def call(i: int) -> Any:
        k, v = layers[i % len(layers)]
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v, **keywords)

    heads, tokens = work.row.num_heads, sum(work.row.seqlens_q)

    def rows(out: Any) -> Any:
        """Decode's heads follow each other in any form; prefill's tokens stand behind their heads."""
        if work.row.decode:
            return out.reshape(tokens, heads, work.head_dim).contiguous()
        return out.transpose(1, 2).reshape(tokens, heads, work.head_dim).contiguous()

    return Form(name, call, rows)


def _decode(backend: SDPBackend, work: Workload) -> list[Form]:
    """A group's heads as rows of one query tile, without a mask, so that K and V are read once; or as PyTorch's own grouped heads."""
    row, q, layers = work.row, torch.from_dlpack(work.q), _dense(work)
    batch, group = len(row.seqlens_k), row.num_heads // row.num_kv_heads
    forms = [_form(backend, work, "group as query rows", q.view(batch, row.num_kv_heads, group, work.head_dim), layers)]
    if group > 1 and backend != SDPBackend.EFFICIENT_ATTENTION:  # which has no grouped heads
        forms.append(_form(backend, work, "enable_gqa", q.view(batch, row.num_heads, 1, work.head_dim), layers, enable_gqa=True))
    return forms


def _prefill(backend: SDPBackend, work: Workload) -> list[Form]:
    row, layers = work.row, _dense(work)
    tokens, keys, batch = row.seqlens_q[0], row.seqlens_k[0], len(row.seqlens_q)
    q = torch.from_dlpack(work.q).view(batch, tokens, row.num_heads, work.head_dim).transpose(1, 2).contiguous()
    if backend == SDPBackend.EFFICIENT_ATTENTION:
        if tokens != keys:
            raise UnfitError("its causal mask starts at the first key: no chunks")
        wide = [tuple(x.repeat_interleave(row.num_heads // row.num_kv_heads, dim=1) for x in pair) for pair in layers]
        return [_form(backend, work, "heads repeated", q, wide, is_causal=True)]
    if tokens == keys:
        return [_form(backend, work, "enable_gqa", q, layers, is_causal=True, enable_gqa=True)]
    if backend == SDPBackend.CUDNN_ATTENTION:
        raise UnfitError("its causal mask starts at the first key: no chunks")
    return [_form(backend, work, "causal_lower_right", q, layers, attn_mask=causal_lower_right(tokens, keys), enable_gqa=True)]


def _varlen(work: Workload) -> list[Form]:
    """Ragged decode: a group's heads as query rows of their sequence."""
    from torch.nn.attention.varlen import varlen_attn

    row = work.row
    if row.uniform or not row.decode:
        raise UnfitError("asked for ragged decode only: the backends above take dense batches")
    batch, group = len(row.seqlens_k), row.num_heads // row.num_kv_heads
    heads = torch.from_dlpack(work.q).view(batch, row.num_kv_heads, group, work.head_dim)
    q = heads.transpose(1, 2).reshape(batch * group, row.num_kv_heads, work.head_dim)
    cu_q = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * group
    cu_k = torch.from_dlpack(work.batch.cu_seqlens_k).clone()
    layers = _flat(work)
    grouped = {"enable_gqa": False} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def call(i: int) -> Any:
        k, v = layers[i % len(layers)]
        return varlen_attn(q, k, v, cu_q, cu_k, group, max(row.seqlens_k), **grouped)

    def rows(out: Any) -> Any:
        return out.view(batch, group, row.num_kv_heads, work.head_dim).transpose(1, 2).reshape(work.q.shape).contiguous()

    return [Form("group as query rows", call, rows)]
