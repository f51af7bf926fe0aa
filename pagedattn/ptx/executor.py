"""What instructions do that want the other lanes of a warp: masks, shuffles, votes, fragments and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx import mma
from pagedattn.ptx.accesses import Accesses
from pagedattn.ptx.lanes import Lanes
from pagedattn.ptx.memory import Problem
from pagedattn.ptx.program import Instruction

Array = NDArray[Any]


class Executor(Accesses):
    """The calls that blocks make."""

    def members(self, mask: Any, i: Instruction, w: Lanes) -> None:
        """Every lane that `mask` names must be here, and every lane that is here must be named."""
        warps, here = w.masks()
        wanted = np.asarray(mask, np.uint32)
        if wanted.ndim:
            wanted = w.spread(np.broadcast_to(wanted, w.n))
            lanes = (here[:, None] >> np.arange(32, dtype=np.uint32)) & 1
            wanted = np.bitwise_or.reduce(np.where(lanes != 0, wanted, np.uint32(0)), axis=1)
        missing = wanted & ~here
        if missing.any():
            at = int(np.argmax(missing != 0))
            absent = [k for k in range(32) if int(np.broadcast_to(missing, len(warps))[at]) >> k & 1]
            self.fault(
                Problem("missing lanes", w.index >> 5 == warps[at], f"the lanes that the mask names must be here; missing are {absent}"),
                i,
                w,
            )

    def warp_barrier(self, mask: Any, i: Instruction, w: Lanes) -> None:
        self.members(mask, i, w)
        self.shared.warp_barrier(w.index)

    def activemask(self, w: Lanes) -> Array:
        _, masks = w.masks()
        return w.gather(np.repeat(masks[:, None], 32, axis=1))

    def full(self, i: Instruction, w: Lanes) -> None:
        if not w.whole:
            self.members(0xFFFFFFFF, i, w)

    def shuffle(self, mode: str, a: Array, b: Any, bound: Any, mask: Any, i: Instruction, w: Lanes) -> tuple[Array, Array]:
        """shfl.sync (PTX ISA 9.7.9.6): the value of the lane that `mode` says, its own where that lies outside the segment."""
        self.members(mask, i, w)
        lane = np.arange(32, dtype=np.int64)
        b, bound = (w.spread(np.broadcast_to(x, w.n)).astype(np.int64) if np.ndim(x) else np.int64(x) for x in (b, bound))
        b, clamp, segment = b & 31, bound & 31, (bound >> 8) & 31
        high = (lane & segment) | (clamp & ~segment)
        low = lane & segment
        if mode == "up":
            source = lane - b
            inside = source >= high
        elif mode == "down":
            source = lane + b
            inside = source <= high
        elif mode == "bfly":
            source = lane ^ b
            inside = source <= high
        else:
            source = low | (b & ~segment)
            inside = source <= high
        values = w.spread(a)
        source = np.broadcast_to(np.where(inside, source, lane), values.shape)
        result = np.take_along_axis(values, source, axis=1)
        return w.gather(result), w.gather(np.ascontiguousarray(np.broadcast_to(inside, values.shape)))

    def vote(self, mode: str, p: Array, mask: Any, i: Instruction, w: Lanes) -> Array:
        self.members(mask, i, w)
        values, (_, here) = w.spread(p), w.masks()
        bits = np.bitwise_or.reduce(values.astype(np.uint32) << np.arange(32, dtype=np.uint32), axis=1)
        if mode == "ballot":
            result = bits
        elif mode == "any":
            result = bits != 0
        elif mode == "all":
            result = bits == here
        else:
            result = (bits == here) | (bits == 0)
        return w.gather(np.repeat(result[:, None], 32, axis=1))

    def reduce(self, mode: str, a: Array, mask: Any, i: Instruction, w: Lanes) -> Array:
        """redux.sync over the lanes that are here, which are those of the mask."""
        self.members(mask, i, w)
        ufunc: Any = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[mode]
        info = np.iinfo(a.dtype)
        neutral = {"min": info.max, "max": info.min, "and": -1 if a.dtype.kind == "i" else info.max}.get(mode, 0)
        values = w.spread(a)
        if not w.whole:
            here = w.spread(np.ones(w.n, bool))
            values = np.where(here, values, a.dtype.type(neutral))
        result = ufunc.reduce(values, axis=1, dtype=a.dtype)
        return w.gather(np.repeat(result[:, None], 32, axis=1))

    def ldmatrix(self, address: Array, count: int, transposed: bool, i: Instruction, w: Lanes) -> list[Array]:
        self.full(i, w)
        if count < 4:  # lanes beyond hold no address
            some = np.tile(np.arange(32) < 8 * count, w.n // 32)
            rows = self._load_shared(address[some], 16, i, w.where(some))
        else:
            rows = self._load_shared(address, 16, i, w)
        found = mma.ldmatrix(rows.view(np.uint32).reshape(-1, 8 * count, 4), count, transposed)
        return [x.reshape(-1) for x in found]

    def movmatrix(self, a: Array, i: Instruction, w: Lanes) -> Array:
        self.full(i, w)
        return mma.movmatrix(a.reshape(-1, 32)).reshape(-1)

    def mma(
        self, shape: str, kind: str, order: tuple[str, str], a: list[Array], b: list[Array], c: list[Array], i: Instruction, w: Lanes
    ) -> list[Array]:
        self.full(i, w)
        x, y, z = ([r.reshape(-1, 32) for r in group] for group in (a, b, c))
        found = mma.m8n8k4(x, y, z, *order) if shape == "m8n8k4" else mma.m16n8(x, y, z, kind)
        return [r.reshape(-1) for r in found]
