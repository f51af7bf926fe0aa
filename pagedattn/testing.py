"""For users' own checks: results against the float64 reference, and what the interpreter counts while a call runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import checks, reference
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.gather import gather

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache
    from pagedattn.ptx.counts import Counts

KEYWORDS = ("softmax_scale", "causal", "window_size", "softcap", "sinks", "alibi_slopes", "mask", "num_splits")
# Relative error of an output row in the Euclidean norm: a few roundings to T on the way.
TOLERANCE = {"float16": 2e-3, "bfloat16": 1.6e-2}


def assert_matches_reference(
    out: Any, q: Any, cache: KVCache, batch: Batch, *, layer: int = 0, tolerance: float | None = None, **keywords: Any
) -> float:
    """Assert that `out` is the attention of `q` over what the cache holds, computed in float64 on the host.

    Parameters
    ----------
    out, q : array (num_tokens, num_heads, head_dim)
        What `paged_attention` gave, and its queries; where rope, bias or logn change them, as they are after that.
    cache, batch, layer
        As in the call, after it.
    tolerance : float, optional
        Largest relative error of a sequence's rows in the Euclidean norm; None: 2e-3 for float16, 1.6e-2 for bfloat16.
    keywords
        softmax_scale, causal, window_size, softcap, sinks, alibi_slopes, mask, as in the call; num_splits, which changes no result.
        Rows of finished sequences are not compared.

    Returns
    -------
    float
        The largest relative error.

    Raises
    ------
    AssertionError
        With the sequence, the error and the tolerance.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> from pagedattn.testing import assert_matches_reference
    >>> cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, kv_dtype="int8", device="cpu")
    >>> batch = cache.extend([cache.new_sequence()], [20])
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 20, 2, 64)).astype(np.float16)
    >>> out = pa.paged_attention(q, cache, batch, k=k, v=v)
    >>> assert_matches_reference(out, q, cache, batch) < 1e-3
    True
    """
    device = cache.device
    for name in keywords:
        if name not in KEYWORDS:
            raise ArgumentError(f"`{name}` is no keyword of assert_matches_reference, whose own are: {', '.join(KEYWORDS)}.")
    if cache.cp is not None:
        raise UnsupportedError(
            "`cache` must hold every key; got one of a rank. Compare what `merge` makes of the ranks with attention over all keys."
        )
    k, v = (device.to_host(x).astype(np.float64) for x in gather(cache, batch, layer=layer))
    found, queries = (np.asarray(device.to_host(device.asarray(x))).astype(np.float64) for x in (out, q))
    if found.shape != queries.shape:
        raise ArgumentError(f"`out` must have the shape of q, {queries.shape}; got {found.shape}.")
    if len(found) != batch.num_tokens:
        raise ArgumentError(f"`out.shape[0]` must equal the batch's new tokens, {batch.num_tokens}; got {len(found)}.")
    keywords.pop("num_splits", None)
    masks = _masks(keywords.pop("mask", None), batch)
    for name in ("sinks", "alibi_slopes"):
        if keywords.get(name) is not None:
            keywords[name] = np.asarray(device.to_host(device.asarray(keywords[name])))
    finished = np.zeros(batch.batch_size, bool) if batch.finished is None else device.to_host(batch.finished).astype(bool)
    limit = TOLERANCE[cache.layout.dtype] if tolerance is None else tolerance
    starts_q, starts_k = (np.concatenate([[0], np.cumsum(x)]) for x in (batch.seqlens_q, batch.seqlens_k))
    worst = 0.0
    for b in np.flatnonzero(~finished):
        rows, keys = slice(starts_q[b], starts_q[b + 1]), slice(starts_k[b], starts_k[b + 1])
        expected = reference.attention(queries[rows], k[keys], v[keys], mask=masks[b], **keywords).out
        error = float(np.linalg.norm(found[rows] - expected) / max(np.linalg.norm(expected), np.finfo(np.float32).tiny))
        if not error <= limit:
            raise AssertionError(f"sequence {b} differs from float64 attention by {error:.2e} of its norm; {limit:.2e} is granted")
        worst = max(worst, error)
    return worst


def _masks(mask: Any, batch: Batch) -> list[Any]:
    """The flat mask of a call, cut into a (seqlen_q, seqlen_k) one for each sequence."""
    if mask is None:
        return [None] * batch.batch_size
    found = np.asarray(batch.device.to_host(batch.device.asarray(checks.mask(mask))))
    sizes = batch.seqlens_q * batch.seqlens_k
    if found.shape != (int(sizes.sum()),) or found.dtype.name not in ("bool", "uint8"):
        raise ArgumentError(f"`mask` must be bool of shape ({int(sizes.sum())},), flat as in the call; got {found.dtype} {found.shape}.")
    starts, shapes = np.cumsum(sizes) - sizes, zip(batch.seqlens_q, batch.seqlens_k, strict=True)
    return [found[start : start + n * m].astype(bool).reshape(n, m) for start, (n, m) in zip(starts, shapes, strict=True)]


@contextmanager
def counting(cache: KVCache) -> Iterator[list[Counts]]:
    """Count what the launches on an interpreter's cache do: a list with one Counts a launch, filled as calls are made.

    Raises
    ------
    ArgumentError
        The cache is on a device that counts nothing.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> from pagedattn.testing import counting
    >>> cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="interpreter")  # doctest: +SKIP
    >>> batch = cache.extend([cache.new_sequence()], [20])  # doctest: +SKIP
    >>> with counting(cache) as launches:  # doctest: +SKIP
    ...     pa.append(k, v, cache, batch)
    >>> print(launches[0])  # doctest: +SKIP
    """
    from pagedattn.devices.interpreter import InterpreterDevice

    device = cache.device
    if not isinstance(device, InterpreterDevice):
        raise ArgumentError(f"`cache` must be on device 'interpreter', which counts; got {device.name}.")
    seen: list[Counts] = []
    before = device.counting, device.history
    device.counting, device.history = True, seen
    try:
        yield seen
    finally:
        device.counting, device.history = before
