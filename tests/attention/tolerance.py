"""How far a result may lie from the float64 reference; the only place that says so.

Inputs are exact: both sides read the same 16-bit numbers. With u the unit roundoff of T (2**-11 for float16, 2**-8 for bfloat16),
n keys, and p the normalised weights, what remains is

    output rounded to T                      u * abs(out)
    P rounded to T for P V                   u * sum(p * abs(v)) at worst; the roundings are independent, so six times
                                             their root sum of squares, u * sqrt(sum((p * v)**2)), is the bound for many keys
    a P that is subnormal in float16         2**-25 for each key, as independent
    scores in float32                        an error d of a score changes its weight by the factor 1 + d
    P V and the row sum in float32           relative to sum(p * abs(v))

Tensor cores add 16 products at a time and truncate, so a sum of n terms is granted n/8 units of 2**-23; a scalar sum keeps far within that.
exp2, the division and the merge of splits are granted 2**-20. The row sum is taken before P is rounded: u has no part in lse.

One key more or less among n shifts the output by p * abs(v - out), which exceeds this bound until n is in the hundreds (and a tile of
16 keys until n is in the thousands): test_tolerance shows it.

A cache of codes is compared with the attention over exactly code * scale + zero, in two ways that are both right: decode lets scale and
zero act on scores and on P, with codes that are centred on their middle; prefill rounds the element to T. With c = zero + middle * scale of
a row, and f = sqrt(sum(p**2)), which is what a unit error of every weight amounts to if they are independent, there are besides

    K's elements rounded to T                a score errs by u * sqrt(sum((q * k)**2)), each key by itself: it moves out by f * abs(v - out)
    K's codes with the bias of their magic   the accumulator starts at -magic * sum(q) and is truncated on its way to a score. What keys
    numbers (1024 in float16, 128 in         have in common cancels in out; the rest is below the whole, of which three times is granted
    bfloat16)
    P * scale, V's elements, c, rounded to T u * sqrt(sum((p * x)**2)) for x = v - c, v and c
    the row sum of a P that was rounded      u * f in lse
    P and P * scale subnormal in float16     2**-25 of the largest P for each key, and the largest p is at most f. P * scale is kept 2**4
                                             higher, or all of P 2**8 lower where V's scale is above 64
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pagedattn import reference
from pagedattn.reference import Result

UNIT = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
SUBNORMAL = {"float16": 2.0**-25, "bfloat16": 0.0}
INDEPENDENT = 6.0
FLOAT32 = 2.0**-23
FEW_STEPS = 2.0**-20
MAGIC = {"float16": 1024.0, "bfloat16": 128.0}


Array = np.ndarray[Any, Any]


class Bounds(NamedTuple):
    """Largest permitted abs(result - reference), element by element."""

    out: Array
    lse: Array


def bounds(
    result: Result, dtype: str, num_keys: int, largest_value: float, softcap: float | None = None, shift: float | Array = 0.0
) -> Bounds:
    """The bounds of one sequence's results.

    Parameters
    ----------
    result : Result
        The reference's.
    dtype : str
        T.
    num_keys : int
        Keys that a query sees, at most.
    largest_value : float
        Largest abs(v).
    softcap : float, optional
        Its tanh is granted a few units in the last place, which the cap multiplies; where every score is below a 16th of it, those of 16
        times the largest score. Prefill's, for softcaps up to 88, is within 5e-7 of the cap, which is more than that where all scores are
        far below it (tests/ptx/test_cases.py, test_small_scores_under_a_cap).
    shift : float or array (num_queries, num_heads)
        What scores may be off by besides.
    """
    unit = UNIT[dtype]
    head_dim = result.out.shape[-1]
    score = (_sum(head_dim) + FLOAT32) * result.largest + _capped(softcap, result.largest) + shift
    rounded = unit * np.minimum(INDEPENDENT * result.spread, result.mass)
    subnormal = INDEPENDENT * np.sqrt(num_keys) * SUBNORMAL[dtype] * largest_value
    summed = (2 * score + _sum(num_keys) + FEW_STEPS)[..., None] * result.mass
    out = unit * np.abs(result.out) + SUBNORMAL[dtype] + rounded + subnormal + summed
    with np.errstate(invalid="ignore"):
        lse = score + _sum(num_keys) + FEW_STEPS + FLOAT32 * np.where(np.isfinite(result.lse), np.abs(result.lse), 0.0)
    return Bounds(out, lse)


def bounds_of_codes(
    result: Result,
    dtype: str,
    bits: int,
    q: Array,
    k: Array,
    v: Array,
    k_params: Array,
    v_params: Array,
    softcap: float | None = None,
    shift: float | Array = 0.0,
    **options: Any,
) -> Bounds:
    """The bounds of one sequence's results where the cache holds codes.

    Parameters
    ----------
    result, dtype
        As for `bounds`.
    bits : int
        Of a code.
    q, k, v : float64 (num_queries, num_heads, head_dim), (num_keys, num_kv_heads, head_dim)
    k_params, v_params : float64 (num_keys, num_kv_heads, 2)
        (scale, zero).
    softcap, options
        The reference's.
    shift : float or array (num_queries, num_heads)
        What scores may be off by besides.
    """
    _, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    unit, softmax_scale = UNIT[dtype], options.get("softmax_scale") or head_dim**-0.5
    k, k_params, v_params = (np.where(np.isfinite(x), x, 0.0) for x in (k, k_params, v_params))
    v = np.where(np.isfinite(v), v, 0.0)
    k_reach, v_reach = (np.maximum(np.abs(p[..., 1]), np.abs(p[..., 1] + (2**bits - 1) * p[..., 0])) for p in (k_params, v_params))
    middle = v_params[..., 1:] + 2.0 ** (bits - 1) * v_params[..., :1]
    probe = np.concatenate([middle, np.ones_like(middle), np.zeros_like(v)[..., 2:]], axis=-1)
    off_middle, row = (reference.attention(q, k, x, softcap=softcap, **options) for x in (v - middle, probe))
    focus = row.spread[..., 1:2]

    kv_head = np.arange(num_heads) // (num_heads // num_kv_heads)
    scale, reach = (x.max(axis=0, initial=0.0)[kv_head] for x in (k_params[..., 0], k_reach))
    biased = MAGIC[dtype] * scale * (np.abs(q.sum(axis=-1)) + 2 * np.sqrt((q**2).sum(axis=-1)))
    plain = 3 * reach * np.abs(q).sum(axis=-1)  # codes and zeros before they cancel
    truncated = _sum(head_dim) * softmax_scale * (biased + plain) + _capped(softcap, result.largest) + shift
    products = np.stack([(q[:, h] ** 2 @ k[:, g].T ** 2).max(axis=1, initial=0.0) for h, g in enumerate(kv_head)], axis=1)
    rounded_k = unit * softmax_scale * np.sqrt(products)
    moved = result.spread + np.abs(result.out) * focus
    score = (
        np.minimum(2 * truncated[..., None] * result.mass, 3 * truncated[..., None] * moved) + INDEPENDENT * rounded_k[..., None] * moved
    )

    spread = np.sqrt(2 * result.spread**2 + off_middle.spread**2 + row.spread[..., :1] ** 2)
    mass = off_middle.mass + row.mass[..., :1]
    rounded = unit * np.minimum(INDEPENDENT * spread, result.mass + mass)
    lower = 2.0**8 if v_params[..., 0].max(initial=0.0) > 64 else 1.0
    largest = lower * v_reach.max(initial=0.0) + (lower if lower > 1 else 2.0**-4) * 2.0 ** (
        bits - 2
    )  # codes lie half of their range from the middle
    subnormal = INDEPENDENT * np.sqrt(num_keys) * SUBNORMAL[dtype] * focus * largest
    summed = (_sum(num_keys) + FEW_STEPS) * mass
    out = unit * np.abs(result.out) + SUBNORMAL[dtype] + score + rounded + subnormal + summed
    with np.errstate(invalid="ignore"):
        size = np.where(np.isfinite(result.lse), np.abs(result.lse), 0.0)
    lse = truncated + INDEPENDENT * focus[..., 0] * rounded_k + _sum(num_keys) + FEW_STEPS + FLOAT32 * size
    return Bounds(out, lse)


def shift_of_rounded_queries(q: Array, k: Array, dtype: str, softmax_scale: float | None) -> Array:
    """What scores may be off by because q was rounded to T after float32 arithmetic, (num_queries, num_heads).

    An element whose exact value lies close to the middle of two numbers of T may go to the other one, a step of 2 u; two of a row may.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    largest = np.abs(np.where(np.isfinite(k), k, 0.0)).max(initial=0.0)
    shift: Array = 4 * UNIT[dtype] * scale * largest * np.abs(q).max(axis=-1, initial=0.0)
    return shift


def worst(found: Array, expected: Array, bound: Array) -> tuple[float, tuple[int, ...]]:
    """The largest error in units of its bound, and where; infinite where only one side is finite."""
    if not expected.size:
        return 0.0, ()
    finite = np.isfinite(expected)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(finite & (found != expected), np.abs(found - expected) / bound, 0.0)
    ratio[finite != np.isfinite(found)] = np.inf
    index = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return float(ratio[index]), tuple(int(i) for i in index)


def _capped(softcap: float | None, largest: Array) -> Array | float:
    return 4 * FLOAT32 * np.minimum(softcap, 16 * largest) if softcap else 0.0


def _sum(terms: int) -> float:
    return (terms / 8 + 2) * FLOAT32
