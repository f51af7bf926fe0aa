"""Attention in NumPy, float32 inside: each sequence in chunks of queries and of keys, with an online softmax."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.devices.cpu_rows import Contiguous, Source, of_pool
from pagedattn.prepare import prepare

if TYPE_CHECKING:
    from pagedattn.parallel import ContextParallel
    from pagedattn.problem import Problem

Array = np.ndarray[Any, Any]

# What one step holds in float32: query rows (token, head of a group) per KV head, scores, and values of K. Small enough for a cache's last
# level, large enough that NumPy's cost per call does not count.
_QUERY_ROWS = 512
_SCORES = 1 << 21
_ELEMENTS = 1 << 19


def attention(problem: Problem) -> None:
    """The problem's queries over its keys, into `out` and `lse`."""
    sources = _sources(problem)
    batch, layout, extras = problem.batch, problem.layout, problem.extras
    if extras is not None:
        problem = replace(problem, q=prepare(problem.q, extras.q_bias, extras, batch, logn=True))
    group = problem.q.shape[1] // layout.num_kv_heads
    step = max(1, _QUERY_ROWS // group)
    masks = None if extras is None or extras.mask is None else extras.mask.astype(bool)
    start = entry = 0
    lengths = zip(batch.seqlens_q.tolist(), batch.seqlens_k.tolist(), strict=True)
    finished = np.zeros(batch.batch_size, bool) if batch.finished is None else batch.finished
    for (k, v, table), skipped, (length_q, length_k) in zip(sources, finished, lengths, strict=True):
        for first in range(0, 0 if skipped else length_q, step):
            last = min(first + step, length_q)
            mask = None if masks is None else masks[entry + first * length_k : entry + last * length_k].reshape(-1, length_k)
            _attend(problem, k, v, table, slice(start + first, start + last), length_k - length_q + first, length_k, mask)
        start += length_q
        entry += length_q * length_k


def _sources(problem: Problem) -> Iterator[tuple[Source, Source, Array]]:
    """K, V and the blocks of each sequence."""
    batch, block_len = problem.batch, problem.layout.block_len
    if problem.op == "attention":
        k, v = of_pool(problem)
        for table in batch.block_table:
            yield k, v, table
        return
    start = 0
    for length in batch.seqlens_k.tolist():
        part = slice(start, start + length)
        start += length
        yield Contiguous(problem.k[part], block_len), Contiguous(problem.v[part], block_len), np.arange(-(-length // block_len))


def _attend(problem: Problem, k: Source, v: Source, table: Array, tokens: slice, position: int, length: int, mask: Array | None) -> None:
    """Attention of the query rows `tokens`, of which the first stands at `position` of a sequence of `length` tokens.

    Keys are counted as they are here: under context parallelism key i stands at i * size + rank. `mask`: bool (queries, length), or None.
    """
    heads, dim, block_len = problem.layout.num_kv_heads, problem.layout.head_dim, problem.layout.block_len
    count = tokens.stop - tokens.start
    q = problem.q[tokens].reshape(count, heads, -1, dim).transpose(1, 0, 2, 3).astype(np.float32)
    q *= np.float32(problem.softmax_scale)
    group = q.shape[2]
    q = q.reshape(heads, count * group, dim)

    window, cp = problem.window_size, problem.cp
    lowest = cp.own(max(0, position + 1 - window)) if window else 0
    end = cp.own(min(length, position + count) if problem.causal else length)
    mask = mask if mask is None else mask[:, cp.rank :: cp.size]
    step = max(1, min(_SCORES // (heads * count * group), _ELEMENTS // (heads * dim)) // block_len) * block_len
    top = np.full((heads, count * group, 1), -np.inf, np.float32)
    total = np.zeros_like(top)
    summed = np.zeros_like(q)
    for low in range(lowest // block_len * block_len, end if lowest < end else 0, step):
        first, last = max(low, lowest), min(low + step, end)
        blocks = table[low // block_len : -(-last // block_len)]
        keys = k.dense(blocks)[:, first - low : last - low]
        values = v.dense(blocks)[:, first - low : last - low]
        scores = q @ keys.swapaxes(1, 2)
        if problem.softcap:
            scores /= np.float32(problem.softcap)
            np.tanh(scores, out=scores)
            scores *= np.float32(problem.softcap)
        if problem.extras is not None and problem.extras.alibi_slopes is not None:
            _add_alibi(scores.reshape(heads, count, group, -1), problem.extras.alibi_slopes, _positions(cp, first, last), position)
        kept = _kept(problem, position, count, first, last)
        if mask is not None:
            kept = mask[:, first:last] if kept is None else kept & mask[:, first:last]
        if kept is not None:
            # fmin lets -inf win over a NaN that the query does not see
            seen = scores.reshape(heads, count, group, last - first)
            np.fmin(seen, np.where(kept, np.float32(np.inf), np.float32(-np.inf))[:, None], out=seen)
        higher = np.maximum(top, scores.max(axis=2, keepdims=True))
        shift = np.where(np.isneginf(higher), np.float32(0), higher)
        np.subtract(scores, shift, out=scores)
        weights = np.exp(scores, out=scores)
        rescale = np.exp(top - shift)
        total = total * rescale + weights.sum(axis=2, keepdims=True)
        summed *= rescale
        summed += weights @ values if kept is None else _weighted(weights, values, kept)
        top = higher
    if problem.sinks is not None:
        sinks = np.tile(problem.sinks.reshape(heads, 1, group), (1, count, 1)).reshape(top.shape)
        higher = np.maximum(top, sinks)
        shift = np.where(np.isneginf(higher), np.float32(0), higher)
        rescale = np.exp(top - shift)
        total = total * rescale + np.exp(sinks - shift)
        summed *= rescale
        top = higher
    np.divide(summed, total, out=summed, where=total != 0)
    problem.out[tokens] = summed.reshape(heads, count, group, dim).transpose(1, 0, 2, 3).reshape(count, heads * group, dim)
    if problem.lse is not None:
        lse = np.where(total != 0, top + np.log(total), -np.inf)
        problem.lse[tokens] = lse.reshape(heads, count, group).transpose(1, 0, 2).reshape(count, heads * group)


def _positions(cp: ContextParallel, first: int, last: int) -> Array:
    """Where the keys `first` .. `last`-1 that are here stand in their sequence."""
    return np.arange(first, last) * cp.size + cp.rank


def _add_alibi(scores: Array, slopes: Array, keys: Array, position: int) -> None:
    """Add slope * (key - query) to scores (num_kv_heads, queries, heads of a group, keys)."""
    heads, count, group, _ = scores.shape
    distance = (keys - np.arange(position, position + count)[:, None]).astype(np.float32)
    scores += slopes.reshape(heads, 1, group, 1) * distance[None, :, None]


def _kept(problem: Problem, position: int, count: int, first: int, last: int) -> Array | None:
    """Which of the keys `first` .. `last`-1 each of `count` queries from `position` on sees, (count, keys); None: all of them."""
    window, key = problem.window_size, _positions(problem.cp, first, last)
    behind = problem.causal and key[-1] > position
    ahead = bool(window) and key[0] <= position + count - 1 - window
    if not behind and not ahead:
        return None
    query = np.arange(position, position + count)[:, None]
    kept = key <= query if behind else np.ones((count, last - first), bool)
    return kept & (query - key < window) if ahead else kept


def _weighted(weights: Array, values: Array, kept: Array) -> Array:
    """weights @ values, in which a value that a query does not see counts for nothing even if it is infinite or NaN."""
    if np.isfinite(values.sum()):  # a NaN or an infinity survives a sum
        return weights @ values
    finite = np.isfinite(values)
    result = weights @ np.where(finite, values, np.float32(0))
    count = len(kept)
    parts = weights.reshape(len(weights), count, weights.shape[1] // count, -1)
    odd = np.flatnonzero(~finite.all(axis=(0, 2)))
    step = max(1, _ELEMENTS // result.size)
    for keys in (odd[i : i + step] for i in range(0, len(odd), step)):
        # 0 * finite changes nothing; a finite element has been counted already
        rest = np.where(finite[:, keys], np.float32(0), values[:, keys])[:, None, None]
        products = np.where(kept[None, :, None, keys, None], parts[..., keys, None] * rest, np.float32(0))
        result += np.where(finite[:, None, None, keys], np.float32(0), products).sum(axis=3).reshape(result.shape)
    return result


def merge(outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
    """Partial results by log-sum-exp, into `out` and `lse`."""
    parts = np.stack([np.asarray(x, np.float32) for x in lses])
    top = parts.max(axis=0)
    weights = np.exp(parts - np.where(np.isneginf(top), 0, top))
    total = weights.sum(axis=0)
    summed = np.zeros(out.shape, np.float32)
    for part, weight in zip(outs, weights, strict=True):
        np.add(summed, part.astype(np.float32) * weight[..., None], out=summed, where=weight[..., None] != 0)
    np.divide(summed, total[..., None], out=summed, where=total[..., None] != 0)
    out[...] = summed
    lse[...] = top + np.log(total)
    lse[np.isneginf(top)] = -np.inf
