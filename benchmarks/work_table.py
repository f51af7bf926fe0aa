"""The work table: decode rows D1..D7 and prefill rows P1..P4, each checked against float64 before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import cupy as cp
import numpy as np

import pagedattn as pa
from pagedattn import dtypes

if TYPE_CHECKING:
    from benchmarks.scores import Change

Array = np.ndarray[Any, Any]

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3}  # relative, against float64
HEAD_DIMS = (64, 96, 128, 192, 256)
PLAIN = (128, 64, "float16", None)

# (head_dim, block_len, dtype, kv_dtype); the first row stands again at the end: the spread of a run
VARIANTS = [
    PLAIN,
    *((d, 64, "float16", None) for d in HEAD_DIMS if d != 128),
    (128, 16, "float16", None),
    (128, 64, "bfloat16", None),
    *((d, 64, "float16", kv) for kv in ("int8", "int4") for d in (128, 64, 256)),
    (128, 16, "float16", "int4"),
    PLAIN,
]


def name_of(head_dim: int, block_len: int, dtype: str, kv_dtype: str | None) -> str:
    return f"d{head_dim} b{block_len} {dtype}{' ' + kv_dtype if kv_dtype else ''}"


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

    @property
    def uniform(self) -> bool:
        """Whether the sequences are of one length, as a dense tensor of keys needs it."""
        return len(set(self.seqlens_k)) == len(set(self.seqlens_q)) == 1

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
    _decode("D7", [131072] + [1024] * 63, 32, 8),
)
PREFILL = (
    Row("P1", (8192,), (8192,), 32, 8),
    Row("P2", (1024,) * 8, (1024,) * 8, 32, 8),
    Row("P3", (2048,) * 4, (2048,) * 4, 32, 8),
    Row("P4", (512,), (16384,), 32, 8),
)
ORDERS = ("random", "in sequence", "in turns")
BEYOND_L2 = 600_000_000  # bytes that the layers of a cache hold together: ten times the largest L2
MOST_LAYERS = 512


def block_table(blocks: Sequence[int], order: str) -> Array:
    """Where sequences of so many blocks have them: anywhere, each sequence's side by side as a prompt takes them, or those of all sequences
    by turns as decode steps take them.

    >>> block_table([2, 1], "in sequence").tolist(), block_table([2, 1], "in turns").tolist()
    ([[0, 1], [2, 0]], [[0, 2], [1, 0]])
    """
    sequence = np.repeat(np.arange(len(blocks)), blocks)
    place = np.concatenate([np.arange(n) for n in blocks])
    taken = np.random.default_rng(0).permutation(len(place)) if order == "random" else np.arange(len(place))
    if order == "in turns":
        turn = np.lexsort((sequence, place))
        sequence, place = sequence[turn], place[turn]
    table = np.zeros((len(blocks), max(blocks)), np.int32)
    table[sequence, place] = taken
    return table


class Workload:
    """A row with its cache, its blocks in one of ORDERS, filled with normal values; `call(i)` runs layer i mod layers.

    Without `layers` there are as many as L2 does not hold together.
    """

    def __init__(
        self,
        row: Row,
        head_dim: int = 128,
        block_len: int = 64,
        dtype: str = "float16",
        kv_dtype: str | None = None,
        device: str = "cuda",
        *,
        layers: int | None = None,
        order: str = "random",
    ) -> None:
        self.row, self.head_dim, self.dtype = row, head_dim, dtype
        tokens = sum(row.seqlens_k)
        one = pa.BlockLayout(row.num_kv_heads, head_dim, block_len, 1, dtype, kv_dtype)
        self.kv_bytes = tokens * one.token_bytes  # of K and V, with their parameters, that must be read
        self.layers = layers or (min(MOST_LAYERS, BEYOND_L2 // self.kv_bytes + 1) if row.decode else 1)
        blocks = [-(-n // block_len) for n in row.seqlens_k]
        self.num_blocks = sum(blocks)
        self.cache = pa.KVCache(
            self.num_blocks,
            num_kv_heads=row.num_kv_heads,
            head_dim=head_dim,
            block_len=block_len,
            num_layers=self.layers,
            dtype=dtype,
            kv_dtype=kv_dtype,
            device=device,
        )
        self.table = table = block_table(blocks, order)
        self.batch = pa.Batch(table, row.seqlens_q, row.seqlens_k, disjoint=True, device=device)
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

    def keys_and_values(self, layer: int = 0) -> tuple[Any, Any]:
        """K and V as calls read them, (tokens, num_kv_heads, head_dim) each, sequence after sequence."""
        return pa.gather(self.cache, self.batch, layer=layer)

    def error(self, out: Any = None, change: Change | None = None, **keywords: Any) -> float:
        """Relative error of some query rows, spread over the batch, against float64: of `out`, or of a call of ours with `keywords`.

        `change` is one of `benchmarks.scores`, and the call has its keywords, too.

        Relative to the result's size and 1/256 of the size of what is summed: of a million random values that cancel each other, float32
        sums know the result only to so many places.
        """
        if out is None:
            self.out.fill(cp.nan)
            out = self.call(**keywords, **({} if change is None else change.keywords))
        rows, right, summed = self._plain if change is None else self._expected(change)
        wrong = out[cp.asarray(rows)].astype(cp.float64) - right
        return _size(wrong) / (_size(right) + _size(summed) / 256)

    @cached_property
    def _plain(self) -> tuple[list[int], Any, Any]:
        return self._expected(None)

    def _expected(self, change: Change | None) -> tuple[list[int], Any, Any]:
        """Numbers of query rows; what attention in float64 gives for them in layer 0, and for the values' sizes instead of the values."""
        row, rng = self.row, np.random.default_rng(1)
        starts_k, starts_q = (np.concatenate([[0], np.cumsum(n)]) for n in (row.seqlens_k, row.seqlens_q))
        k, v = self.keys_and_values()
        last = len(row.seqlens_q) - 1
        rows, found = [], []
        for b in sorted({0, last, *rng.integers(0, last + 1, 6).tolist()}):
            for j in sorted({0, row.seqlens_q[b] - 1, int(rng.integers(0, row.seqlens_q[b]))}):
                keys = slice(int(starts_k[b]), int(starts_k[b]) + row.seqlens_k[b] - row.seqlens_q[b] + j + 1)
                rows.append(int(starts_q[b]) + j)
                changed = None if change is None else partial(change.scores, b=b, j=j)
                found.append(self._attention(self.q[rows[-1]], k[keys], v[keys], changed))
        return rows, *(cp.stack(x) for x in zip(*found, strict=True))

    def _attention(self, q: Any, k: Any, v: Any, changed: Callable[[Any, slice], Any] | None) -> tuple[Any, Any]:
        """One row of queries over its keys and their sizes, in float64; a KV head at a time, for long sequences' sake."""
        group = self.row.num_heads // self.row.num_kv_heads
        heads, sizes = [], []
        for h in range(self.row.num_kv_heads):
            of_group = slice(h * group, (h + 1) * group)
            s = q[of_group].astype(cp.float64) @ k[:, h].astype(cp.float64).T * self.head_dim**-0.5
            s = s if changed is None else changed(s, of_group)
            p = cp.exp(s - s.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            values = v[:, h].astype(cp.float64)
            heads.append(p @ values)
            sizes.append(p @ cp.abs(values))
        return cp.concatenate(heads), cp.concatenate(sizes)


def _size(x: Any) -> float:
    return float(cp.sqrt((x**2).sum()))


def check(work: Workload, variant: str, **keywords: Any) -> None:
    """No figures on red."""
    error, limit = work.error(**keywords), TOLERANCE[work.dtype]
    if not error < limit:
        raise SystemExit(f"{work.row.name} {variant}: relative error {error:.2e} against float64, more than {limit:.0e}")
