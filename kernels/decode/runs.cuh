// What a CTA's warps leave at the end of a flat launch: pieces, of which those that follow each other in one segment are a run.
#pragma once

#include "core/types.cuh"
#include "core/warp.cuh"
#include "decode/pieces.cuh"

struct Part {  // of a segment: tiles [first, end) of `tiles`
    int b, slot, row, start, tiles, first, end;
};

struct Run {
    int b, slot, row, first;  // of the first piece
    int count;
    bool ended;  // with the segment's last tile

    DEVICE bool received() const { return ended && first > 0; }

    template<class Impl, class Params>
    DEVICE OutRows rows(const Params& p) const
    {
        return OutRows::of<Impl>(p, b, slot, row);
    }
};

// Which of kParts pieces there are, and with which of them runs start.
template<int kParts>
struct Runs {
    static_assert(kParts <= kWarpSize, "one lane for each piece");
    u32 pieces, starts;

    // Those of part whose b is not negative.
    DEVICE Runs(const Part* part, int lane)
    {
        const bool own = lane < kParts && part[lane].b >= 0;
        const int b = own ? part[lane].b : -1, slot = own ? part[lane].slot : 0;
        pieces = __ballot_sync(kFullWarp, own);
        const int before = 31 - __clz(pieces & ((1u << lane) - 1));
        const int before_b = __shfl_sync(kFullWarp, b, max(before, 0)), before_slot = __shfl_sync(kFullWarp, slot, max(before, 0));
        starts = __ballot_sync(kFullWarp, own && (before < 0 || before_b != b || before_slot != slot));
    }

    // The run that starts with piece e.
    DEVICE Run of(const Part* part, int e) const
    {
        const u32 next = starts & ~((2u << e) - 1), run = pieces & ~((1u << e) - 1) & ((next & -next) - 1);
        const Part& p = part[e];
        return {p.b, p.slot, p.row, p.first, __popc(run), part[31 - __clz(run | 1)].end == p.tiles};
    }

    // Of the runs that start with these bits the last one but `number`.
    static DEVICE int last_but(u32 bits, int number)
    {
#pragma unroll 1
        for (; number > 0; --number) {
            bits &= ~(0x80000000u >> __clz(bits));
        }
        return 31 - __clz(bits);
    }
};
