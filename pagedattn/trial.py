"""Trial: whether a row's kernels are right on a device, and how long they take there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import dispatch, dtypes, tuned
from pagedattn.append import append
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import PagedAttnError, UnsupportedError
from pagedattn.footprint import TILED
from pagedattn.ops import paged_attention
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec
from pagedattn.tune_report import Shape, median
from pagedattn.tuning import Key, Tile, fields_of

if TYPE_CHECKING:
    from pagedattn.devices.base import Device
    from pagedattn.store import Store

KV_HEADS, BLOCK_LEN = 8, 64
BEYOND_L2 = 1_000_000_000  # bytes that the layers of a cache hold together, if eight of them do
MOST_LAYERS = 8
CHUNK = 4096  # tokens of which copies fill a cache: what matters is where they lie
BURST_SECONDS, MOST_CALLS, BURSTS = 0.003, 64, 5
STACK_BYTES = {"decode": 0, "prefill": 64}  # a thread's, in local memory; a few values that prefill needs once are no traffic in its loop


SHAPES = {
    "decode": (Shape(64, 1, 4096), Shape(1, 1, 32768)),
    "prefill": (Shape(1, 8192, 8192), Shape(1, 512, 16384), Shape(8, 1024, 1024)),
}
# (new, all) of the sequences that a row must be right on: ragged, about tiles' ends, with and without shared keys
CHECKED = {"decode": ((1, 1), (1, 16), (1, 33), (1, 700), (1, 1500)), "prefill": ((2, 2), (70, 70), (33, 600), (5, 2100))}


def variants(key: Key, arch: str, tile: Tile) -> list[KernelSpec]:
    """Every kernel of the shipped set that a row serves, with that row."""
    own = ("decode",) if key.op == "decode" else TILED
    specs = shipped([arch], None, [key.head_dim], own, [tuned.STORED[key.bits]])
    fit = (s for s in specs if s.key == key and (s.op != "decode" or tile.cta_s in s.decode_tiles()))  # no cut has 64 keys
    return list(dict.fromkeys(replace(spec, **fields_of(tile)) for spec in fit))


def timed(key: Key, arch: str, tile: Tile) -> list[KernelSpec]:
    """Those of them that are timed: plain, of float16; where query tiles are few, prefill takes another than where they are many."""
    first = variants(key, arch, tile)[0]
    return list(dict.fromkeys((first, first.in_parts)))


def load(specs: Sequence[KernelSpec], device: Device, shelf: Store) -> str:
    """Load kernels, which `shelf` should have; why that is no good, empty if it is: one spills, or the driver refuses it."""
    from pagedattn import build  # here and not above: `import pagedattn` stays quick

    for spec in specs:
        try:
            kernel = build.make(spec, shelf)
            most = STACK_BYTES[spec.key.op]
            if kernel.stack_bytes > most or (not most and kernel.spill_bytes):
                whose = "" if spec is specs[0] else f", as {spec.name}"
                return f"spills {kernel.spill_bytes} bytes of a thread, {kernel.stack_bytes} on the stack{whose}"
            device.load(kernel)
        except PagedAttnError as error:
            return str(error).splitlines()[0]
    return ""


class Trial:
    """The workloads of one key on a device.

    Parameters
    ----------
    device : Device
        Where rows are tried; its `model` must not be empty.
    key : Key
    group : int
        Query heads of each KV head.
    shapes : sequence of Shape, optional
        What is timed; None: `SHAPES`.
    """

    def __init__(self, device: Device, key: Key, group: int, shapes: Sequence[Shape] | None = None) -> None:
        self.device, self.key, self.group = device, key, group
        assert device.arch is not None
        self.shipped = tuned.row_of(tuned.spec_of(key, device.arch.name), "").tile
        self.shapes = tuple(SHAPES[key.op] if shapes is None else shapes)
        self._works: list[_Work] = []
        self._checked: dict[str, _Work] = {}  # by dtype

    def wrong(self, tile: Tile, *, thorough: bool = False) -> str:
        """Why a row is not right; empty if it is: attention on ragged sequences in NaN-filled memory, compared with float64.

        `thorough` takes both types of activations besides, new rows that come with the call, scores that are adjusted, and sequences that
        are cut (decode).
        """
        from pagedattn import testing  # here and not above: `import pagedattn` stays quick

        assert self.device.arch is not None
        types = dtypes.ACTIVATIONS if thorough and self.device.arch.family == "sm80" else ("float16",)
        calls: list[tuple[bool, dict[str, Any]]] = [(False, {})]  # whether new rows come with it; its keywords
        if thorough:
            calls += [(True, {}), (False, {"softcap": 20.0})]
            calls += [(False, {"num_splits": 3})] if self.key.op == "decode" else []
        for dtype in types:
            if dtype not in self._checked:
                self._checked[dtype] = _Work(self.device, self.key, self.group, CHECKED[self.key.op], dtype, layers=1)
            work = self._checked[dtype]
            for brings, keywords in calls:
                rows = work.new if brings else None
                with self._using(tile, work):
                    work.out[...] = np.nan
                    try:
                        work.call(0, k=rows, v=rows, **keywords)
                        testing.assert_matches_reference(work.out, work.q, work.cache, work.batch, **keywords)
                    except (AssertionError, PagedAttnError) as error:
                        asked = ", ".join([dtype, *keywords, *([] if rows is None else ["k", "v"])])
                        return f"wrong, or refused ({asked}): {error}"
        return ""

    def seconds(self, tile: Tile) -> tuple[float, ...]:
        """A call of each workload with a row: the median of bursts."""
        if not self._works:
            self._works = [self._filled(shape) for shape in self.shapes]
        return tuple(self._burst(tile, work) for work in self._works)

    def _filled(self, shape: Shape) -> _Work:
        try:
            return _Work(self.device, self.key, self.group, ((shape.new, shape.length),) * shape.sequences, "float16")
        except MemoryError as error:
            raise UnsupportedError(f"the GPU must have room for {shape} tokens of {KV_HEADS} KV heads; got: {error}") from error

    def _burst(self, tile: Tile, work: _Work) -> float:
        with self._using(tile, work):
            if not work.calls:
                work.call(0)
                once = self.device.seconds(lambda: work.call(1))
                work.calls = max(1, min(MOST_CALLS, round(BURST_SECONDS / max(once, 1e-9))))

            def burst() -> None:
                for i in range(work.calls):
                    work.call(i)

            burst()
            return median([self.device.seconds(burst) for _ in range(BURSTS)]) / work.calls

    @contextmanager
    def _using(self, tile: Tile, work: _Work) -> Iterator[None]:
        """Calls in its body take this row, the way every call takes its own."""
        assert self.device.arch is not None
        row = None if tile == self.shipped else tile  # with the shipped row, long sequences have their own
        with tuned.trying(self.device.model, self.device.arch.name, self.key, row):
            try:
                dispatch.spec_for.cache_clear()
                work.batch.plans.clear()
                yield
            finally:
                dispatch.spec_for.cache_clear()
                work.batch.plans.clear()


class _Work:
    """Sequences in a cache of blocks in random order, filled with normal values; `call(i)` attends to layer i, counted round."""

    def __init__(
        self, device: Device, key: Key, group: int, lengths: Sequence[tuple[int, int]], dtype: str, layers: int | None = None
    ) -> None:
        rng = np.random.default_rng(0)
        blocks = [-(-length // BLOCK_LEN) for _, length in lengths]
        kind: dict[str, Any] = {"num_kv_heads": KV_HEADS, "head_dim": key.head_dim, "block_len": BLOCK_LEN}
        kind.update(dtype=dtype, kv_dtype=tuned.STORED[key.bits], device=device)
        if layers is None:
            one = KVCache(1, **kind).layout.block_bytes * sum(blocks)
            layers = min(MOST_LAYERS, BEYOND_L2 // one + 1) if key.op == "decode" else 1
        self.cache, self.layers, self.calls = KVCache(sum(blocks), num_layers=layers, **kind), layers, 0
        self.cache.pool[...] = 0xFF  # NaN in every type
        order, table = rng.permutation(sum(blocks)), np.zeros((len(blocks), max(blocks)), np.int32)
        for row, (end, count) in zip(table, zip(np.cumsum(blocks), blocks, strict=True), strict=True):
            row[:count] = order[end - count : end]
        new, whole = (list(x) for x in zip(*lengths, strict=True))
        self.batch = Batch(table, new, whole, device=device)
        element = dtypes.of(dtype).numpy
        shape = (min(CHUNK, max(whole)), KV_HEADS, key.head_dim)
        k, v = (device.asarray(rng.standard_normal(shape, dtype=np.float32).astype(element)) for _ in range(2))
        for row, length in zip(table, whole, strict=True):
            for start in range(0, length, CHUNK):
                count = min(CHUNK, length - start)
                piece = Batch(row[None], [count], [start + count], device=device)
                for layer in range(layers):
                    append(k[:count], v[:count], self.cache, piece, layer=layer)
        shape = (sum(new), group * KV_HEADS, key.head_dim)
        self.q = device.asarray(rng.standard_normal(shape, dtype=np.float32).astype(element))
        self.out = device.empty(shape, element)
        self.new = k[: sum(new)] if sum(new) <= len(k) else None  # rows that may come with the call

    def call(self, i: int, **keywords: Any) -> None:
        paged_attention(self.q, self.cache, self.batch, layer=i % self.layers, out=self.out, **keywords)
