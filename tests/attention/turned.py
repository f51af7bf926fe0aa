"""What a case asks of its rows besides attention: biases, rotation, logn; and how far rows in a pool may lie from the exact ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pagedattn import dtypes, reference, reference_rows
from tests.attention.cases import Case
from tests.attention.tolerance import SUBNORMAL, UNIT

Array = np.ndarray[Any, Any]


@dataclass
class Turned:
    """The arrays that such a case brings.

    Attributes
    ----------
    biases : dict of str to array (heads, head_dim)
        q_bias, k_bias, v_bias of the case's dtype; empty: none.
    positions : int64 (num_tokens,) or (3, num_tokens), or None
        Of the new tokens.
    """

    case: Case
    biases: dict[str, Array]
    positions: Array | None

    @classmethod
    def of(cls, case: Case, rng: np.random.Generator, num_tokens: int) -> Turned:
        kind = dtypes.of(case.dtype).numpy
        biases, positions = {}, None
        if case.biases:
            for name, heads in (("q_bias", case.num_heads), ("k_bias", case.num_kv_heads), ("v_bias", case.num_kv_heads)):
                biases[name] = rng.standard_normal((heads, case.head_dim)).astype(kind)
        if case.positions:
            size = (3, num_tokens) if "mrope_section" in case.rope else (num_tokens,)
            positions = rng.integers(0, case.positions, size)
        return cls(case, biases, positions)

    @property
    def rows_change(self) -> bool:
        return bool(self.case.biases or self.case.rope or self.case.logn)

    def row(self, name: str, rows: Array, start: int, first: int, length: int) -> Array:
        """Exact rows (tokens, heads, head_dim) of one sequence as they enter the cache or the scores.

        Parameters
        ----------
        name : str
            "q", "k" or "v".
        start : int
            The first of the sequence's new tokens among all new tokens.
        first : int
            Rows before this one, older ones, stand at their places in the sequence, whatever positions the call brings.
        length : int
            Tokens of the sequence; `rows` are its last ones.
        """
        places = np.arange(length - len(rows), length)
        x = rows.astype(np.float64)
        if self.biases:
            x = x + self.biases[f"{name}_bias"].astype(np.float64)
        if self.case.rope and name != "v":
            positions: Array = places
            if self.positions is not None:
                given = self.positions[..., start : start + len(rows) - first]
                positions = np.concatenate([np.broadcast_to(places[:first], (*given.shape[:-1], first)), given], axis=-1)
            x = reference_rows.turn(x, positions, length, self.case.rope)
        if self.case.logn and name == "q":
            x = reference_rows.logn(x, places, self.case.logn)
        return x

    def rounded(self, rows: Array) -> Array:
        """Rows of the case's dtype."""
        kind = dtypes.of(self.case.dtype).numpy
        return reference.encode(rows.astype(np.float32), self.case.dtype).view(kind)


def row_bounds(exact: Array, read: Array, params: Array | None, dtype: str, bits: int) -> Array:
    """How far rows that a pool holds, `read`, may lie from the exact ones: a rounding to T, float32 on the way, and half a code's step."""
    unit = UNIT[dtype]
    size = np.abs(exact).max(axis=-1, keepdims=True, initial=0.0)
    bound = unit * np.abs(exact) + SUBNORMAL[dtype] + 2.0**-21 * size
    if params is not None:  # each of the three steps from x - zero to a code is rounded to T, and so are scale and zero
        steps = 2.0**bits - 1
        bound = bound + params[..., :1] * (0.5 + 4 * unit * steps) + 2 * unit * size
    return np.broadcast_to(bound, read.shape)
