// Groups of keys become segments. The groups are added in teams that follow from the kernel alone, and the teams in their order: the same bits
// whether one thread adds all teams or several threads, in whichever CTA, add one each.
#pragma once

#include "decode/merge_cut.cuh"
#include "ptx/gpu_scope.cuh"

template<class Groups, int kWarps>
struct SegmentMerge {
    using P = typename Groups::P;
    using Place = typename Groups::Place;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kTeamBytes = 2 * kThreads * sizeof(Merged);
    static constexpr int kAtOnce = 8;

    struct Segment {
        int index, groups;
        OutRows rows;
    };
    struct SharedStorage {  // of segments that other CTAs share: the one found begun, and the one left unfinished
        int complete[2];    // all of their tiles have arrived
    };

    SharedStorage& shared;
    Merged* sums;

    // Segments of the CTA's share, behind a barrier: those that are all here, and of the others those whose last tiles came with these.
    template<class Params, class Share>
    DEVICE void operator()(const Params& p, const Share& share, int thread) const
    {
        Announce(p, share, thread);
        const int items = min(P::kHeads, p.group_size) * P::kQuads, count = teams(items);
        auto c = share.ends[0];
        int turn = thread;  // threads take items in turn, those of one segment after those of the one before
#pragma unroll 1
        for (int i = -2; i <= 0 || c.start < share.end; ++i) {  // the two that others share, then all from the first on
            const bool shared_out = i < 0;
            if (shared_out && !shared.complete[i + 2]) {  // uniform
                continue;
            }
            if (i <= 0) {
                c = share.ends[i == -1 ? 1 : 0];
            }
            const Segment segment = of(p, c);
            if (!shared_out) {
                const bool skipped = c.tile > 0 || c.tiles > share.end - c.start - kSegmentUnits || segment.groups == 1;
                c.enter_next(p);
                if (skipped) {
                    continue;
                }
            }
            const int side_by_side = shared_out ? count : 1, wanted = side_by_side * items;
            const bool together = side_by_side > 1;  // all threads make one pass
            turn = together ? thread : turn;
#pragma unroll 1
            for (bool pass = together; pass || turn < wanted; pass = false, turn += kThreads) {
                int item = turn, team = 0;
#pragma unroll 1
                for (; item >= items; item -= items) {
                    ++team;
                }
                const int head = item / P::kQuads, quad = item % P::kQuads;
                const bool active = turn < wanted && head < segment.rows.heads;
                Merged sum;
                if (active) {
                    sum = AddTeams(p, segment, team, together ? team + 1 : count, count, head, quad);
                }
                if (together) {
                    Merged* const mine = sums + (i + 2) * kThreads + thread;
                    if (active) {
                        *mine = sum;
                    }
                    __syncthreads();
#pragma unroll 1
                    for (int other = 1; active && team == 0 && other < count; ++other) {
                        sum.Add(mine[other * items]);
                    }
                }
                if (active && team == 0) {
                    sum.template Store<P>(p, segment.rows, head, quad);
                }
            }
            turn = together ? thread : turn - wanted;
        }
    }

private:
    static DEVICE int teams(int items)  // kThreads / items, without a division
    {
        int teams = 1;
#pragma unroll 1
        while ((teams + 1) * items <= kThreads) {
            ++teams;
        }
        return teams;
    }

    template<class Params, class Cursor>
    static DEVICE Segment of(const Params& p, const Cursor& c)
    {
        const int row = DecodeQueries<typename P::Impl>::query_row(p, c.b);
        return {c.segment(p), typename Place::CutsOf(p, c).count(), OutRows::of<typename P::Impl>(p, c.b, c.slot, row)};
    }

    // Tells the other CTAs which tiles of the first and the last segment have arrived, where they have tiles of them.
    template<class Params, class Share>
    DEVICE void Announce(const Params& p, const Share& share, int thread) const
    {
        if (thread < 2) {
            const auto& c = share.ends[thread];
            const int from = thread ? 0 : c.tile, to = min(c.tiles, share.end - c.start - kSegmentUnits);
            const bool left = thread ? c.tile > 0 && to < c.tiles && !(share.ends[0].tile > 0 && share.ends[0].start == c.start) : from > 0;
            int complete = 0;
            if (left) {
                u32* const count = p.partial_count + c.segment(p);
                complete = atom_add_acq_rel(count, to - from) + (to - from) == (u32)c.tiles ? 1 : 0;
                if (complete) {
                    *count = 0;  // for the next launch
                }
            }
            shared.complete[thread] = complete;
        }
        __syncthreads();
    }

    // Teams [from, to) of `count`; a team takes every count-th group.
    template<class Params>
    static DEVICE Merged AddTeams(const Params& p, const Segment& segment, int from, int to, int count, int head, int quad)
    {
        const OthersFloats first{Groups::group_piece(p, segment.index, 0)};
        Merged sum;
#pragma unroll 1
        for (int team = from; team < to; ++team) {
            const Merged more =
                add_pieces<P, kAtOnce, 1, OthersFloats>({first, first, P::kFloats, segment.groups}, team, count, head, quad);
            if (team == from) {
                sum = more;
            }
            else {
                sum.Add(more);
            }
        }
        return sum;
    }
};
