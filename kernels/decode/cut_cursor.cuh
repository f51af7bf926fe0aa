// A warp's walk over what is cut: from part to part.
#pragma once

#include "decode/cuts.cuh"

// A warp's place; it pauses at the end of every part.
template<class Params, int CTA_S, int kPartTiles, int kGroupTiles, int kWarps>
struct CutCursor: Cursor<Params, CTA_S> {
    using Base = Cursor<Params, CTA_S>;
    using CutsOf = Cuts<CTA_S, kPartTiles, kGroupTiles>;
    using Plan = FlatPlan<Params, CTA_S>;
    using Base::stop;
    using Base::tile;
    int pause;         // end of the part
    bool new_segment;  // the part is the first that this warp has of its segment

    // The group that a part is of.
    struct Walk {
        Group group;
        int begun;  // its first part is this warp's, too
        int alone;  // it is all of its segment
    };

    // In shared memory, for main loops have no registers to spare.
    static DEVICE Walk& walk()
    {
        __shared__ Walk walks[kWarps];
        return walks[opaque_id((int)threadIdx.x) / kWarpSize];
    }

    // What a CTA has of the list.
    struct Share {
        Base ends[2];  // at its begin, and where it ends
        int end;
    };

    // A warp's units [begin, end): an equal share of the CTA's, moved to where parts begin; and the CTA's is one of the list, moved to where groups
    // begin. Every search and division stands here once, for code that runs once is paid for by its length.
    struct Range {
        int begin, end;
        Base first;  // at the begin, where there is a unit; the same in every lane of a warp, and known to be
        bool idle;   // the CTA has none

        DEVICE Range(const Params& p, const Plan& plan, Share& share, int thread): begin(0), end(plan.total), first{}
        {
            const int lane = thread % kWarpSize;
#pragma unroll 1
            for (int level = 0; level < 2; ++level) {  // the CTA's, the warp's
                const Shares shares = Shares::of(end - begin, level ? kWarps : gridDim.x);
                const int worker = level ? uniform(thread / kWarpSize) : blockIdx.x;
                int at = begin + shares.begin(worker + 1), to = -1;  // first the end
#pragma unroll 1
                for (;;) {
                    if (at < end) {
                        first = plan.find(p, lane, at);
                        first.tile = CutsOf(p, first).next(first.tile, level ? kPartTiles : kGroupTiles);
                        at = first.start + (first.tile ? kSegmentUnits + first.tile : 0);
                    }
                    if (level == 0 && thread == 0) {
                        share.ends[to < 0 ? 1 : 0] = first;
                    }
                    if (to < 0) {
                        to = at;
                        at = begin + shares.begin(worker);
                    }
                    else if (at >= to || first.tile < first.tiles) {
                        break;
                    }
                }
                begin = at;
                end = to;
                if (level == 0) {
                    idle = begin >= end;
                    if (thread == 0) {
                        share.end = end;
                    }
                }
            }
        }
    };

    DEVICE explicit CutCursor(const Range& range): Base(range.first), new_segment(true) {}

    DEVICE bool paused() const { return tile >= pause; }
    DEVICE bool entered() const { return new_segment; }

    // Before the first tile of a part.
    DEVICE void enter(const Params& p)
    {
        if (uniform(new_segment || tile == walk().group.end)) {
            const Group group = CutsOf(p, *this).at(tile);
            __syncwarp();
            if (threadIdx.x % kWarpSize == 0) {
                walk() = Walk{group, tile == group.begin, group.begin == 0 && group.end == this->tiles};
            }
            __syncwarp();
        }
        pause = uniform(min(min(tile + kPartTiles, walk().group.end), stop));
    }

    template<class... Next>
    DEVICE void leave(const Next&... next)
    {
        new_segment = this->done();
        if (new_segment) {
            Base::leave(next...);
        }
    }
};
