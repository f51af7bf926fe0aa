"""A second opinion in float64, for tests and for the curious: attention from dense K and V, quantisation, and a reading of a pool's bytes.

It shares no code with the library and imports NumPy only; clarity comes before speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]

_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)  # the elements of a word of 4-bit codes, the least significant first


class Shape(NamedTuple):
    """A cache: what the offsets of its rows depend on.

    Attributes
    ----------
    num_kv_heads, head_dim, block_len, num_layers : int
    dtype : str
        "float16" or "bfloat16".
    bits : int
        Of a stored element: 16, or 8 or 4 of a code.
    """

    num_kv_heads: int
    head_dim: int
    block_len: int
    num_layers: int
    dtype: str
    bits: int = 16

    @property
    def row_bytes(self) -> int:
        return self.head_dim * self.bits // 8

    def k_offset(self, layer: int, head: int, token: int) -> int:
        """Byte offset in a block of a K row: layers, then heads, then K before V, then tokens."""
        rows = self.num_kv_heads * 2 * self.block_len
        layer_bytes = rows * (self.row_bytes if self.bits == 16 else self.row_bytes + 4)
        return layer * layer_bytes + (2 * head * self.block_len + token) * self.row_bytes

    def v_offset(self, layer: int, head: int, token: int) -> int:
        """Byte offset in a block of a V row."""
        return self.k_offset(layer, head, token) + self.block_len * self.row_bytes

    def k_param_offset(self, layer: int, head: int, token: int) -> int:
        """Byte offset in a block of a K row's scale, which its zero follows: behind the rows of all heads, in the rows' order."""
        return self.k_offset(layer, self.num_kv_heads, 0) + (2 * head * self.block_len + token) * 4

    def v_param_offset(self, layer: int, head: int, token: int) -> int:
        """Byte offset in a block of a V row's scale."""
        return self.k_param_offset(layer, head, token) + self.block_len * 4

    @property
    def block_bytes(self) -> int:
        return self.k_offset(self.num_layers, 0, 0)


class Result(NamedTuple):
    """What attention gives, with the sums that bound its rounding errors.

    Attributes
    ----------
    out : float64 (num_queries, num_heads, head_dim)
    lse : float64 (num_queries, num_heads)
    mass : float64, like out
        Sum of p * abs(v) over the keys, p the normalised weights.
    spread : float64, like out
        Square root of the sum of (p * v)**2 over the keys.
    largest : float64 (num_queries, num_heads)
        The largest sum of abs(q * k) * softmax_scale over any kept key.
    """

    out: Array
    lse: Array
    mass: Array
    spread: Array
    largest: Array


def decode(bits: Array, dtype: str) -> Array:
    """Float64 values of 16-bit patterns.

    >>> decode(np.array([0x3F80, 0xC000], np.uint16), "bfloat16").tolist()
    [1.0, -2.0]
    """
    if dtype == "bfloat16":  # the upper half of a float32
        return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return bits.view(np.float16).astype(np.float64)


def encode(values: Array, dtype: str) -> Array:
    """The 16-bit patterns nearest to float32 numbers, ties to even.

    >>> [hex(x) for x in encode(np.array([1, 1.01171875], np.float32), "bfloat16")]
    ['0x3f80', '0x3f82']
    """
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    nearest = (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), nearest)


def quantise(rows: Array, bits: int, dtype: str) -> tuple[Array, Array]:
    """Codes of rows, a byte each, (..., head_dim), and the patterns of each row's scale and zero, (..., 2).

    Parameters
    ----------
    rows : uint16 (..., head_dim)
        Bit patterns.
    bits : int
        Of a code, 8 or 4.
    dtype : str
        "float16" or "bfloat16"; every step is rounded to it.

    Examples
    --------
    >>> codes, params = quantise(np.array([0, 1, 2, 15], np.float16).view(np.uint16), 4, "float16")
    >>> codes.tolist(), params.view(np.float16).tolist()
    ([0, 1, 2, 15], [1.0, 0.0])
    """

    def rounded(x: Array) -> Array:
        return decode(encode(x, dtype), dtype).astype(np.float32)

    with np.errstate(all="ignore"):
        x = decode(rows, dtype).astype(np.float32)
        zero = x.min(axis=-1, keepdims=True)
        minus = ((x == 0) & np.signbit(x)).any(axis=-1, keepdims=True)  # of two zeros the negative one is less
        zero = np.where(zero == 0, np.where(minus, np.float32(-0.0), np.float32(0.0)), zero)
        steps = np.float32(2**bits - 1)
        scale = rounded((x.max(axis=-1, keepdims=True) - zero) * (np.float32(1) / steps))
        scaled = rounded(rounded(x - zero) * rounded(np.float32(1) / scale))
    codes = np.clip(np.round(np.where(np.isnan(scaled), 0, scaled)), 0, steps)
    finite = np.isfinite(x).all(axis=-1, keepdims=True)
    params = encode(np.concatenate([scale, zero], axis=-1), dtype)
    nan = np.uint16(0x7E00 if dtype == "float16" else 0x7FC0)
    return np.where(finite & (scale != 0), codes, 0).astype(np.uint8), np.where(finite, params, nan)


def dequantise(codes: Array, params: Array, dtype: str) -> Array:
    """Float64 code * scale + zero of rows of codes (..., head_dim), a byte each; `params` are patterns (..., 2).

    Nothing is rounded to `dtype`: float64 holds it exactly for float16, and for bfloat16 unless scale and zero lie far apart.
    """
    scale, zero = np.moveaxis(decode(params, dtype), -1, 0)
    with np.errstate(invalid="ignore"):
        values: Array = codes.astype(np.float64) * scale[..., None] + zero[..., None]
    return values


def pack(codes: Array, bits: int) -> Array:
    """Codes as bytes; of four bits, eight make a little-endian word, the even ones in its lower half.

    >>> [hex(x) for x in pack(np.arange(8, dtype=np.uint8), 4)]
    ['0x20', '0x64', '0x31', '0x75']
    """
    if bits == 8:
        return codes
    words = np.zeros((*codes.shape[:-1], codes.shape[-1] // 8), "<u4")
    for place, element in enumerate(_NIBBLES):
        words |= codes[..., element::8].astype("<u4") << np.uint32(4 * place)
    return words.view(np.uint8)


def unpack(packed: Array, bits: int) -> Array:
    """The inverse of pack."""
    if bits == 8:
        return packed
    words = np.ascontiguousarray(packed).view("<u4")
    codes = np.zeros((*words.shape[:-1], words.shape[-1] * 8), np.uint8)
    for place, element in enumerate(_NIBBLES):
        codes[..., element::8] = words >> np.uint32(4 * place) & 15
    return codes


def read_rows(pool: Array, blocks: list[int], length: int, layer: int, shape: Shape) -> tuple[Array, Array]:
    """K and V of one sequence, (length, num_kv_heads, head_dim), out of a pool's bytes: uint16 patterns, or the float64 values of codes.

    Parameters
    ----------
    pool : uint8 (num_blocks, block_bytes)
    blocks : list of int
        The sequence's blocks in order.
    length, layer : int
    shape : Shape
    """
    k = np.empty((length, shape.num_kv_heads, shape.head_dim), np.uint16 if shape.bits == 16 else np.float64)
    v = np.empty_like(k)
    for first in range(0, length, shape.block_len):
        block = pool[blocks[first // shape.block_len]]
        part = slice(first, min(first + shape.block_len, length))
        for rows, head, data, params in _places(block, (k, v), layer, 0, part.stop - first, shape):
            if shape.bits == 16:
                rows[part, head] = data.view(np.uint16)
            else:
                rows[part, head] = dequantise(unpack(data, shape.bits), params.view(np.uint16), shape.dtype)
    return k, v


def read_params(pool: Array, blocks: list[int], length: int, layer: int, shape: Shape) -> tuple[Array, Array]:
    """(scale, zero) of one sequence's rows of K and of V, float64 (length, num_kv_heads, 2), out of a pool's bytes."""
    pairs = np.empty((length, shape.num_kv_heads, 2)), np.empty((length, shape.num_kv_heads, 2))
    for first in range(0, length, shape.block_len):
        block = pool[blocks[first // shape.block_len]]
        part = slice(first, min(first + shape.block_len, length))
        for rows, head, _, params in _places(block, pairs, layer, 0, part.stop - first, shape):
            rows[part, head] = decode(np.ascontiguousarray(params).view(np.uint16), shape.dtype)
    return pairs


def write_rows(pool: Array, blocks: list[int], first: int, k: Array, v: Array, layer: int, shape: Shape) -> None:
    """Put the bit patterns `k`, `v` of the tokens from position `first` on into a pool's bytes, quantised if the cache is."""
    done = 0
    while done < len(k):
        index, token = divmod(first + done, shape.block_len)
        count = min(shape.block_len - token, len(k) - done)
        for rows, head, data, params in _places(pool[blocks[index]], (k, v), layer, token, count, shape):
            new = np.ascontiguousarray(rows[done : done + count, head])
            if shape.bits == 16:
                data[...] = new.view(np.uint8)
            else:
                codes, pairs = quantise(new, shape.bits, shape.dtype)
                data[...], params[...] = pack(codes, shape.bits), pairs.view(np.uint8)
        done += count


def _places(
    block: Array, pair: tuple[Array, Array], layer: int, token: int, count: int, shape: Shape
) -> Iterator[tuple[Array, int, Array, Array]]:
    """(K's rows or V's, head, bytes of `count` rows in the block, bytes of their parameters), head by head."""
    for head in range(shape.num_kv_heads):
        data = (shape.k_offset(layer, head, token), shape.v_offset(layer, head, token))
        params = (shape.k_param_offset(layer, head, token), shape.v_param_offset(layer, head, token))
        for rows, start, param in zip(pair, data, params, strict=True):
            entries = block[param : param + 4 * count] if shape.bits != 16 else block[:0]
            yield rows, head, block[start : start + count * shape.row_bytes].reshape(count, -1), entries.reshape(-1, 4)


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    mask: Array | None = None,
) -> Result:
    """Attention of one sequence's last `len(q)` tokens.

    Parameters
    ----------
    q : float64 (num_queries, num_heads, head_dim)
    k, v : float64 (num_keys, num_kv_heads, head_dim)
    softmax_scale, causal, window_size, softcap, sinks, alibi_slopes
        As in `pagedattn.paged_attention`.
    mask : bool (num_queries, num_keys), optional
        True where a query sees a key.

    Examples
    --------
    >>> q, k = np.zeros((1, 1, 4)), np.zeros((2, 1, 4))
    >>> result = attention(q, k, np.stack([np.zeros((1, 4)), np.ones((1, 4))]))
    >>> result.out[0, 0].tolist(), round(float(result.lse[0, 0]), 4)
    ([0.5, 0.5, 0.5, 0.5], 0.6931)
    """
    num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads, _ = k.shape
    scale = 1.0 / np.sqrt(head_dim) if softmax_scale is None else softmax_scale
    position = np.arange(num_keys - num_queries, num_keys)[:, None]
    key = np.arange(num_keys)[None, :]
    kept = np.ones((num_queries, num_keys), bool)
    if causal:
        kept &= key <= position
    if window_size is not None:
        kept &= position - key < window_size
    if mask is not None:
        kept &= mask
    result = Result(np.zeros(q.shape), np.full(q.shape[:2], -np.inf), np.zeros(q.shape), np.zeros(q.shape), np.zeros(q.shape[:2]))
    for head in range(num_heads):
        kv_head = head // (num_heads // num_kv_heads)
        sink = None if sinks is None else float(sinks[head])
        bias = 0.0 if alibi_slopes is None else float(alibi_slopes[head]) * (key - position)
        _one_head(result, head, q[:, head], k[:, kv_head], v[:, kv_head], kept, scale, softcap, sink, bias)
    return result


def merge(outs: list[Array], lses: list[Array]) -> tuple[Array, Array]:
    """Merge results over different keys: out_i weighs exp(lse_i)."""
    lse = np.full(lses[0].shape, -np.inf)
    for part in lses:
        lse = np.logaddexp(lse, part.astype(np.float64))
    out = np.zeros(outs[0].shape)
    for part, weight in zip(outs, lses, strict=True):
        share = np.where(np.isneginf(weight), 0.0, np.exp(weight - np.where(np.isneginf(lse), 0.0, lse)))
        out += np.where(share[..., None] > 0, part.astype(np.float64), 0.0) * share[..., None]
    return out, lse


def _one_head(
    result: Result,
    head: int,
    q: Array,
    k: Array,
    v: Array,
    kept: Array,
    scale: float,
    softcap: float | None,
    sink: float | None,
    bias: Array | float,
) -> None:
    with np.errstate(invalid="ignore"):
        scores = q @ k.T * scale
        sizes = np.abs(q) @ np.abs(k).T * abs(scale)
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + bias
    scores = np.where(kept, scores, -np.inf)
    highest = scores.max(axis=1, initial=-np.inf)
    if sink is not None:
        highest = np.maximum(highest, sink)
    some = ~np.isneginf(highest)
    weights = np.where(kept, np.exp(scores - np.where(some, highest, 0.0)[:, None]), 0.0)
    total = weights.sum(axis=1)
    if sink is not None:
        total += np.exp(sink - highest)
    result.lse[some, head] = highest[some] + np.log(total[some])
    weights[some] /= total[some, None]
    finite = np.where(np.isfinite(v), v, 0.0)
    result.out[:, head] = weights @ finite
    result.mass[:, head] = weights @ np.abs(finite)
    result.spread[:, head] = np.sqrt(weights**2 @ finite**2)
    result.largest[:, head] = np.where(kept, sizes, 0.0).max(axis=1, initial=0.0)
    for i in np.flatnonzero(~np.isfinite(v).all(axis=1)):  # such a value reaches only the queries that see it
        result.out[kept[:, i], head] += weights[kept[:, i], i, None] * (v[i] - finite[i])
