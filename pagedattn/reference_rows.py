"""A second opinion in float64 on what rows go through on their way in: bias, rotation by every kind of rope, logn.

It shares no code with the library and imports NumPy only; formulas are written out, one pair of dims after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def frequency(d: int, dim: int, kind: str, base: float, factor: float, seqlen: int, own: dict[str, Any]) -> float:
    """Radians a token of pair d of dim / 2.

    >>> frequency(1, 4, "linear", 100.0, 2.0, 0, {})
    0.05
    """
    freq = math.pow(base, -2 * d / dim)
    if kind == "linear":
        return freq / factor
    if kind == "dynamic" and factor > 1 and seqlen > own["max_position"]:
        grown = factor * seqlen / own["max_position"] - (factor - 1)
        return math.pow(base * math.pow(grown, dim / (dim - 2)), -2 * d / dim)
    if kind == "yarn":
        low, high = (
            dim * math.log(own["max_position"] / (2 * math.pi * beta)) / (2 * math.log(base))
            for beta in (own.get("beta_fast", 32), own.get("beta_slow", 1))
        )
        low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
        share = min(max((d - low) / (high - low or 0.001), 0), 1)
        return freq - freq * share * (1 - 1 / factor)
    if kind == "llama3":
        span = own.get("high_freq_factor", 4) - own.get("low_freq_factor", 1)
        smooth = own["max_position"] / (2 * math.pi) / span * freq - own.get("low_freq_factor", 1) / span
        smooth = min(max(smooth, 0), 1)
        freq = float((1 - smooth) * freq / factor + smooth * freq)
    return freq


def turn(rows: Array, positions: Sequence[Any], seqlen: int, rope: dict[str, Any]) -> Array:
    """Rows (tokens, heads, head_dim) of one sequence, turned; `rope` holds the arguments of `pagedattn.Rope`.

    Parameters
    ----------
    positions : integers (tokens,), or (3, tokens) for mrope
    seqlen : int
        What sets a dynamic rope's base.

    Examples
    --------
    >>> turn(np.array([[[1.0, 0.0, 0.0, 0.0]]]), [0], 1, {}).tolist()
    [[[1.0, 0.0, 0.0, 0.0]]]
    """
    own = dict(rope)
    kind, base, factor = own.pop("kind", "default"), own.pop("base", 10000.0), own.pop("factor", 1.0)
    dim, interleaved = own.pop("dim", None) or rows.shape[-1], own.pop("interleaved", False)
    if kind == "none":
        return rows
    scale = own.get("attention_factor") or (0.1 * math.log(factor) + 1 if kind == "yarn" else 1.0)
    section = own.get("mrope_section")
    result = rows.copy()
    for d in range(dim // 2):
        place = np.asarray(positions, np.float64)
        if section is not None and place.ndim == 2:
            place = place[[i % 3 for i, n in enumerate(section) for _ in range(n)][d]]
        angle = place * frequency(d, dim, kind, base, factor, seqlen, own)
        one, two = (2 * d, 2 * d + 1) if interleaved else (d, d + dim // 2)
        cos, sin = scale * np.cos(angle)[:, None], scale * np.sin(angle)[:, None]
        result[..., one] = rows[..., one] * cos - rows[..., two] * sin
        result[..., two] = rows[..., two] * cos + rows[..., one] * sin
    return result


def logn(rows: Array, positions: Array, max_position: int) -> Array:
    """Rows (tokens, heads, head_dim) of q, scaled up by log(position) / log(max_position) beyond max_position."""
    scale = [math.log(p) / math.log(max_position) if p > max_position else 1.0 for p in positions.tolist()]
    scaled: Array = rows * np.array(scale).reshape(-1, 1, 1)
    return scaled
