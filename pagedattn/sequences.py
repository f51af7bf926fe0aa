"""SequenceTable: the live sequences' ids, lengths and lists of blocks, as arrays that grow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pagedattn.errors import ArgumentError
from pagedattn.values import whole

Array = np.ndarray[Any, Any]

_INITIAL_ROWS = 16
_INITIAL_COLUMNS = 16


class SequenceTable:
    """One row per live sequence. A row is used again after its sequence is removed, an id never.

    Attributes
    ----------
    blocks : int32 (rows, columns)
        Blocks in order; entries past a sequence's last block mean nothing.
    lengths : int64 (rows,)
        Tokens.

    Examples
    --------
    >>> table = SequenceTable()
    >>> first, second = table.add(), table.add()
    >>> table.remove(first)
    >>> table.rows_of([second, table.add()]).tolist(), len(table)
    ([1, 0], 2)
    """

    __slots__ = ("_free_rows", "_next_id", "_rows", "blocks", "lengths")

    def __init__(self) -> None:
        self.blocks: Array = np.zeros((_INITIAL_ROWS, _INITIAL_COLUMNS), np.int32)
        self.lengths: Array = np.zeros(_INITIAL_ROWS, np.int64)
        self._rows: dict[int, int] = {}
        self._next_id = 0
        self._free_rows = list(range(_INITIAL_ROWS - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences; those that sequences share count for each."""
        return int(self.lengths[self.rows].sum())

    @property
    def rows(self) -> list[int]:
        """The rows of all sequences."""
        return list(self._rows.values())

    def tokens_in_blocks(self, num_blocks: int, block_len: int, own: Callable[[int], int]) -> Array:
        """How many tokens of each block belong to a sequence; the longest of those that share it counts. `own`: of so many, those here."""
        counts = np.zeros(num_blocks, np.int64)
        for row in self.rows:
            length = own(int(self.lengths[row]))
            first = np.arange(0, length, block_len)
            np.maximum.at(counts, self.blocks[row, : len(first)], np.minimum(length - first, block_len))
        return counts

    def add(self) -> int:
        """A new, empty sequence's id."""
        if not self._free_rows:
            count = len(self.lengths)
            blocks, lengths = _grown(self.blocks, 2 * count, self.blocks.shape[1]), np.zeros(2 * count, np.int64)
            lengths[:count] = self.lengths
            self.blocks, self.lengths = blocks, lengths
            self._free_rows = list(range(2 * count - 1, count - 1, -1))
        sequence, self._next_id = self._next_id, self._next_id + 1
        self._rows[sequence] = self._free_rows.pop()
        return sequence

    def remove(self, sequence: int) -> None:
        """Forget a sequence; its blocks are the caller's to release."""
        row = self.row_of(sequence)
        self.lengths[row] = 0
        del self._rows[sequence]
        self._free_rows.append(row)

    def require_columns(self, columns: int) -> None:
        """Make room for sequences of `columns` blocks."""
        if columns > self.blocks.shape[1]:
            self.blocks = _grown(self.blocks, len(self.blocks), max(columns, 2 * self.blocks.shape[1]))

    def row_of(self, sequence: int) -> int:
        """The row of one sequence; ArgumentError if there is no such sequence."""
        if not self._is_known(sequence):
            raise ArgumentError(self._unknown(sequence))
        return self._rows[sequence]

    def length_of(self, sequence: int) -> int:
        """Tokens of one sequence; ArgumentError if there is no such sequence."""
        return int(self.lengths[self.row_of(sequence)])

    def rows_of(self, sequences: Iterable[int]) -> Array:
        """The rows of distinct sequences; ArgumentError if one does not exist or is named twice."""
        try:
            ids = list(sequences)
        except TypeError:
            raise ArgumentError(f"`sequences` must be a list of ids; got {sequences!r}.") from None
        known = set(map(type, ids)) <= {int}
        rows = list(map(self._rows.get, ids)) if known else [self._rows[s] if self._is_known(s) else None for s in ids]
        if None in rows:
            raise ArgumentError(self._unknown(ids[rows.index(None)]))
        if len(set(rows)) != len(rows):
            twice = next(s for i, s in enumerate(ids) if s in ids[:i])
            raise ArgumentError(f"`sequences` must name each sequence once; {twice} is there more than once.")
        return np.array(rows, np.intp)

    def _is_known(self, sequence: object) -> bool:
        return whole(sequence) is not None and sequence in self._rows

    def _unknown(self, sequence: object) -> str:
        return f"a sequence must be an id from new_sequence() or fork() that has not been freed; got {sequence!r}. {len(self)} are alive."


def _grown(table: Array, rows: int, columns: int) -> Array:
    larger = np.zeros((rows, columns), np.int32)  # pages that nobody touches cost no memory
    larger[: table.shape[0], : table.shape[1]] = table
    return larger


def counts(num_new: Sequence[int], size: int) -> Array:
    """The new tokens of `size` sequences, checked."""
    try:
        found = np.asarray(num_new)
    except ValueError as error:
        raise ArgumentError(f"`num_new` must be a list of integers; NumPy says: {error}") from error
    if found.shape != (size,):
        raise ArgumentError(f"`num_new` must have one count for each of the {size} sequences; got shape {found.shape}.")
    if not size:
        return np.zeros(0, np.int64)
    if found.dtype.kind not in "iu":
        raise ArgumentError(f"`num_new` must hold integers; got {found.dtype}.")
    result = found.astype(np.int64)
    if np.maximum.reduce(result.view(np.uint64)) >= 2**31:  # a negative count is a large one there
        raise ArgumentError(f"`num_new` must lie in 0 .. 2**31-1; got {found.tolist()}.")
    return result
