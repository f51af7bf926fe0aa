"""K and V where they lie, as NumPy sees them: rows of a pool's blocks, or of contiguous arrays; what append and gather do with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import dtypes, quant
from pagedattn.prepare import prepare

if TYPE_CHECKING:
    from pagedattn.layout import Affine
    from pagedattn.problem import Problem

Array = np.ndarray[Any, Any]


class Rows(NamedTuple):
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


class Contiguous(NamedTuple):
    """K or V of one sequence, (tokens, num_kv_heads, head_dim), as blocks of `block_len` tokens that follow each other."""

    rows: Array
    block_len: int

    def dense(self, blocks: Array) -> Array:
        """The rows of blocks that follow each other, float32 (num_kv_heads, tokens, head_dim)."""
        return self.rows[blocks[0] * self.block_len : (blocks[-1] + 1) * self.block_len].swapaxes(0, 1).astype(np.float32)


Source = Rows | Contiguous


def of_pool(problem: Problem) -> tuple[Rows, Rows]:
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

    def rows(data: Affine, params: Affine) -> Rows:
        elements = layout.row_bytes // stored.numpy.itemsize
        return Rows(view(data, stored.numpy, elements), view(params, dtype, 2) if layout.quantised else None, stored.bits)

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


def append(problem: Problem) -> None:
    """The problem's new rows into the pool."""
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
    for rows, new in zip(of_pool(problem), (new_k, new_v), strict=True):
        rows.write(places, new[mine])


def gather(problem: Problem) -> None:
    """All rows of the problem's sequences out of the pool."""
    sequence, position = _places(problem, problem.batch.seqlens_k)
    finished = problem.batch.finished
    live = slice(None) if finished is None else ~finished.astype(bool)[sequence]
    places = _found(problem, sequence[live], position[live])
    for rows, found in zip(of_pool(problem), (problem.k, problem.v), strict=True):
        found[live] = rows.read(places)
