"""FlashInfer's paged wrappers, over a copy of the pages in its layout, in the same random order."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import cupy as cp
import flashinfer
import numpy as np
import torch

from benchmarks.peers import Form, Peer, UnfitError

if TYPE_CHECKING:
    from benchmarks.work_table import Workload

WORKSPACE = 512 << 20


def peers() -> list[Peer]:
    version = flashinfer.__version__
    found = [Peer("FlashInfer fa2", version, True, partial(_forms, "fa2"))]
    if torch.cuda.get_device_capability() == (9, 0):
        found.append(Peer("FlashInfer fa3", version, False, partial(_forms, "fa3")))
    return found


@lru_cache(maxsize=1)
def _pages(work: Workload) -> list[tuple[Any, Any]]:
    """K and V of each layer, (pages, page_size, num_kv_heads, head_dim): "NHD"."""
    size, lengths = work.cache.layout.block_len, work.row.seqlens_k
    token = np.concatenate([np.arange(n) for n in lengths])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    at = cp.asarray(work.table[sequence, token // size].astype(np.int64) * size + token % size)
    found = []
    for layer in range(work.layers):
        pair = []
        for x in work.keys_and_values(layer):
            pages = cp.zeros((work.num_blocks * size, *x.shape[1:]), x.dtype)
            pages[at] = x
            pair.append(torch.from_dlpack(pages.reshape(-1, size, *x.shape[1:])))
        found.append((pair[0], pair[1]))
    return found


def _indices(work: Workload) -> tuple[Any, Any, Any]:
    """Where each sequence's pages begin in the list of pages, the list, and how full the last page is."""
    size, lengths = work.cache.layout.block_len, np.asarray(work.row.seqlens_k)
    counts = -(-lengths // size)
    begins = np.concatenate([[0], np.cumsum(counts)])
    pages = np.concatenate([work.table[b, :n] for b, n in enumerate(counts)])
    return tuple(torch.tensor(x, dtype=torch.int32, device="cuda") for x in (begins, pages, lengths - (counts - 1) * size))


def _forms(backend: str, work: Workload) -> list[Form]:
    row, layers, (begins, pages, last) = work.row, _pages(work), _indices(work)
    q = torch.from_dlpack(work.q)
    sizes = (row.num_heads, row.num_kv_heads, work.head_dim, work.cache.layout.block_len)
    room = torch.zeros(WORKSPACE, dtype=torch.uint8, device="cuda")
    forms = []
    if row.decode:
        if backend != "fa2":
            raise UnfitError("its decode is measured as fa2")
        for name, tensor_cores in (("tensor cores", True), ("CUDA cores", False)):
            wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(room, "NHD", use_tensor_cores=tensor_cores)
            wrapper.plan(begins, pages, last, *sizes, q_data_type=q.dtype, kv_data_type=q.dtype)
            forms.append(Form(name, partial(_run, wrapper, q, layers), _same))
            room = torch.zeros_like(room)  # a plan lives in its wrapper's workspace
        return forms
    wrapper = flashinfer.BatchPrefillWithPagedKVCacheWrapper(room, "NHD", backend=backend)
    new = torch.tensor(np.concatenate([[0], np.cumsum(row.seqlens_q)]), dtype=torch.int32, device="cuda")
    wrapper.plan(new, begins, pages, last, *sizes, causal=True, q_data_type=q.dtype, kv_data_type=q.dtype)
    return [Form("paged", partial(_run, wrapper, q, layers), _same)]


def _run(wrapper: Any, q: Any, layers: list[tuple[Any, Any]], i: int) -> Any:
    return wrapper.run(q, layers[i % len(layers)])


def _same(out: Any) -> Any:
    return out.contiguous()
