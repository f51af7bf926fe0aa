"""PyTorch's compiled code over a paged cache: append and paged attention as custom operators, which torch.compile keeps in its graphs.

Outside compiled code, pagedattn's own functions take tensors as they are, and this module is not needed.
"""

from __future__ import annotations

import copy
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch

from pagedattn import ops
from pagedattn.arrays import adopt
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import ArgumentError

_numbers = count()
_steps: WeakValueDictionary[int, Step] = WeakValueDictionary()
_pools: WeakKeyDictionary[KVCache, Any] = WeakKeyDictionary()


class Step:
    """A batch of a cache, as compiled code takes it: a new one each step compiles nothing anew. Keep it until the code has run.

    Parameters
    ----------
    cache : KVCache
    batch : Batch

    Attributes
    ----------
    pool : uint8 tensor
        The cache's memory, which the operators declare to change.
    number : int64 tensor, on the host
        What the operators know the step by; as a tensor, it is no constant of a graph.

    Examples
    --------
    >>> import torch, pagedattn as pa, pagedattn.torch
    >>> cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    >>> step = pagedattn.torch.Step(cache, cache.extend([cache.new_sequence()], [3]))
    >>> @torch.compile(fullgraph=True, backend="eager")
    ... def layer(x, step):
    ...     return pagedattn.torch.paged_attention(2 * x, step, k=x, v=x)
    >>> layer(torch.ones((3, 1, 64), dtype=torch.float16), step).shape
    torch.Size([3, 1, 64])
    """

    def __init__(self, cache: KVCache, batch: Batch) -> None:
        self.cache, self.batch = cache, batch
        if cache not in _pools:
            _pools[cache] = torch.from_numpy(cache.pool) if isinstance(cache.pool, np.ndarray) else torch.from_dlpack(cache.pool)
        self.pool = _pools[cache]
        number = next(_numbers)
        self.number = torch.tensor(number)
        _steps[number] = self

    def cache_at(self, pool: Any) -> KVCache:
        """The cache; where a compiler has put its memory elsewhere for a while, one over that."""
        if pool.data_ptr() == self.pool.data_ptr():
            return self.cache
        other = copy.copy(self.cache)
        other.pool = adopt(pool, other.device, "pool")
        return other


def append(k: Any, v: Any, step: Step, *, layer: int = 0) -> None:
    """`pagedattn.append` as an operator.

    Parameters
    ----------
    k, v : tensor (num_tokens, num_kv_heads, head_dim), of the cache's dtype
    step : Step
    layer : int

    Examples
    --------
    >>> import torch, pagedattn as pa, pagedattn.torch
    >>> cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    >>> batch = cache.extend([cache.new_sequence()], [3])
    >>> rows = torch.ones((3, 1, 64), dtype=torch.float16)
    >>> pagedattn.torch.append(rows, rows, pagedattn.torch.Step(cache, batch))
    >>> float(pa.gather(cache, batch)[0].sum())
    192.0
    """
    torch.ops.pagedattn.append(k, v, step.pool, step.number, layer)


def paged_attention(
    q: Any,
    step: Step,
    *,
    k: Any = None,
    v: Any = None,
    layer: int = 0,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    num_splits: int | str | None = None,
    return_lse: bool = False,
) -> Any:
    """`pagedattn.paged_attention` as an operator; the parameters are those of that function, for tensors.

    Examples
    --------
    >>> import torch, pagedattn as pa, pagedattn.torch
    >>> cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    >>> step = pagedattn.torch.Step(cache, cache.extend([cache.new_sequence()], [3]))
    >>> rows = torch.ones((3, 1, 64), dtype=torch.float16)
    >>> out, lse = pagedattn.torch.paged_attention(rows, step, k=rows, v=rows, return_lse=True)
    >>> out.dtype, lse.dtype, float(lse[0, 0])
    (torch.float16, torch.float32, 8.0)
    """
    splits = None if num_splits is None else str(num_splits)
    out, lse = torch.ops.pagedattn.paged_attention(
        q, k, v, step.pool, step.number, layer, softmax_scale, causal, window_size, softcap, sinks, splits, return_lse
    )
    return (out, lse) if return_lse else out


def _step(number: Any) -> Step:
    step = _steps.get(int(number))
    if step is None:
        raise ArgumentError("`step` must be kept until the compiled code that takes it has run; this one is gone.")
    return step


def _append(k: Any, v: Any, pool: Any, number: Any, layer: int) -> None:
    step = _step(number)
    ops.append(k, v, step.cache_at(pool), step.batch, layer=layer)


def _paged_attention(
    q: Any,
    k: Any,
    v: Any,
    pool: Any,
    number: Any,
    layer: int,
    softmax_scale: float | None,
    causal: bool,
    window_size: int | None,
    softcap: float | None,
    sinks: Any,
    num_splits: str | None,
    return_lse: bool,
) -> tuple[Any, Any]:
    step = _step(number)
    result = ops.paged_attention(
        q,
        step.cache_at(pool),
        step.batch,
        k=k,
        v=v,
        layer=layer,
        softmax_scale=softmax_scale,
        causal=causal,
        window_size=window_size,
        softcap=softcap,
        sinks=sinks,
        num_splits=int(num_splits) if num_splits is not None and num_splits.isdecimal() else num_splits,
        return_lse=return_lse,
    )
    return result if return_lse else (result, q.new_empty(0, dtype=torch.float32))


def _fake_append(k: Any, v: Any, pool: Any, number: Any, layer: int) -> None:
    return None


def _fake_paged_attention(q: Any, *arguments: Any) -> tuple[Any, Any]:
    """Results of the right shapes, without memory."""
    return q.new_empty(q.shape), q.new_empty(q.shape[:2] if arguments[-1] else 0, dtype=torch.float32)


# Reading is declared as changing too: an operator that may append first has one schema.
torch.library.custom_op(
    "pagedattn::append",
    _append,
    mutates_args=("pool",),
    schema="(Tensor k, Tensor v, Tensor(a!) pool, Tensor step, SymInt layer) -> ()",
).register_fake(_fake_append)
torch.library.custom_op(
    "pagedattn::paged_attention",
    _paged_attention,
    mutates_args=("pool",),
    schema=(
        "(Tensor q, Tensor? k, Tensor? v, Tensor(a!) pool, Tensor step, SymInt layer, float? softmax_scale, bool causal, "
        "SymInt? window_size, float? softcap, Tensor? sinks, str? num_splits, bool return_lse) -> (Tensor, Tensor)"
    ),
).register_fake(_fake_paged_attention)
