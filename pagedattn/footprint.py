"""Footprint: what a CTA of a spec takes of a multiprocessor's shared memory, and whether a target grants it."""

from __future__ import annotations

from pagedattn import arch as archs
from pagedattn import dtypes

TILED = ("prefill", "varlen")  # CTAs that own a tile of queries
STATIC_SHARED_BYTES = 2048  # what the templates declare statically never passes this; the tests compare it with ptxas
MERGED_BYTES = 32  # of a thread's sum of pieces: m, l and four dims, aligned to 16
RANGE_QUERIES = 64  # which share a range of the keys that a mask keeps
GROUP_KEYS = 512  # decode with cuts: the most keys that are summed up before they meet others
_LINE_BYTES = 128
_PROBABILITY_ROW_BYTES = 96  # of one head in m8n8k4's decode: 32 keys in T, and what keeps rows in different banks


class Footprint:
    """Sizes that follow from a KernelSpec's fields."""

    op: str
    dtype: str
    kv_dtype: str | None
    head_dim: int
    arch: str
    family: str | None
    mma: str | None
    cta_s: int | None
    cta_q: int | None
    stages: int | None
    warps: int | None
    min_ctas: int | None
    heads: int | None
    splits: str | None

    @property
    def generation(self) -> archs.Arch:
        """The target whose limits the tiles keep: the one that the source is written for, whatever it is compiled for."""
        own = archs.parse(self.arch)
        return archs.ARCHS[archs.MMAS[self.mma][1]] if self.mma and self.family == "sm70" and own.family != self.family else own

    @property
    def quantised(self) -> bool:
        """Whether the cache holds codes."""
        return self.kv_dtype != self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head in the cache."""
        return self.head_dim * dtypes.of(self.kv_dtype).bits // 8

    @property
    def ring_bytes(self) -> int:
        """Decode: one warp's ring of K and V tiles, or its only slot. Prefill: the CTA's ring, or its places of K and V."""
        tile = 2 * (self.cta_s or 0)
        if self.op == "decode" and self.family == "sm70":  # K and V take turns; parameters of both
            slot = tile // 2 * self.row_bytes + (tile * 4 if self.quantised else 0)
            return _lines(max(slot, self.piece_bytes) if self.shared_pieces else slot)
        if self.op in TILED and self.family == "sm70":  # places of tiles of T; codes wait in registers
            return (self.stages or 0) * (self.cta_s or 0) * self.head_dim * 2
        if not self.quantised:
            return (self.stages or 0) * tile * self.row_bytes
        codes = tile * (self.row_bytes + 4)  # and (scale, zero) of each row
        return (self.stages or 0) * codes if self.op == "decode" else codes + (self.stages or 0) * tile * self.head_dim * 2

    @property
    def piece_bytes(self) -> int:
        """A piece of split work in float32. Decode: O (heads, head_dim), m and l (heads). Prefill: every thread's O, m and l."""
        if self.op in TILED:
            # m and l of one of a thread's rows: the others' are those of other threads, too
            return 4 * (self.cta_q or 0) * self.head_dim + 8 * 32 * (self.warps or 0)
        return 4 * (self.heads or 0) * (self.head_dim + 2)

    @property
    def query_bytes(self) -> int:
        """Shared memory of the queries: prefill's tile; decode's only where registers do not hold it (once per warp)."""
        if self.op in TILED:
            return (self.cta_q or 0) * self.head_dim * 2
        return (self.heads or 0) * self.head_dim * 2 if self.query_in_shared else 0

    @property
    def private_bytes(self) -> int:
        """Decode: shared memory of a warp beside its ring: its queries and, by m8n8k4, its probabilities."""
        return self.query_bytes + ((self.heads or 0) * _PROBABILITY_ROW_BYTES if self.mma == "m8n8k4" else 0)

    @property
    def query_in_shared(self) -> bool:
        """Decode: 16 heads of a wide head leave no registers for Q beside O; m8n8k4 reads the same Q in every quad pair."""
        return self.op == "decode" and (self.mma == "m8n8k4" or (self.heads or 0) * self.head_dim > 16 * 128)

    @property
    def few_registers(self) -> bool:
        """Decode from codes: addresses are recomputed rather than kept where packs, heads, cuts or waiting tiles need the registers."""
        return self.family == "sm70" or (self.heads or 0) > 8 or self.head_dim > 192 or self.splits == "cut"

    @property
    def shared_pieces(self) -> int:
        """Decode, flat: how many of a warp's two pieces lie in shared memory, the first of them in its ring; others in the workspace."""
        if self.op != "decode" or self.splits != "flat":
            return 0
        if self.family == "sm80":
            return 2
        slot = (self.cta_s or 0) * (self.row_bytes + (8 if self.quantised else 0))
        for pieces in (2, 1):
            own = _lines(max(slot, self.piece_bytes)) + (pieces - 1) * self.piece_bytes + self.private_bytes
            if (self.warps or 0) * own <= self._room:
                return pieces
        return 0

    @property
    def range_queries(self) -> int:
        """Queries that share a range of the keys that a mask keeps."""
        return RANGE_QUERIES

    @property
    def group_keys(self) -> int:
        """Decode, cut: the most keys of a group; longer cuts are made of several."""
        return GROUP_KEYS

    @property
    def part_keys(self) -> int:
        """Decode, cut: keys of a part, which is one warp's. Results depend on it: it must follow from nothing but the kinds of keys.

        Small parts spread short work evenly, but each costs its warp about half a microsecond on an H200 (benchmarks/NOTES.md).
        """
        return 256 if dtypes.of(self.kv_dtype).bits == 4 else 128

    @property
    def sum_bytes(self) -> int:
        """Decode, cut: what a warp's lanes keep of a group while they compute its next part."""
        return 4 * (self.heads or 0) * (self.head_dim + 16) if self.splits == "cut" else 0

    @property
    def shared_sums(self) -> bool:
        """Decode, cut: whether shared memory holds the sums."""
        own = self.ring_bytes + self.private_bytes + self.sum_bytes
        return self.splits == "cut" and self.family == "sm80" and (self.warps or 0) * own <= self._room

    @property
    def warp_bytes(self) -> int:
        """Decode, cut: a warp's workspace, for the parts of groups that it shares with others."""
        return self.group_keys // self.part_keys * self.piece_bytes + (0 if self.shared_sums else self.sum_bytes)

    def cut_divisor(self, num_splits: int) -> int:
        """Decode, cut: what tiles are divided by, the number of cuts or the tiles of one; `num_splits` as AttentionParams has it."""
        return num_splits if num_splits > 0 else -num_splits // (self.cta_s or 1)

    def group_places(self, num_splits: int, keys: int) -> int:
        """Decode, cut: the most groups of a segment of so many keys; `num_splits` as AttentionParams has it."""
        tile, most = self.cta_s or 1, self.group_keys // (self.cta_s or 1)
        tiles = max(1, -(-keys // tile))
        if num_splits > 0:
            longest = -(-tiles // num_splits)
            return min(num_splits, tiles) * -(-longest // most)
        cut = self.cut_divisor(num_splits)
        last = tiles - 1
        return last // cut * -(-cut // most) + last % cut // most + 1

    def cut_bytes(self, grid: int, segments: int, places: int) -> int:
        """Decode, cut: the workspace of a launch: a piece for every group, and what warps have for themselves."""
        return segments * places * self.piece_bytes + grid * (self.warps or 0) * self.warp_bytes

    @property
    def query_base(self) -> int:
        """Decode: where the warps' private bytes begin in shared memory."""
        if self.splits == "cut":
            return (self.warps or 0) * self.ring_bytes
        return self.shared_bytes - (self.warps or 0) * self.private_bytes

    @property
    def cta_pieces(self) -> int:
        """Pieces of a CTA that may lie in the workspace, unless the caller says how sequences are cut.

        Prefill: one. Decode: each warp's, one of the segment that it found begun and one of the segment that it left, that find no place in
        shared memory.
        """
        return 1 if self.op in TILED else (2 - self.shared_pieces) * (self.warps or 0)

    @property
    def sent_words(self) -> int:
        """Decode, flat: zeroed words of a CTA, for the piece that it sends another one (kernels/decode/sent.cuh)."""
        return self.piece_bytes // 4

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""
        if self.op == "decode":
            pieces = self.piece_bytes if self.shared_pieces == 2 else self.sum_bytes if self.shared_sums else 0
            taken = (self.warps or 0) * (self.ring_bytes + self.private_bytes + pieces)
            return max(taken, 2 * 32 * (self.warps or 0) * MERGED_BYTES) if self.splits == "cut" else taken
        if self.op == "append":  # a warp's rows on their way through bias and rotation
            return 512 * (self.warps or 0) if self.quantised else 0
        return self.ring_bytes + self.query_bytes if self.op in TILED else 0

    @property
    def _room(self) -> int:
        """Dynamic shared memory that a CTA may have."""
        return min(self.generation.cta_shared_bytes, archs.parse(self.arch).cta_shared_bytes) - STATIC_SHARED_BYTES

    def _fits(self) -> bool:
        taken = self.shared_bytes + STATIC_SHARED_BYTES
        return all(
            taken <= target.cta_shared_bytes and (self.min_ctas or 1) * (taken + 1024) <= target.sm_shared_bytes + STATIC_SHARED_BYTES
            for target in {archs.parse(self.arch), self.generation}
        )


def _lines(n: int) -> int:
    """Bytes rounded up to whole lines of shared memory."""
    return -(-n // _LINE_BYTES) * _LINE_BYTES
