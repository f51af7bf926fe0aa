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
    struct Left {  // a segment that other CTAs share: what this one has of it
        Segment segment;
        int count, tiles;  // none: no such segment
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
            shared.left[thread].tiles = shared.left[thread].complete = 0;
        }
    }

    // Segments of the units [c, end), behind a barrier: those that are all here, and of the others those whose last tiles came with these.
    template<class Params, class Cursor>
    DEVICE void operator()(const Params& p, const Cursor& first, int end, int thread) const
    {
        if (thread == 0) {
            NoteLeft(p, first, end);
        }
        Announce(p, thread);
        const int items = min(P::kHeads, p.group_size) * P::kQuads, count = teams(items);
        Cursor c = first;
        int turn = thread;  // threads take items in turn, those of one segment after those of the one before
#pragma unroll 1
        for (int i = -2; i < 0 || c.start < end; ++i) {
            Segment segment;
            const bool shared_out = i < 0;
            if (shared_out) {
                if (!shared.left[i + 2].complete) {  // uniform
                    continue;
                }
                segment = shared.left[i + 2].segment;
            }
            else {
                segment = of(p, c);
                const bool skipped = c.tile > 0 || c.tiles > end - c.start - kSegmentUnits || segment.groups == 1;
                c.enter_next(p);
                if (skipped) {
                    continue;
                }
            }
            const int side_by_side = shared_out ? count : 1;
            for (; turn < side_by_side * items; turn += kThreads) {
                int item = turn, team = 0;
                for (; item >= items; item -= items) {
                    ++team;
                }
                const int head = item / P::kQuads, quad = item % P::kQuads;
                if (head >= segment.rows.heads) {
                    continue;
                }
                const Merged sum = AddTeams(p, segment, team, side_by_side > 1 ? team + 1 : count, count, head, quad);
                if (side_by_side > 1) {
                    sums[(i + 2) * kThreads + turn] = sum;
                }
                else {
                    sum.template Store<P>(p, segment.rows, head, quad);
                }
            }
            turn -= side_by_side * items;
        }
        if (count > 1 && shared.left[0].complete + shared.left[1].complete) {  // uniform
            __syncthreads();
            AddSums(p, items, count, thread);
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

    template<class Params, class Cursor>
    static DEVICE Segment of(const Params& p, const Cursor& c)
    {
        const int row = DecodeQueries<typename P::Impl>::query_row(p, c.b);
        return {c.segment(p), typename Place::CutsOf(p, c).count(), OutRows::of<typename P::Impl>(p, c.b, c.slot, row)};
    }

    // The first and the last segment of [c, end), where other CTAs have tiles of them.
    template<class Params, class Cursor>
    DEVICE void NoteLeft(const Params& p, Cursor c, int end) const
    {
#pragma unroll 1
        for (; c.start < end; c.enter_next(p)) {
            const int to = min(c.tiles, end - c.start - kSegmentUnits);
            if (c.tile > 0 || to < c.tiles) {
                shared.left[c.tile > 0 ? 0 : 1] = Left{of(p, c), to - c.tile, c.tiles, 0};
            }
        }
    }

    // Tells the other CTAs which tiles have arrived.
    template<class Params>
    DEVICE void Announce(const Params& p, int thread) const
    {
        __syncthreads();
        if (thread < 2) {
            Left& left = shared.left[thread];
            if (left.tiles) {
                u32* const count = p.partial_count + left.segment.index;
                left.complete = atom_add_acq_rel(count, left.count) + left.count == (u32)left.tiles ? 1 : 0;
                if (left.complete) {
                    *count = 0;  // for the next launch
                }
            }
        }
        __syncthreads();
    }

    // Teams [from, to) of `count`; a team takes every count-th group.
    template<class Params>
    static DEVICE Merged AddTeams(const Params& p, const Segment& segment, int from, int to, int count, int head, int quad)
    {
        const float* const first = Groups::group_piece(p, segment.index, 0);
        Merged sum;
#pragma unroll 1
        for (int team = from; team < to; ++team) {
            const Merged more = add_pieces<P, true, kAtOnce>({first, first, P::kFloats, segment.groups}, team, count, head, quad);
            if (team == from) {
                sum = more;
            }
            else {
                sum.Add(more);
            }
        }
        return sum;
    }

    // Teams whose sums stand side by side.
    template<class Params>
    DEVICE void AddSums(const Params& p, int items, int count, int thread) const
    {
#pragma unroll 1
        for (int i = thread; i < 2 * items; i += kThreads) {
            const int which = i >= items ? 1 : 0, item = i - which * items, head = item / P::kQuads;
            const Left& left = shared.left[which];
            if (!left.complete || head >= left.segment.rows.heads) {
                continue;
            }
            const Merged* const mine = sums + which * kThreads + item;
            Merged sum = mine[0];
#pragma unroll 1
            for (int team = 1; team < count; ++team) {
                sum.Add(mine[team * items]);
            }
            sum.template Store<P>(p, left.segment.rows, head, item % P::kQuads);
        }
    }
};
