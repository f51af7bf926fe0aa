"""CpuDevice: the operations in vectorised NumPy, float32 inside, over the same bytes in the pool as on a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import arch as archs
from pagedattn import dispatch, dtypes, quant
from pagedattn.devices.base import Device
from pagedattn.prepare import prepare
from pagedattn.workspace import require

if TYPE_CHECKING:
    from pagedattn.layout import Affine
    from pagedattn.parallel import ContextParallel
    from pagedattn.problem import Problem

Array = np.ndarray[Any, Any]

# What one step holds in float32: query rows (token, head of a group) per KV head, scores, and values of K. Small enough for a cache's last
# level, large enough that NumPy's cost per call does not count.
_QUERY_ROWS = 512
_SCORES = 1 << 21
_ELEMENTS = 1 << 19
_ALIGNMENT = 64  # bytes: where JAX shares memory without a copy


class _SmallestGpu:
    """What dispatch asks of a device, of the GPU that wants the least workspace."""

    arch = source = archs.parse("sm_80")
    sm_count, model = 1, ""

    def address(self, x: Any) -> int:
        return 0


def host_memory(address: int, num_bytes: int) -> Array:
    """Memory of this process as a uint8 array."""
    return np.frombuffer(memoryview((ctypes.c_char * num_bytes).from_address(address)), np.uint8)


class CpuDevice(Device):
    """The host's memory; `arch` is None, for nothing is compiled.

    Every sequence is walked in chunks of queries and of keys with an online softmax, so memory stays bounded however long it is. Sums run
    in float32, in an order that does not depend on the rest of the batch. `num_splits` is accepted and changes nothing: there are no idle
    processors to give a split to.
    """

    def __init__(self) -> None:
        self.name = "cpu"
        self.index = 0
        self.arch = None
        self.array_type = np.ndarray

    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Array:
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        memory = np.empty(size + _ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % _ALIGNMENT
        aligned: Array = memory[start : start + size].view(kind).reshape(shape)
        return aligned

    def zeros(self, shape: Sequence[int], dtype: Any) -> Array:
        return np.zeros(shape, dtype)

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        return np.asarray(x, dtype, order="C")

    def memory_at(self, address: int, num_bytes: int) -> Array:
        return host_memory(address, num_bytes)

    def to_host(self, x: Any) -> Array:
        return np.asarray(x)

    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        pool[np.asarray(targets, np.intp)] = pool[np.asarray(sources, np.intp)]

    def prepare(self, problem: Problem) -> None:
        """Nothing, but a workspace that no GPU would take is refused here, too."""
        if problem.workspace is not None:
            require(problem.workspace.nbytes, dispatch.select(problem, _SmallestGpu()))

    def run(self, problem: Problem) -> None:
        if problem.op == "append":
            _append(problem)
        elif problem.op == "gather":
            _gather(problem)
        else:
            # infinities and NaN behave as on a GPU: they spread, and nobody warns
            with np.errstate(all="ignore"):
                _attention(problem)

    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        with np.errstate(all="ignore"):
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


class _Rows(NamedTuple):
    """K or V of one layer, as views of the pool.

    Attributes
    ----------
    data : array (num_blocks, num_kv_heads, block_len, elements)
        Rows of T, or of packed codes.
    params : array (num_blocks, num_kv_heads, block_len, 2), or None
        (scale, zero) of each row of codes.
    bits : int
        Width of a code.
    """

    data: Array
    params: Array | None
    bits: int

    def write(self, places: tuple[Any, ...], rows: Array) -> None:
        if self.params is None:
            self.data[places] = rows
        else:
            self.data[places], self.params[places] = quant.quantise(rows, self.bits)

    def read(self, places: tuple[Any, ...]) -> Array:
        """Rows of T."""
        data = self.data[places]
        return data if self.params is None else quant.dequantise(data, self.params[places], self.bits)

    def dense(self, blocks: Array) -> Array:
        """The rows of some blocks, float32 (num_kv_heads, tokens, head_dim)."""
        data = self.data[blocks].swapaxes(0, 1)
        if self.params is None:
            wide = data.astype(np.float32, order="C")
        else:
            wide = quant.to_float32(data, self.params[blocks].swapaxes(0, 1), self.bits)
        return wide.reshape(len(wide), -1, wide.shape[-1])


class _Contiguous(NamedTuple):
    """K or V of one sequence, (tokens, num_kv_heads, head_dim), as blocks of `block_len` tokens that follow each other."""

    rows: Array
    block_len: int

    def dense(self, blocks: Array) -> Array:
        """The rows of blocks that follow each other, float32 (num_kv_heads, tokens, head_dim)."""
        return self.rows[blocks[0] * self.block_len : (blocks[-1] + 1) * self.block_len].swapaxes(0, 1).astype(np.float32)


_Source = _Rows | _Contiguous


def _rows(problem: Problem) -> tuple[_Rows, _Rows]:
    """K and V of the problem's layer."""
    layout, pool = problem.layout, problem.pool
    stored, dtype = dtypes.of(layout.kv_dtype), dtypes.of(layout.dtype).numpy
    elsewhere = problem.batch.blocks
    block_bytes = layout.block_bytes if elsewhere is None else elsewhere.unit
    blocks = len(pool) if elsewhere is None else (len(pool) - layout.block_bytes) // block_bytes + 1

    def view(places: Affine, kind: np.dtype[Any], elements: int) -> Array:
        shape = (blocks, layout.num_kv_heads, layout.block_len, elements)
        strides = (block_bytes, places.per_head, places.per_token, kind.itemsize)
        return np.ndarray(shape, kind, buffer=pool, offset=places.at(problem.layer, 0, 0), strides=strides)

    def rows(data: Affine, params: Affine) -> _Rows:
        elements = layout.row_bytes // stored.numpy.itemsize
        return _Rows(view(data, stored.numpy, elements), view(params, dtype, 2) if layout.quantised else None, stored.bits)

    return rows(layout.k_rows, layout.k_params), rows(layout.v_rows, layout.v_params)


def _places(problem: Problem, counts: Array) -> tuple[Array, Array]:
    """Sequence and position of each sequence's last `counts` tokens, one sequence after the other."""
    sequence = np.repeat(np.arange(problem.batch.batch_size), counts)
    starts = np.cumsum(counts) - counts
    return sequence, np.arange(len(sequence)) + np.repeat(problem.batch.seqlens_k - counts - starts, counts)


def _found(problem: Problem, sequence: Array, index: Array) -> tuple[Any, ...]:
    """Where in the pool the tokens are that sequences keep at some indices."""
    block_len = problem.layout.block_len
    return problem.batch.block_table[sequence, index // block_len], slice(None), index % block_len


def _append(problem: Problem) -> None:
    cp, finished = problem.cp, problem.batch.finished
    sequence, position = _places(problem, problem.batch.seqlens_q)
    mine = position % cp.size == cp.rank
    if finished is not None:
        mine &= ~finished.astype(bool)[sequence]
    places = _found(problem, sequence[mine], position[mine] // cp.size)
    new_k, new_v, extras = problem.k, problem.v, problem.extras
    if extras is not None:
        new_k = prepare(new_k, extras.k_bias, extras, problem.batch)
        new_v = prepare(new_v, extras.v_bias, extras, problem.batch, turning=False)
    for rows, new in zip(_rows(problem), (new_k, new_v), strict=True):
        rows.write(places, new[mine])


def _gather(problem: Problem) -> None:
    sequence, position = _places(problem, problem.batch.seqlens_k)
    finished = problem.batch.finished
    live = slice(None) if finished is None else ~finished.astype(bool)[sequence]
    places = _found(problem, sequence[live], position[live])
    for rows, found in zip(_rows(problem), (problem.k, problem.v), strict=True):
        found[live] = rows.read(places)


def _attention(problem: Problem) -> None:
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


def _sources(problem: Problem) -> Iterator[tuple[_Source, _Source, Array]]:
    """K, V and the blocks of each sequence."""
    batch, block_len = problem.batch, problem.layout.block_len
    if problem.op == "attention":
        k, v = _rows(problem)
        for table in batch.block_table:
            yield k, v, table
        return
    start = 0
    for length in batch.seqlens_k.tolist():
        part = slice(start, start + length)
        start += length
        yield _Contiguous(problem.k[part], block_len), _Contiguous(problem.v[part], block_len), np.arange(-(-length // block_len))


def _attend(problem: Problem, k: _Source, v: _Source, table: Array, tokens: slice, position: int, length: int, mask: Array | None) -> None:
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
