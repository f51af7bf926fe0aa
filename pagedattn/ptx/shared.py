"""Shared memory that knows who wrote and read each word since when, and so finds unwritten reads, races and copies that have not arrived.

A stamp is who and when (stamps.py). Two accesses are ordered if a CTA barrier lies between them, or if they are of one warp and a warp
barrier does, or one thread, or if the later one's warp knows of the earlier one by an mbarrier (mbarriers.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagedattn.ptx.mbarriers import Mbarriers
from pagedattn.ptx.memory import WIDTHS, Problem
from pagedattn.ptx.stamps import EPOCH, LANES, ONE, ONE_BARRIER, OTHER_WARP, PENDING, unordered, warp_and_time, who

Array = NDArray[Any]

START = 1024  # where hardware since sm_80 begins, too; so that address 0 is wrong


class _Copy(NamedTuple):
    """A cp.async on its way: words, the lanes that issued it, and each lane's group."""

    words: Array
    lanes: Array
    groups: Array


class SharedMemory:
    """The shared memory of `ctas` CTAs.

    Parameters
    ----------
    ctas, warps, size : int
        CTAs that run together, warps of one, bytes of one.
    fine : int
        So many bytes from the start have a stamp each; then each word of 4 has one.
    check : bool
        Whether words have stamps; bounds and alignment are always checked.
    """

    def __init__(self, ctas: int, warps: int, size: int, fine: int = 0, check: bool = True) -> None:
        self.size, self.fine, self.checked = size, (fine + 15) // 16 * 16, check
        self.stride = (max(size, self.fine) + 15) // 16 * 16
        self.stamps = self.fine + (self.stride - self.fine) // 4  # of one CTA
        self.bytes = np.zeros(max(16, ctas * self.stride), np.uint8)
        self._views = {w: self.bytes.view(t) for w, t in WIDTHS.items()}
        lane = np.arange(ctas * warps * 32, dtype=np.uint64)
        warp = lane // np.uint64(32) % np.uint64(warps)
        self.stamp = EPOCH + warp * OTHER_WARP + (lane & LANES)
        self.warps = warps
        words = ctas * self.stamps if check else 0
        self.writer, self.reader, self.other = (np.zeros(words, np.uint64) for _ in range(3))
        self.written_at, self.read_at, self.also_read_at = (np.zeros(words, np.int32) for _ in range(3))  # PTX lines
        self.places: dict[int, str] = {}  # what to call a line of PTX
        self.issued = np.zeros(len(lane), np.int64)
        self.arrived = np.zeros(len(lane), np.int64)
        self._copies: list[_Copy] = []
        self.barriers = Mbarriers(ctas, warps)

    def cta_barrier(self, ctas: Array) -> None:
        """Every thread of these CTAs has passed a barrier."""
        stamps = self.stamp.reshape(-1, self.warps * 32)
        stamps[ctas] += EPOCH

    def warp_barrier(self, lanes: Array) -> None:
        """These lanes have passed bar.warp.sync."""
        self.stamp[lanes] += ONE_BARRIER

    def check_place(self, address: Array, width: int) -> Problem | None:
        odd = (address & (width - 1)) != 0
        if odd.any():
            detail = f"a shared access of {width} bytes must lie at a multiple of {width}; got {self.where(int(address[odd][0]), width)}"
            return Problem("misaligned", odd, detail)
        if int(address.min()) < START or int(address.max()) + width > START + self.size:
            wrong = (address < START) | (address + width > START + self.size)
            detail = f"the CTA has {self.size} bytes of shared memory; got an access to {self.where(int(address[wrong][0]), width)}"
            return Problem("out of bounds", wrong, detail)
        return None

    @staticmethod
    def where(address: int, width: int) -> str:
        """Bytes, counted from the start of the CTA's shared memory."""
        return f"bytes {address - START} .. {address - START + width - 1}"

    def flat(self, address: Array, cta: Array) -> Array:
        result: Array = address - START + cta * self.stride
        return result

    def _words(self, flat: Array, width: int) -> Array:
        """The stamps of each access, (lanes, stamps)."""
        if not self.fine:
            count = max(1, width // 4)
            first = flat // 4
            return first[:, None] + np.arange(count) if count > 1 else first[:, None]
        cta, offset = np.divmod(flat, self.stride)
        base = (cta * self.stamps)[:, None]
        if int(offset.min()) >= self.fine:
            result: Array = base + self.fine + ((offset - self.fine) // 4)[:, None] + np.arange(max(1, width // 4))
            return result
        each = offset[:, None] + np.arange(width)
        return base + np.where(each < self.fine, each, self.fine + (each - self.fine) // 4)

    def read(self, flat: Array, width: int) -> Array:
        found: Array = self._views[width][flat // width]
        return found

    def write(self, flat: Array, values: Array, width: int) -> None:
        self._views[width][flat // width] = values

    def note_read(self, flat: Array, lanes: Array, width: int, line: int = 0) -> Problem | None:
        """Stamp a read; says what is wrong with it."""
        words = self._words(flat, width)
        mine = np.broadcast_to(self.stamp[lanes][:, None], words.shape)
        writer = self.writer[words]
        odd = (writer - ONE) >= (PENDING - ONE)
        if odd.any():
            lane, word = self._first(odd)
            if writer[lane, word] == 0:
                return Problem(
                    "unwritten", np.any(odd, axis=1), f"a read must follow a write; nobody wrote {self._name(words[lane, word])}"
                )
            return Problem("pending copy", np.any(odd, axis=1), self._pending(words[lane, word], "read"))
        clash = self._apart(writer, mine, lanes)
        if clash.any():
            lane, word = self._first(clash)
            text = self._unordered(writer[lane, word], "wrote", words[lane, word], self.written_at, "read", mine[lane, word])
            return Problem("race", np.any(clash, axis=1), text)
        before = self.reader[words]
        keep = unordered(before, mine)
        if keep.any():
            self._remember(words[keep], before[keep], mine[keep], self.read_at[words[keep]])
        self.reader[words] = mine
        self.read_at[words] = line
        after = self.reader[words]
        lost = after != mine  # lanes that read the same word now
        if lost.any():
            self._remember(words[lost], mine[lost], after[lost], line)
        return None

    def unwritten(self, flat: Array, width: int) -> Problem | None:
        """For atomics, which are ordered among themselves and need a value to begin with."""
        empty = self.writer[self._words(flat, width)] == 0
        return (
            Problem("unwritten", empty.any(1), "an atomic must follow a write; nobody wrote these bytes of shared memory")
            if empty.any()
            else None
        )

    def _remember(self, words: Array, stamps: Array, last: Array, lines: Array | int) -> None:
        """A second reader of words whose last one is `last`: one of another warp wins over one of the same."""
        far = (stamps ^ last) >= OTHER_WARP
        known = self.other[words] ^ last
        replace = far | ~((known < EPOCH) & (known >= OTHER_WARP))
        near = replace & ~far
        self.other[words[near]] = stamps[near]
        self.other[words[far]] = stamps[far]
        self.also_read_at[words] = lines

    def note_write(self, flat: Array, values: Array | None, lanes: Array, width: int, line: int = 0) -> Problem | None:
        """Check and stamp a write of `values` (None: a copy, of unknown ones), before it is made."""
        words = self._words(flat, width)
        mine = np.broadcast_to(self.stamp[lanes][:, None], words.shape)
        for held, verb, at in (
            (self.writer, "wrote", self.written_at),
            (self.reader, "read", self.read_at),
            (self.other, "read", self.also_read_at),
        ):
            stamps = held[words]
            clash = self._apart(stamps & ~PENDING, mine, lanes)
            if verb == "wrote":
                pending = stamps >= PENDING
                if pending.any():
                    lane, word = self._first(pending)
                    return Problem("pending copy", np.any(pending, axis=1), self._pending(words[lane, word], "write"))
                if values is not None and clash.any():
                    clash &= self._differ(flat, values)[:, None]
            if clash.any():
                lane, word = self._first(clash)
                text = self._unordered(stamps[lane, word], verb, words[lane, word], at, "write", mine[lane, word])
                return Problem("race", np.any(clash, axis=1), text)
        self.writer[words] = mine
        self.written_at[words] = line
        after = self.writer[words]
        twice = after != mine
        if twice.any():  # lanes that write the same word now
            lane, word = self._first(twice)
            order = np.argsort(flat, kind="stable")
            differ = flat[order][1:] == flat[order][:-1]
            if values is not None:
                raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(flat), -1)[order]
                differ &= (raw[1:] != raw[:-1]).any(1)
            if differ.any():
                bad = np.zeros(len(flat), bool)
                bad[order[1:][differ]] = bad[order[:-1][differ]] = True
                where = f"to {self._name(words[lane, word])} at once"
                text = f"{who(after[lane, word])} and {who(mine[lane, word])} write different values {where}"
                return Problem("race", bad, text)
        return None

    def _differ(self, flat: Array, values: Array) -> Array:
        """Lanes that would change what is there. Bytes of one word that have one stamp may be different threads'."""
        width = values.itemsize
        if width < 4 and int((flat % self.stride).max()) >= self.fine:
            return np.zeros(len(flat), bool)
        old = np.ascontiguousarray(self.read(flat, width)).view(np.uint8).reshape(len(flat), -1)
        new = np.ascontiguousarray(values).view(np.uint8).reshape(len(flat), -1)
        found: Array = (old != new).any(1)
        return found

    def copy(self, flat: Array, lanes: Array, width: int, line: int = 0) -> Problem | None:
        """A cp.async into these words: nobody may touch them until the issuing lane has waited."""
        if not self.checked:
            return None
        problem = self.note_write(flat, None, lanes, width, line)
        words = self._words(flat, width)
        self.writer[words] |= PENDING
        self._copies.append(_Copy(words, lanes, self.issued[lanes]))
        return problem

    def commit(self, lanes: Array) -> None:
        self.issued[lanes] += 1

    def wait(self, lanes: Array, left: int | None) -> None:
        """cp.async.wait_group: all but the latest `left` groups of these lanes have arrived; None: wait_all, uncommitted ones too."""
        self.arrived[lanes] = np.maximum(self.arrived[lanes], self.issued[lanes] + (1 if left is None else -left))
        rest = []
        for c in self._copies:
            done = c.groups < self.arrived[c.lanes]
            if done.all():
                self.writer[c.words] = self.stamp[c.lanes][:, None]
            elif done.any():
                self.writer[c.words[done]] = self.stamp[c.lanes[done]][:, None]
                rest.append(_Copy(c.words[~done], c.lanes[~done], c.groups[~done]))
            else:
                rest.append(c)
        self._copies = rest
        if left is None:
            self.issued[lanes] += 1

    def barrier_init(self, flat: Array, counts: Array, lanes: Array, line: int) -> Problem | None:
        if problem := self.note_write(flat, counts.astype(np.uint64), lanes, 8, line):
            return problem
        self.barriers.init(flat, counts)
        return None

    def barrier_arrive(self, flat: Array, lanes: Array, line: int) -> Problem | None:
        if problem := self._no_barrier(flat, lanes, line):
            return problem
        self.barriers.arrive(flat, lanes // (32 * self.warps), *warp_and_time(self.stamp[lanes]))
        return None

    def barrier_complete(self, flat: Array, parities: Array, lanes: Array, line: int) -> tuple[Problem | None, Array]:
        if problem := self._no_barrier(flat, lanes, line):
            return problem, np.zeros(0, bool)
        warps, _ = warp_and_time(self.stamp[lanes])
        return None, self.barriers.complete(flat, parities, lanes // (32 * self.warps), warps)

    def _no_barrier(self, flat: Array, lanes: Array, line: int) -> Problem | None:
        missing = self.barriers.missing(flat)
        if missing.any():
            return Problem("unwritten", missing, "mbarrier.init must come before an mbarrier is used; nobody made one here")
        return self.note_read(flat, lanes, 8, line)

    def _apart(self, old: Array, mine: Array, lanes: Array) -> Array:
        """Whether old accesses are of other threads, with nothing between them and mine."""
        clash = unordered(old, mine)
        known = self.barriers.known
        if known is None or not clash.any():
            return clash
        warp, time = warp_and_time(old)
        own, _ = warp_and_time(mine)
        found: Array = clash & ((warp == own) | (time >= known[lanes[:, None] // (32 * self.warps), own, warp % self.warps]))
        return found

    def _place(self, line: int) -> str:
        return self.places.get(line, f"PTX line {line}")

    def _pending(self, word: int, verb: str) -> str:
        issuer, place = who(self.writer[word]), self._place(int(self.written_at[word]))
        return f"a {verb} must follow the wait for the cp.async that {issuer} issued at {place}, to {self._name(word)}"

    def _unordered(self, stamp: Any, verb: str, word: int, at: Array, now: str, mine: Any) -> str:
        before = f"{who(stamp)} {verb} {self._name(word)} at {self._place(int(at[word]))}"
        return f"a barrier must lie between: {before}; got a {now} by {who(mine)}"

    def _name(self, word: int) -> str:
        at = int(word) % self.stamps
        if at < self.fine:
            return f"byte {at} of shared memory"
        at = self.fine + 4 * (at - self.fine)
        return f"bytes {at} .. {at + 3} of shared memory"

    @staticmethod
    def _first(mask: Array) -> tuple[int, int]:
        lane, word = np.unravel_index(int(np.argmax(mask)), mask.shape)
        return int(lane), int(word)
