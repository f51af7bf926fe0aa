"""append: the new tokens' keys and values go into the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import checks
from pagedattn.arrays import adopt, stream_of
from pagedattn.extras import resolve
from pagedattn.parallel import WHOLE
from pagedattn.problem import Extras, Problem

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache
    from pagedattn.parallel import ContextParallel


def append(
    k: Any,
    v: Any,
    cache: KVCache,
    batch: Batch,
    *,
    layer: int = 0,
    k_bias: Any = None,
    v_bias: Any = None,
    rope: Any = None,
    cp: Any = None,
    stream: Any = None,
) -> None:
    """Write the new tokens' keys and values into the cache.

    Parameters
    ----------
    k, v : array (num_tokens, num_kv_heads, head_dim), of the cache's dtype
        The rows of each sequence's last `seqlens_q` tokens, one sequence after the other. Heads and dims contiguous; any token stride.
    cache : KVCache
    batch : Batch
        Which tokens these are; `cache.extend` made room for them.
    layer : int
        The cache's layer.
    k_bias, v_bias : array (num_kv_heads, head_dim), of the cache's dtype, optional
        Added to the rows first.
    rope : Rope, or what its `at` returns, optional
        Turns keys, after their bias, before they are quantised.
    cp : ContextParallel, optional
        The rank that this is, None: the cache's. Every rank is given all rows, and writes those of its own tokens.
    stream : optional
        The CUDA stream: of CuPy or PyTorch, or its address. None: the current one, for tensors PyTorch's.

    Raises
    ------
    ArgumentError
        Shapes, dtypes, devices or ranges that do not fit; nothing was written.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
    >>> batch = cache.extend([cache.new_sequence()], [3])
    >>> k = v = np.ones((3, 2, 64), np.float16)
    >>> pa.append(k, v, cache, batch)
    >>> float(pa.gather(cache, batch)[0].sum())
    384.0
    """
    layer = checks.layer_of(cache, batch, layer)
    if cp is not None or cache.cp is not None:
        cp = checks.parallel(cp, cache, batch)
    if k is None:
        adopt(k, cache.device, "k")  # which refuses it; to write_rows it says that there are no rows
    if stream is None:
        stream = stream_of(k, cache.device)
    elif cache.device.array_type is np.ndarray:
        cache.device.using(stream)  # which refuses what is no stream, as a GPU does
    extras = None
    if not (k_bias is v_bias is rope is batch.finished is None):
        with cache.device.using(stream):
            extras = resolve(cache, batch, k_bias=k_bias, v_bias=v_bias, rope=rope)
    write_rows(k, v, cache, batch, layer, extras, stream, cp)


def write_rows(
    k: Any,
    v: Any,
    cache: KVCache,
    batch: Batch,
    layer: int,
    extras: Extras | None,
    stream: Any,
    cp: ContextParallel | None,
    q: Any = None,
    seen: Any = None,
) -> None:
    """The new rows, if there are any, into the cache; and queries, if there are any, to `seen`, as the scores will see them."""
    layout, device = cache.layout, cache.device
    given: Any = None
    if k is not None:
        k, v = adopt(k, device, "k", stream), adopt(v, device, "v", stream)
        given = k.shape, k.strides, k.dtype, v.shape, v.strides, v.dtype
    queries = None if q is None else (q.shape, q.strides)
    asked = None if extras is None else extras.packed("append", device.address) if device.arch else b""
    key = ("append", layout.kind, given, queries, asked, cp)
    plan = batch.plans.get(key)
    if plan is None or not device.aligned(q, k, v, seen):
        checks.batch_of(cache, batch, cp)
        if k is not None:
            shape = (batch.num_tokens, layout.num_kv_heads, layout.head_dim)
            checks.rows(k, cache, "k", shape)
            checks.rows(v, cache, "v", shape)
        pool = batch.pool_of(cache)
        rows: dict[str, Any] = {"q": q, "k": k, "v": v, "out": seen}
        problem = Problem("append", layout, pool, layer, batch, **rows, cp=cp or WHOLE, extras=extras, stream=stream, key=key)
        plan = device.prepare(problem)
    if plan is None:
        device.run(problem)
    else:
        device.follow(plan, (q, k, v, seen, None, None), batch.pool_of(cache), layer, stream)
