// A warp's walk over what is cut: from part to part.
#pragma once

#include "decode/cuts.cuh"

// A place that runs from part to part without a pause: of the tiles to load.
template<class Params, int CTA_S, int kPartTiles, int kGroupTiles>
struct CutAhead: Cursor<Params, CTA_S> {
    using Base = Cursor<Params, CTA_S>;
    using CutsOf = Cuts<CTA_S, kPartTiles, kGroupTiles>;
    using Base::stop;

    DEVICE explicit CutAhead(const Base& place): Base(place) {}

    DEVICE void end_at(const Params& p, int end) { stop = CutsOf(p, *this).next_part(end - this->start - kSegmentUnits); }

    DEVICE void leave(const Params& p, int end)
    {
        if (stop == this->tiles) {
            this->enter_next(p);
            stop = 0;
            if (this->tiles > 0) {
                end_at(p, end);
            }
        }
        if (this->done()) {
            this->rest();
        }
    }
};

// A warp's place; it pauses at the end of every part.
template<class Params, int CTA_S, int kPartTiles, int kGroupTiles, int kWarps>
struct CutCursor: CutAhead<Params, CTA_S, kPartTiles, kGroupTiles> {
    using Ahead = CutAhead<Params, CTA_S, kPartTiles, kGroupTiles>;
    using typename Ahead::Base;
    using typename Ahead::CutsOf;
    using Plan = FlatPlan<Params, CTA_S>;
    using Ahead::stop;
    using Ahead::tile;
    int pause;         // end of the part
    bool new_segment;  // the part is the first that this warp has of its segment

    // The group that a part is of.
    struct Walk {
        Group group;
        int begun;  // its first part is this warp's, too
    };

    // In shared memory, for main loops have no registers to spare.
    static DEVICE Walk& walk()
    {
        __shared__ Walk walks[kWarps];
        return walks[opaque((int)threadIdx.x) / kWarpSize];
    }

    // At the first part that begins in units [begin, end).
    DEVICE CutCursor(const Params& p, const Plan& plan, int lane, int begin, int end): Ahead(plan.find(p, lane, begin))
    {
        const CutsOf cuts(p, *this);
        tile = cuts.next_part(tile);
        this->end_at(p, end);
        new_segment = true;
        if (this->done()) {
            leave(p, end);
        }
        else {
            enter_group(cuts, tile == cuts.at(tile).begin);
        }
    }

    // A CTA's units: its share of the list, moved to where groups begin.
    struct Range {
        int begin, end;

        DEVICE Range(const Params& p, const Plan& plan, int lane)
        {
            const Shares shares = Shares::of(plan.total, gridDim.x);
            begin = end = 0;
#pragma unroll 1  // code that runs once is paid for by its length
            for (int i = blockIdx.x; i <= blockIdx.x + 1; ++i) {
                begin = end;
                end = plan.total;
                if (shares.begin(i) < plan.total) {
                    const Base c = plan.find(p, lane, shares.begin(i));
                    const int tile = CutsOf(p, c).next_group(c.tile);
                    end = c.start + (tile ? kSegmentUnits + tile : 0);
                }
            }
        }
    };

    DEVICE void begin(const Params&, int) {}
    DEVICE bool paused() const { return tile >= pause; }
    DEVICE bool entered() const { return new_segment; }

    DEVICE void leave(const Params& p, int end)
    {
        new_segment = this->done();
        if (new_segment) {
            Ahead::leave(p, end);
            if (this->done()) {
                return;
            }
        }
        if (new_segment || tile == walk().group.end) {
            enter_group(CutsOf(p, *this), true);
        }
        else {
            pause = min(min(tile + kPartTiles, walk().group.end), stop);
        }
    }

private:
    DEVICE void enter_group(const CutsOf& cuts, bool begun)
    {
        const Group group = cuts.at(tile);
        pause = min(min(tile + kPartTiles, group.end), stop);
        __syncwarp();
        if (threadIdx.x % kWarpSize == 0) {
            walk() = Walk{group, begun};
        }
        __syncwarp();
    }
};
