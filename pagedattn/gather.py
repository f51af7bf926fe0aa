"""gather: a batch's keys and values out of the cache."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pagedattn import checks, dtypes
from pagedattn.arrays import stream_of
from pagedattn.errors import ArgumentError
from pagedattn.extras import resolve
from pagedattn.problem import Problem
from pagedattn.results import new_result

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache


def gather(cache: KVCache, batch: Batch, *, layer: int = 0, cp: Any = None, out: Any = None, stream: Any = None) -> tuple[Any, Any]:
    """The batch's keys and values out of the cache.

    Parameters
    ----------
    cache : KVCache
    batch : Batch
    layer : int
        The cache's layer.
    cp : ContextParallel, optional
        The rank that this is; None: the cache's.
    out : pair of arrays (sum of seqlens_k, num_kv_heads, head_dim), of the cache's dtype, contiguous, optional
        Where k and v go; it is returned.
    stream : optional
        The CUDA stream; None: the current one, with `out` that of its library.

    Returns
    -------
    k, v : array (sum of seqlens_k, num_kv_heads, head_dim), of the cache's dtype
        One sequence after the other, on the cache's device. Under context parallelism, with `cp` or a cache of a rank, the rows of this
        rank's tokens only: `cp.own(batch.seqlens_k)` of each sequence.

    Raises
    ------
    ArgumentError
        A layer, batch or `out` that does not fit; nothing was written.

    Examples
    --------
    >>> import pagedattn as pa
    >>> cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
    >>> k, v = pa.gather(cache, cache.extend([cache.new_sequence()], [5]))
    >>> k.shape
    (5, 2, 64)
    """
    layer = checks.layer_of(cache, batch, layer)
    cp = checks.parallel(cp, cache, batch)
    if cp is not None:
        checks.batch_of(cache, batch, cp)
        batch = batch.own(cp)
    checks.batch_of(cache, batch)
    layout, device = cache.layout, cache.device
    shape, dtype = (batch.total_k, layout.num_kv_heads, layout.head_dim), dtypes.of(layout.dtype).numpy
    if out is None:
        k, v = (new_result(shape, dtype, 0, cache, batch, stream) for _ in "kv")
    else:
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise ArgumentError(f"`out` must be a pair of arrays, for k and v; got {type(out).__name__}.")
        if stream is None:
            stream = stream_of(out[0], device)
        k, v = (checks.gathered(x, cache, f"out[{i}]", shape, stream) for i, x in enumerate(out))
        checks.apart(k, v, cache)
    extras = None if batch.finished is None else resolve(cache, batch)
    with nullcontext() if stream is not None else device.meeting():
        device.run(Problem("gather", layout, batch.pool_of(cache), layer, batch, k=k, v=v, extras=extras, stream=stream))
    return (k, v) if out is None else tuple(out)
