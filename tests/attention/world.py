"""Makes what a case needs: a poisoned pool with scattered blocks, queries, and what the reference says about them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

import pagedattn as pa
from pagedattn import dtypes, reference
from tests.attention.cases import Case
from tests.attention.tolerance import Bounds, bounds, bounds_of_codes, shift_of_rounded_queries
from tests.attention.turned import Turned, row_bounds

Array = np.ndarray[Any, Any]

NAN_BYTE = 0xFF  # 0xFFFF is a NaN in both 16-bit types, and -1 in a block table


@dataclass
class World:
    """Host arrays of one case; 16-bit rows are in the case's dtype.

    Attributes
    ----------
    pool, full_pool : uint8 (num_blocks, block_bytes)
        Before the call, and as it must be after it; they differ where the call appends.
    table : int32 (batch_size, max_blocks)
        Unused entries hold anything.
    seqlens_q, seqlens_k : int64 (batch_size,)
    q, k, v : (num_tokens, heads, head_dim)
        New tokens.
    sinks : float32 (num_heads) or None
    dense : list of (K, V)
        What each sequence's rows read back as.
    params : list of (K's, V's)
        float64 (scale, zero) of each sequence's rows; empty where the cache holds no codes.
    """

    case: Case
    pool: Array
    full_pool: Array
    table: Array
    seqlens_q: Array
    seqlens_k: Array
    q: Array
    k: Array
    v: Array
    sinks: Array | None
    dense: list[tuple[Array, Array]]
    params: list[tuple[Array, Array]]
    seen: Array
    turned: Turned
    exact: list[tuple[Array, Array]]
    slopes: Array | None
    masks: list[Array]

    def settle(self, pool: Array) -> None:
        """Check the rows that a call wrote through bias or rotation, and compare its result with attention over them.

        Two roundings to T may differ by one where the exact number lies close to the middle; nothing else in the pool may differ.
        """
        case, shape, layer = self.case, shape_of(self.case), self.case.num_layers - 1
        untouched = np.full_like(pool, NAN_BYTE)  # a row of zeros is zeros as codes, too
        for row, new, length in zip(self.table.tolist(), self.seqlens_q.tolist(), self.seqlens_k.tolist(), strict=True):
            zeros = np.zeros((new if case.append else 0, case.num_kv_heads, case.head_dim), np.uint16)
            reference.write_rows(untouched, row, length - new, zeros, zeros, layer, shape)
        same = untouched == NAN_BYTE
        np.testing.assert_array_equal(pool[same], self.pool[same], "the pool, but for new rows")
        for b, (row, length) in enumerate(zip(self.table.tolist(), self.seqlens_k.tolist(), strict=True)):
            read = reference.read_rows(pool, row, length, layer, shape)
            if shape.bits != 16:
                self.params[b] = reference.read_params(pool, row, length, layer, shape)
            else:
                read = tuple(x.view(dtypes.of(case.dtype).numpy) for x in read)
            for name, found, exact, params in zip("kv", read, self.exact[b], self.params[b] if self.params else (None, None), strict=True):
                limit = row_bounds(exact, found, params, case.dtype, shape.bits)
                wrong = ~(np.abs(found.astype(np.float64) - exact) <= limit)
                assert not wrong.any(), f"{name} of sequence {b} at (token, head, dim) {np.argwhere(wrong)[0]}"
            self.dense[b] = read

    def expected(self) -> tuple[list[reference.Result], list[Bounds]]:
        """The reference's results and their bounds, sequence by sequence."""
        case, results, limits, start = self.case, [], [], 0
        options = {name: value for name, value in case.keywords.items() if name != "num_splits"} | {"alibi_slopes": self.slopes}
        for b, (length_q, (k, v)) in enumerate(zip(self.seqlens_q.tolist(), self.dense, strict=True)):
            if self.masks:
                options["mask"] = self.masks[b]
            q = self.seen[start : start + length_q].astype(np.float64)
            start += length_q
            k, v = k.astype(np.float64), v.astype(np.float64)
            result = reference.attention(q, k, v, sinks=self.sinks, **options)
            seen = min(len(k), case.keywords.get("window_size", len(k)))
            largest = float(np.abs(v).max(initial=0.0, where=np.isfinite(v)))
            results.append(result)
            shift = shift_of_rounded_queries(q, k, case.dtype, case.keywords.get("softmax_scale")) if self.turned.rows_change else 0.0
            shift = shift + case.alibi * len(k) * 2.0**-22  # a slope times a distance in float32
            if self.params:
                dense = (k.astype(np.float64), v.astype(np.float64))
                limits.append(
                    bounds_of_codes(
                        result, case.dtype, shape_of(case).bits, q, *dense, *self.params[b], sinks=self.sinks, shift=shift, **options
                    )
                )
            else:
                limits.append(bounds(result, case.dtype, seen, largest, case.keywords.get("softcap"), shift))
        return results, limits


def shape_of(case: Case) -> reference.Shape:
    bits = dtypes.of(case.kv_dtype or case.dtype).bits
    return reference.Shape(case.num_kv_heads, case.head_dim, case.block_len, case.num_layers, case.dtype, bits)


def make(case: Case) -> World:
    """The case's world; the same at every call."""
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    dtype, shape = dtypes.of(case.dtype).numpy, shape_of(case)
    seqlens_q, seqlens_k = (np.array([pair[i] for pair in case.lengths], np.int64) for i in (0, 1))
    table, num_blocks = scattered(rng, seqlens_k, case.block_len)
    pool = np.full((num_blocks, shape.block_bytes), NAN_BYTE, np.uint8)
    full_pool = pool.copy() if case.append else pool
    layer = case.num_layers - 1
    dense, params, new_k, new_v, exact, start = [], [], [], [], [], 0
    turned = Turned.of(case, np.random.default_rng(len(case.id)), int(seqlens_q.sum()))
    for row, length_q, length_k in zip(table.tolist(), seqlens_q.tolist(), seqlens_k.tolist(), strict=True):
        k, v = (rng.standard_normal((length_k, case.num_kv_heads, case.head_dim), np.float32) for _ in "kv")
        k = _ramped(k, case.ramp)
        v = np.abs(v) if case.positive else v
        if case.gain != 1:
            v *= case.gain * 0.5 ** (np.arange(length_k) % 4).astype(np.float32)[:, None, None]
        for rows in (k, v):
            rows[..., case.head_dim // 2 :] += case.offset
        k, v = k.astype(dtype), v.astype(dtype)
        if case.spoiled:
            v[rng.random(length_k) < 0.1, :, ::3] = np.nan
            v[rng.random(length_k) < 0.1, 0, 5] = np.inf
            k[length_k - length_q // 4 :, :, 0] = np.nan
        given = k[length_k - length_q :], v[length_k - length_q :]
        exact.append((k, v))
        if turned.rows_change:
            first = length_k - length_q
            exact[-1] = tuple(turned.row(name, rows, start, first, length_k) for name, rows in (("k", k), ("v", v)))
            k, v = (turned.rounded(rows) for rows in exact[-1])
        start += length_q
        old = length_k - length_q if case.append else length_k
        reference.write_rows(pool, row, 0, k[:old].view(np.uint16), v[:old].view(np.uint16), layer, shape)
        if case.append:
            reference.write_rows(full_pool, row, 0, k.view(np.uint16), v.view(np.uint16), layer, shape)
        if shape.bits == 16:
            dense.append((k, v))
        else:
            read, pairs = zip(*(_as_codes(rows, shape) for rows in (k, v)), strict=True)
            dense.append(read)
            params.append(pairs)
        new_k.append(given[0])
        new_v.append(given[1])
    num_tokens = int(seqlens_q.sum())
    q = rng.standard_normal((num_tokens, case.num_heads, case.head_dim), np.float32)
    if case.ramp:
        q += 4 / np.sqrt(case.head_dim, dtype=np.float32)
    none = np.zeros((0, case.num_kv_heads, case.head_dim), dtype)
    k, v = np.concatenate([none, *new_k]), np.concatenate([none, *new_v])
    sinks = rng.standard_normal(case.num_heads).astype(np.float32) * 2 if case.sinks else None
    q = q.astype(dtype)
    seen = turned.rounded(_seen(q, turned, seqlens_q, seqlens_k)) if turned.rows_change else q
    masks = [_mask(case.mask, rng, new, length) for new, length in case.lengths] if case.mask else []
    slopes = (case.alibi * 0.8 ** np.arange(case.num_heads)).astype(np.float32) if case.alibi else None
    return World(case, pool, full_pool, table, seqlens_q, seqlens_k, q, k, v, sinks, dense, params, seen, turned, exact, slopes, masks)


def _mask(kind: str, rng: np.random.Generator, new: int, length: int) -> Array:
    """Which keys each new token of a sequence may see."""
    if kind == "random":
        mask = rng.random((new, length)) < 0.5
        mask[::5] = False
        return mask
    if kind == "columns":
        return np.broadcast_to(np.arange(length) % 64 >= 16, (new, length)).copy()
    if kind == "rows":
        return np.broadcast_to(np.arange(new)[:, None] % 32 >= 8, (new, length)).copy()
    if kind == "documents":
        document = np.arange(length) // 90
        return np.asarray(document[length - new :, None] == document)
    mask = np.ones((new, length), bool)
    drafted = mask[:, length - new :]
    drafted[...] = False
    for i in range(new):  # a token's ancestors are its parent's, and itself
        if i:
            drafted[i] = drafted[rng.integers(max(0, i - 4), i)]
        drafted[i, i] = True
    return mask


def _seen(q: Array, turned: Turned, seqlens_q: Array, seqlens_k: Array) -> Array:
    ends = np.cumsum(seqlens_q)
    parts = [
        turned.row("q", q[end - new : end], end - new, 0, length)
        for end, new, length in zip(ends.tolist(), seqlens_q.tolist(), seqlens_k.tolist(), strict=True)
    ]
    return np.concatenate([np.zeros((0, *q.shape[1:])), *parts])


def scattered(rng: np.random.Generator, seqlens_k: Array, block_len: int) -> tuple[Array, int]:
    """A block table in random order over a pool with some blocks to spare; what is not used is garbage."""
    counts = -(-seqlens_k // block_len)
    num_blocks = int(counts.sum()) + 3
    order = rng.permutation(num_blocks).astype(np.int32)
    width = int(counts.max(initial=0)) + 2
    table = rng.choice(np.array([-1, 2**31 - 1, -(2**31), num_blocks], np.int32), (len(counts), width))
    start = 0
    for row, count in zip(table, counts.tolist(), strict=True):
        row[:count] = order[start : start + count]
        start += count
    return table, num_blocks


def cache_of(world: World, device: str | pa.devices.base.Device) -> pa.KVCache:
    """A cache over a copy of the world's pool."""
    case = world.case
    where = pa.devices.get(device)
    return pa.KVCache(
        len(world.pool),
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        block_len=case.block_len,
        num_layers=case.num_layers,
        dtype=case.dtype,
        kv_dtype=case.kv_dtype,
        device=device,
        pool=where.asarray(world.pool.copy()),
    )


def _as_codes(rows: Array, shape: reference.Shape) -> tuple[Array, Array]:
    """What rows read back as, and their (scale, zero), in float64."""
    codes, params = reference.quantise(rows.view(np.uint16), shape.bits, shape.dtype)
    return reference.dequantise(codes, params, shape.dtype), reference.decode(params, shape.dtype)


def _ramped(k: Array, ramp: float) -> Array:
    """Keys whose scores against q + 4/sqrt(head_dim) rise evenly by `ramp`."""
    if not ramp:
        return k
    rise = np.linspace(0, ramp / 4, len(k), dtype=np.float32)
    return k + rise[:, None, None]
