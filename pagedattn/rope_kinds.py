"""The kinds of rotary embedding: the keywords of each, what those may be, and how each changes the frequencies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.errors import ArgumentError
from pagedattn.values import flag, whole

if TYPE_CHECKING:
    from pagedattn.rope import Rope

Array = np.ndarray[Any, Any]

# Each kind's own keywords and their defaults; `...` must be given.
_MROPE: dict[str, Any] = {"mrope_section": None, "mrope_interleaved": False}
_YARN: dict[str, Any] = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "mscale": None, "mscale_all_dim": None}
OWN: dict[str, dict[str, Any]] = {
    "none": {},
    "default": _MROPE,
    "linear": _MROPE,
    "dynamic": {"max_position": ...},
    "yarn": {"max_position": ..., "truncate": True, **_YARN, **_MROPE},
    "llama3": {"max_position": ..., "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_MROPE},
    "mrope": {**_MROPE, "mrope_section": ...},
}
STRETCHED = ("linear", "dynamic", "yarn", "llama3")  # kinds that `factor` is for
AXES = 3  # of mrope's positions


def check(name: str, value: Any) -> None:
    """Refuse a number that no formula stands."""
    if name in ("truncate", "mrope_interleaved"):
        flag(value, name)
        return
    if value is None and name in ("attention_factor", "mscale", "mscale_all_dim", "mrope_section"):
        return
    if name == "mrope_section":
        counts = [whole(n) for n in value] if isinstance(value, (list, tuple)) else []
        if len(counts) < AXES or any(n is None or n < 0 for n in counts):
            raise ArgumentError(f"`mrope_section` must be at least {AXES} counts of pairs; got {value!r}.")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 < value < math.inf:
        raise ArgumentError(f"`{name}` must be a positive finite number; got {value!r}.")
    if name == "base" and value <= 1:
        raise ArgumentError(f"`base` must be above 1; got {value!r}.")


def attention_factor(rope: Rope) -> float:
    """What cos and sin are multiplied by."""
    if rope.kind != "yarn":
        return 1.0
    given, mscale, all_dim = (rope.keyword(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    if mscale and all_dim:
        return _mscale(rope.factor, mscale) / _mscale(rope.factor, all_dim)
    return _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def changed(rope: Rope, freq: Array, dim: int, seqlen: int) -> Array:
    """Radians a token of each pair, as the rope's kind changes those of the default."""
    change = _CHANGES.get(rope.kind)
    return change(rope, freq, dim, seqlen) if change else freq


def _linear(rope: Rope, freq: Array, _dim: int, _len: int) -> Array:
    return freq / rope.factor


def _dynamic(rope: Rope, freq: Array, dim: int, seqlen: int) -> Array:
    most = rope.keyword("max_position")
    if rope.factor <= 1 or seqlen <= most or dim <= 2:
        return freq
    stretched = rope.base * (rope.factor * seqlen / most - (rope.factor - 1)) ** (dim / (dim - 2))
    result: Array = stretched ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    return result


def _yarn(rope: Rope, freq: Array, dim: int, _: int) -> Array:
    def place(rotations: float) -> float:
        return dim * math.log(rope.keyword("max_position") / (rotations * 2 * math.pi)) / (2 * math.log(rope.base))

    low, high = place(rope.keyword("beta_fast")), place(rope.keyword("beta_slow"))
    if rope.keyword("truncate"):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low if high != low else 0.001), 0, 1)
    result: Array = freq * (1 - ramp) + freq / rope.factor * ramp
    return result


def _llama3(rope: Rope, freq: Array, _dim: int, _len: int) -> Array:
    low, high = rope.keyword("low_freq_factor"), rope.keyword("high_freq_factor")
    turns = rope.keyword("max_position") * freq / (2 * math.pi)  # over the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    result: Array = (1 - smooth) * freq / rope.factor + smooth * freq
    return result


_CHANGES: dict[str, Callable[[Rope, Array, int, int], Array]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
}
