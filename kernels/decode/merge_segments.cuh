// Groups of keys become segments. The groups are added in teams that follow from the kernel alone, and the teams in their order: the same bits
// whether a warp does all of it or the threads of the CTA that completes the segment.
#pragma once

#include "decode/merge_cut.cuh"

template<class Groups, int kWarps>
struct SegmentMerge {
    using P = typename Groups::P;
    using Place = typename Groups::Place;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kTeamBytes = kThreads * sizeof(Merged);
    static constexpr int kAtOnce = 16;

    struct Left {  // a segment that other CTAs share: what this one has of it
        int segment, count, tiles, groups;
        OutRows rows;
        int complete;
    };
    struct SharedStorage {
        Left left[2];  // the one found begun, and the one left unfinished
    };

    SharedStorage& shared;
    Merged* sums;

    // A barrier must follow.
    DEVICE void Begin(int thread) const
    {
        if (thread < 2) {
            shared.left[thread].segment = -1;
            shared.left[thread].complete = 0;
        }
    }

    // Segments of the units [c, end), behind a barrier: those that are all here by a warp each, others when the last of their tiles come.
    template<class Params, class Cursor>
    DEVICE void operator()(const Params& p, Cursor c, int end, int thread) const
    {
        const int items = min(P::kHeads, p.group_size) * P::kQuads;
        int turn = thread / kWarpSize;
        for (; c.start < end; c.enter_next(p)) {
            const int to = min(c.tiles, end - c.start - kSegmentUnits), groups = typename Place::CutsOf(p, c).count();
            if (groups == 1) {
                continue;
            }
            const int row = DecodeQueries<typename P::Impl>::query_row(p, c.b);
            const OutRows rows = OutRows::of<typename P::Impl>(p, c.b, c.slot, row);
            if (c.tile > 0 || to < c.tiles) {
                if (thread == 0) {
                    shared.left[c.tile > 0 ? 0 : 1] = Left{c.segment(p), to - c.tile, c.tiles, groups, rows, 0};
                }
            }
            else if (turn-- == 0) {
                turn = kWarps - 1;
                AddAlone(p, c.segment(p), groups, rows, items, thread % kWarpSize);
            }
        }
        Announce(p, thread);
#pragma unroll 1
        for (int i = 0; i < 2; ++i) {
            if (shared.left[i].complete) {  // uniform
                AddTogether(p, shared.left[i], items, thread);
                __syncthreads();
            }
        }
    }

private:
    static DEVICE int teams(int items)  // kThreads / items, without a division
    {
        int teams = 1;
        while ((teams + 1) * items <= kThreads) {
            ++teams;
        }
        return teams;
    }

    template<class Params>
    static DEVICE Merged add_team(const Params& p, int segment, int groups, int team, int teams, int item)
    {
        const float* const first = Groups::group_piece(p, segment, 0);
        return add_pieces<P, true, kAtOnce>({first, first, P::kFloats, groups}, team, teams, item / P::kQuads, item % P::kQuads);
    }

    template<class Params>
    DEVICE void AddAlone(const Params& p, int segment, int groups, const OutRows& rows, int items, int lane) const
    {
#pragma unroll 1
        for (int item = lane; item < min(items, rows.heads * P::kQuads); item += kWarpSize) {
            Merged sum;
#pragma unroll 1
            for (int team = 0; team < teams(items); ++team) {
                const Merged more = add_team(p, segment, groups, team, teams(items), item);
                if (team == 0) {
                    sum = more;
                }
                else {
                    sum.Add(more);
                }
            }
            sum.template Store<P>(p, rows, item / P::kQuads, item % P::kQuads);
        }
    }

    // Tells the other CTAs which tiles have arrived.
    template<class Params>
    DEVICE void Announce(const Params& p, int thread) const
    {
        __syncthreads();
        if (thread < 2) {
            Left& left = shared.left[thread];
            if (left.segment >= 0) {
                u32* const count = p.partial_count + left.segment;
                left.complete = atom_add_acq_rel(count, left.count) + left.count == (u32)left.tiles ? 1 : 0;
                if (left.complete) {
                    *count = 0;  // for the next launch
                }
            }
        }
        __syncthreads();
    }

    template<class Params>
    DEVICE void AddTogether(const Params& p, const Left& left, int items, int thread) const
    {
        const int count = teams(items);
#pragma unroll 1
        for (int i = thread; i < count * items; i += kThreads) {
            int item = i, team = 0;
            for (; item >= items && count > 1; item -= items) {
                ++team;
            }
            if (item / P::kQuads >= left.rows.heads) {
                continue;  // nobody wrote it
            }
            const Merged sum = add_team(p, left.segment, left.groups, team, count, item);
            if (count > 1) {
                sums[i] = sum;
            }
            else {
                sum.template Store<P>(p, left.rows, item / P::kQuads, item % P::kQuads);
            }
        }
        __syncthreads();
        if (count > 1 && thread < items && thread / P::kQuads < left.rows.heads) {
            Merged sum = sums[thread];
#pragma unroll 1
            for (int team = 1; team < count; ++team) {
                sum.Add(sums[team * items + thread]);
            }
            sum.template Store<P>(p, left.rows, thread / P::kQuads, thread % P::kQuads);
        }
    }
};
