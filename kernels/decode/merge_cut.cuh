// Parts of keys become groups: in the warp that has them all, or at the end, where warps of a CTA share one; in the order of the keys.
#pragma once

#include "decode/cut_cursor.cuh"
#include "decode/lane_sum.cuh"
#include "decode/merged.cuh"

// Pieces in the workspace: a place for every group of every segment, then for each warp places for parts of groups that it shares with the
// next warps (its own sum of the group's first parts in place 0, a later part in the place of its number) and, where shared memory has no
// room for it, its sum. kAtOnce: parts that are on their way at once when they are added up.
template<class P_, class Place_, int kWarps, int kPartTiles, int kParts, bool kSharedSums, int kAtOnce>
struct CutMerge {
    using P = P_;
    using Place = Place_;
    using Sum = LaneSum<P>;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kSumFloats = Sum::kFloats, kWarpFloats = kParts * P::kFloats + (kSharedSums ? 0 : kSumFloats);

    struct Open {  // a group that a warp began and did not finish
        int segment, index, alone, next, parts;
        OutRows rows;
    };
    struct SharedStorage {
        Open open[kWarps];
        int found_end[kWarps];  // of the group that a warp found begun: past its last part
    };

    SharedStorage& shared;
    float* own_sums;  // of the warps, where shared memory holds them

    // No barrier follows: a warp clears and notes its own.
    DEVICE void Begin(int warp, int lane) const
    {
        if (lane == 0) {
            shared.open[warp].parts = shared.found_end[warp] = 0;
        }
        __syncwarp();
    }

    template<class Params>
    static DEVICE float* group_piece(const Params& p, int segment, int index)
    {
        return p.partial_o + ((i64)segment * p.max_splits + index) * P::kFloats;
    }

    template<class Params>
    static DEVICE float* part_piece(const Params& p, int warp, int part)
    {
        const i64 groups = (i64)p.batch_size * Place::slots(p) * p.max_splits;
        return p.partial_o + groups * P::kFloats + (i64)(blockIdx.x * kWarps + warp) * kWarpFloats + part * P::kFloats;
    }

    // Takes the part [first, c.tile) of a warp's walk.
    template<class Params>
    DEVICE void AddPart(const Params& p, const typename P::State& state, const Place& c, int first, int row) const
    {
        const int thread = opaque_id((int)threadIdx.x), warp = thread / kWarpSize, lane = thread % kWarpSize;
        Sum sum(kSharedSums ? own_sums + warp * kSumFloats : part_piece(p, warp, kParts), lane);
        if (uniform(Place::walk().begun && first > Place::walk().group.begin)) {
            sum.Add(state);
        }
        else {
            sum.Keep(state);
        }
        const auto& walk = Place::walk();
        if (uniform(walk.begun && c.tile < min(walk.group.end, c.stop))) {
            return;
        }
        const OutRows rows = OutRows::of<typename P::Impl>(p, c.b, c.slot, row);
        const int segment = c.segment(p), index = walk.group.index;
        const bool whole = walk.begun && c.tile == walk.group.end;
        const int part = (u32)(first - walk.group.begin) / kPartTiles;
        float* const piece = whole ? group_piece(p, segment, index) : part_piece(p, warp, walk.begun ? 0 : part);
        sum.Store(p, rows, whole && walk.alone ? nullptr : piece, lane);
        if (lane == 0 && !whole) {
            if (walk.begun) {
                const int parts = (u32)(walk.group.end - walk.group.begin + kPartTiles - 1) / kPartTiles;
                shared.open[warp] = Open{segment, index, walk.alone, part + 1, parts, rows};
            }
            else {
                shared.found_end[warp] = part + 1;
            }
        }
    }

    // Groups that warps of this CTA share: the sum of the first one's parts, then part by part.
    template<class Params>
    DEVICE void MergeGroups(const Params& p, int thread) const
    {
        const int lane = thread % kWarpSize, items = min(P::kHeads, p.group_size) * P::kQuads;
        const u32 open = __ballot_sync(kFullWarp, lane < kWarps && shared.open[lane < kWarps ? lane : 0].parts > 0);
#pragma unroll 1
        for (int i = thread; i < __popc(open) * items; i += kThreads) {
            u32 rest = open;
            int item = i;
#pragma unroll 1
            for (; item >= items; item -= items) {
                rest &= rest - 1;
            }
            const int warp = __ffs(rest) - 1, head = item / P::kQuads, quad = item % P::kQuads;
            const Open& o = shared.open[warp];
            if (head >= o.rows.heads) {
                continue;
            }
            const Merged sum = AddParts(p, o, warp, head, quad);
            if (o.alone) {
                sum.template Store<P>(p, o.rows, head, quad);
            }
            else {
                sum.template Keep<P>(group_piece(p, o.segment, o.index), head, quad);
            }
        }
    }

private:
    // Of a group that `warp` began; the next warps have the other parts.
    template<class Params>
    DEVICE Merged AddParts(const Params& p, const Open& o, int warp, int head, int quad) const
    {
        Merged sum;
        sum.template Load<P>(part_piece(p, warp, 0), head, quad);
        int owner = warp + 1;
#pragma unroll 1
        for (int first = 1; first < o.parts; first += kAtOnce) {
            Merged part[kAtOnce];
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const int k = first + n;
                part[n].Clear();
                if (k >= o.next && k < o.parts) {
#pragma unroll 1
                    while (shared.found_end[owner] <= k) {
                        ++owner;
                    }
                    part[n].template Load<P>(part_piece(p, owner, k), head, quad);
                }
            }
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                if (first + n >= o.next && first + n < o.parts) {
                    sum.Add(part[n]);
                }
            }
        }
        return sum;
    }
};
