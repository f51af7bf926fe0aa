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
from torch import library

import pagedattn as pa
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
    rope : Rope, or what its `at` returns, optional
        Turns queries and keys of every call with this step. Layers that turn otherwise take a step of their own.

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

    def __init__(self, cache: KVCache, batch: Batch, rope: Any = None) -> None:
        self.cache, self.batch, self.rope = cache, batch, rope
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


def append(k: Any, v: Any, step: Step, *, layer: int = 0, k_bias: Any = None, v_bias: Any = None) -> None:
    """`pagedattn.append` as an operator; the parameters are those of that function, for tensors.

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
    torch.ops.pagedattn.append(k, v, step.pool, step.number, layer, k_bias, v_bias)


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
    alibi_slopes: Any = None,
    sinks: Any = None,
    mask: Any = None,
    q_bias: Any = None,
    k_bias: Any = None,
    v_bias: Any = None,
    logn_max_position: int | None = None,
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
    options = (softmax_scale, causal, window_size, softcap, alibi_slopes, sinks, mask, q_bias, k_bias, v_bias, logn_max_position, splits)
    out, lse = torch.ops.pagedattn.paged_attention(q, k, v, step.pool, step.number, layer, *options, return_lse)
    return (out, lse) if return_lse else out


def _step(number: Any) -> Step:
    step = _steps.get(int(number))
    if step is None:
        raise ArgumentError("`step` must be kept until the compiled code that takes it has run; this one is gone.")
    return step


def _append(k: Any, v: Any, pool: Any, number: Any, layer: int, k_bias: Any, v_bias: Any) -> None:
    step = _step(number)
    pa.append(k, v, step.cache_at(pool), step.batch, layer=layer, k_bias=k_bias, v_bias=v_bias, rope=step.rope)


def _paged_attention(q: Any, k: Any, v: Any, pool: Any, number: Any, layer: int, *options: Any) -> tuple[Any, Any]:
    step, keywords = _step(number), dict(zip(_OPTIONS, options, strict=True))
    splits = keywords["num_splits"]
    keywords["num_splits"] = int(splits) if splits is not None and splits.isdecimal() else splits
    result = pa.paged_attention(q, step.cache_at(pool), step.batch, k=k, v=v, layer=layer, rope=step.rope, **keywords)
    return result if keywords["return_lse"] else (result, q.new_empty(0, dtype=torch.float32))


def _fake_append(*arguments: Any) -> None:
    """Nothing, for tensors without memory."""


def _fake_paged_attention(q: Any, *arguments: Any) -> tuple[Any, Any]:
    """Results of the right shapes, without memory."""
    return q.new_empty(q.shape), q.new_empty(q.shape[:2] if arguments[-1] else 0, dtype=torch.float32)


_OPTIONS = {
    "softmax_scale": "float?",
    "causal": "bool",
    "window_size": "SymInt?",
    "softcap": "float?",
    "alibi_slopes": "Tensor?",
    "sinks": "Tensor?",
    "mask": "Tensor?",
    "q_bias": "Tensor?",
    "k_bias": "Tensor?",
    "v_bias": "Tensor?",
    "logn_max_position": "SymInt?",
    "num_splits": "str?",
    "return_lse": "bool",
}
_STEP = "Tensor(a!) pool, Tensor step, SymInt layer"
# Attention alone only reads the pool; but an operator that may append first has one schema.
library.custom_op(
    "pagedattn::append", _append, mutates_args=("pool",), schema=f"(Tensor k, Tensor v, {_STEP}, Tensor? k_bias, Tensor? v_bias) -> ()"
).register_fake(_fake_append)
library.custom_op(
    "pagedattn::paged_attention",
    _paged_attention,
    mutates_args=("pool",),
    schema=f"(Tensor q, Tensor? k, Tensor? v, {_STEP}, {', '.join(f'{t} {n}' for n, t in _OPTIONS.items())}) -> (Tensor, Tensor)",
).register_fake(_fake_paged_attention)
