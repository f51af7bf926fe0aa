"""The work table: decode rows D1..D6 and prefill rows P1..P4, each checked against float64 before it is timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cupy as cp
import numpy as np

import pagedattn as pa
from pagedattn import dtypes


@dataclass(frozen=True)
class Row:
    """One workload: per sequence the new tokens and all tokens; query and KV heads."""

    name: str
    seqlens_q: tuple[int, ...]
    seqlens_k: tuple[int, ...]
    num_heads: int
    num_kv_heads: int

    @property
    def decode(self) -> bool:
        return max(self.seqlens_q) == 1

    def flops(self, head_dim: int) -> int:
        """4 * heads * head_dim for each unmasked (query, key) pair."""
        pairs = sum(q * k - q * (q - 1) // 2 for q, k in zip(self.seqlens_q, self.seqlens_k, strict=True))
        return 4 * self.num_heads * head_dim * pairs


def _decode(name: str, lengths: list[int], heads: int, kv_heads: int) -> Row:
    return Row(name, (1,) * len(lengths), tuple(lengths), heads, kv_heads)


DECODE = (
    _decode("D1", [32768], 32, 8),
    _decode("D2", [8192] * 16, 32, 8),
    _decode("D3", [4096] * 64, 32, 8),
    _decode("D4", [2048] * 128, 64, 8),
    _decode("D5", [4096] * 64, 32, 32),
    _decode("D6", [128 + i * i * 16256 // 961 for i in range(32)], 32, 8),
)
PREFILL = (
    Row("P1", (8192,), (8192,), 32, 8),
    Row("P2", (1024,) * 8, (1024,) * 8, 32, 8),
    Row("P3", (2048,) * 4, (2048,) * 4, 32, 8),
    Row("P4", (512,), (16384,), 32, 8),
)
BEYOND_L2 = 1_000_000_000  # bytes that the layers of a cache hold together


class Workload:
    """A row with its cache, in random page order, filled with normal values; `call(i)` runs layer i mod layers."""

    def __init__(
        self,
        row: Row,
        head_dim: int = 128,
        block_len: int = 64,
        dtype: str = "float16",
        kv_dtype: str | None = None,
        device: str = "cuda",
    ) -> None:
        self.row, self.head_dim = row, head_dim
        tokens = sum(row.seqlens_k)
        one = pa.BlockLayout(row.num_kv_heads, head_dim, block_len, 1, dtype, kv_dtype)
        self.kv_bytes = tokens * one.token_bytes  # of K and V, with their parameters, that must be read
        self.layers = min(8, BEYOND_L2 // self.kv_bytes + 1) if row.decode else 1
        blocks = [-(-n // block_len) for n in row.seqlens_k]
        num_blocks = sum(blocks)
        self.cache = pa.KVCache(
            num_blocks,
            num_kv_heads=row.num_kv_heads,
            head_dim=head_dim,
            block_len=block_len,
            num_layers=self.layers,
            dtype=dtype,
            kv_dtype=kv_dtype,
            device=device,
        )
        order, table, at = np.random.default_rng(0).permutation(num_blocks), np.zeros((len(blocks), max(blocks)), np.int32), 0
        for b, n in enumerate(blocks):
            table[b, :n] = order[at : at + n]
            at += n
        self.batch = pa.Batch(table, row.seqlens_q, row.seqlens_k, device=device)
        everything = pa.Batch(table, row.seqlens_k, row.seqlens_k, device=device)
        element = dtypes.of(dtype).numpy
        rng = cp.random.default_rng(0)
        for layer in range(self.layers):
            k, v = (rng.standard_normal((tokens, row.num_kv_heads, head_dim), dtype=cp.float32).astype(element) for _ in range(2))
            pa.append(k, v, self.cache, everything, layer=layer)
        shape = (sum(row.seqlens_q), row.num_heads, head_dim)
        self.q = rng.standard_normal(shape, dtype=cp.float32).astype(element)
        self.out = cp.empty(shape, element)

    def call(self, i: int = 0, **keywords: Any) -> Any:
        return pa.paged_attention(self.q, self.cache, self.batch, layer=i % self.layers, out=self.out, **keywords)

    def error(self, rows: int = 6) -> float:
        """Relative error of `rows` query rows, spread over the batch, against float64."""
        self.out.fill(cp.nan)
        self.call()
        row, rng = self.row, np.random.default_rng(1)
        starts_k = np.concatenate([[0], np.cumsum(row.seqlens_k)])
        starts_q = np.concatenate([[0], np.cumsum(row.seqlens_q)])
        k, v = pa.gather(self.cache, self.batch)
        wrong = right = 0.0
        group = row.num_heads // row.num_kv_heads
        last = len(row.seqlens_q) - 1
        for b in sorted({0, last, *rng.integers(0, last + 1, rows).tolist()}):
            for j in sorted({0, row.seqlens_q[b] - 1, int(rng.integers(0, row.seqlens_q[b]))}):
                keys = row.seqlens_k[b] - row.seqlens_q[b] + j + 1
                at = slice(int(starts_k[b]), int(starts_k[b]) + keys)
                q = self.q[int(starts_q[b]) + j].astype(cp.float64).reshape(row.num_kv_heads, group, self.head_dim)
                s = cp.einsum("hgd,khd->hgk", q, k[at].astype(cp.float64)) * self.head_dim**-0.5
                p = cp.exp(s - s.max(axis=-1, keepdims=True))
                o = cp.einsum("hgk,khd->hgd", p / p.sum(axis=-1, keepdims=True), v[at].astype(cp.float64)).reshape(
                    row.num_heads, self.head_dim
                )
                wrong += float(((self.out[int(starts_q[b]) + j].astype(cp.float64) - o) ** 2).sum())
                right += float((o**2).sum())
        return (wrong / right) ** 0.5
