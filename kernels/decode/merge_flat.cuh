// The end of a flat launch: the pieces of a CTA's warps merge in shared memory; what other CTAs share goes through global memory, and the
// CTA that completes a segment merges it.
#pragma once

#include "decode/merged.cuh"

// A warp leaves at most two pieces: of the segment that it found begun (even), and of the one that it left unfinished (odd).
// A CTA leaves at most two in global memory likewise.
// `kSharedPieces` of them lie in shared memory: the odd one in the warp's drained ring, the even one behind the rings; others in the workspace,
// behind what CTAs leave for each other.
template<class P_, int kWarps, int kRingBytes, int kSharedPieces>
struct FlatMerge {
    using P = P_;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kItems = P::kHeads * P::kQuads;
    static constexpr int kTeamBytes = 2 * kThreads * sizeof(Merged);  // shared memory that MergeGrid takes
    static_assert(2 * kWarps <= kWarpSize, "one lane for each piece");
    static_assert(!kSharedPieces || P::kBytes <= kRingBytes, "a drained ring holds a piece");

    struct Part {  // of a segment: tiles [first, end) of `tiles`
        int b, slot, row, start, tiles, first, end;
    };
    struct Left {  // what this CTA left in global memory: `count` of the segment's tiles
        int segment, count, tiles;
        OutRows rows;
        int first, last;  // CTAs that share the segment
        int complete;     // all tiles have arrived
    };
    struct SharedStorage {
        Part part[2 * kWarps];
        Left left[2];
        Shares shares;  // here, not in registers, while the main loop runs
    };

    SharedStorage& shared;
    char* smem;  // the warps' rings, then a place for each warp's even piece

    static constexpr int kOutside = 2 - kSharedPieces;
    static constexpr int kEvenStride = (kOutside == 2 ? 2 : 1) * P::kFloats;  // floats from a warp's even piece to the next warp's

    template<class Params>
    DEVICE float* place(const Params& p, int e) const
    {
        if (kOutside == 0 || (kOutside == 1 && e & 1)) {
            return (float*)(smem + (e & 1 ? (e >> 1) * kRingBytes : kWarps * kRingBytes + (e >> 1) * P::kBytes));
        }
        return p.partial_o + (i64)(gridDim.x * 2 + blockIdx.x * kWarps * kOutside + (kOutside == 1 ? e >> 1 : e)) * P::kFloats;
    }

    // No barrier follows: a warp clears and notes its own parts, the others look at them behind the barrier before MergeCta.
    DEVICE void Begin(const Shares& shares, int thread) const
    {
        if (thread == 0) {
            shared.shares = shares;
        }
        if (thread % kWarpSize < 2) {
            shared.part[thread / kWarpSize * 2 + thread % kWarpSize].b = -1;
        }
        __syncwarp();
        if (thread < 2) {
            shared.left[thread].segment = -1;
            shared.left[thread].complete = 0;
        }
    }

    // Pieces of this CTA: runs of one segment, in order. Finished segments to out, the rest to global memory.
    template<class Params>
    DEVICE void MergeCta(const Params& p, int thread) const
    {
        const int lane = thread % kWarpSize;
        const Part* const part = shared.part;
        const bool own = lane < 2 * kWarps && part[lane].b >= 0;
        const int my_b = own ? part[lane].b : -1, my_slot = own ? part[lane].slot : 0;
        u32 todo = __ballot_sync(kFullWarp, own);
        for (int r = 0; todo; ++r) {
            const int e = __ffs(todo) - 1;
            const int b = __shfl_sync(kFullWarp, my_b, e), slot = __shfl_sync(kFullWarp, my_slot, e);
            const u32 run = __ballot_sync(kFullWarp, my_b == b && my_slot == slot);
            todo &= ~run;
            const int count = __popc(run), warp0 = e >> 1, first = part[e].first, end = part[31 - __clz(run)].end;
            const bool whole = first == 0 && end == part[e].tiles;
            const OutRows rows = OutRows::of<typename P::Impl>(p, b, slot, part[e].row);
            // the first is e; every later one is the even piece of the next warp
            const PieceList pieces{place(p, e), place(p, 2 * warp0), kEvenStride, count};
            const int which = first ? 0 : 1;
            for (int item = (thread + kThreads - r * kItems % kThreads) % kThreads; item < kItems; item += kThreads) {
                const int head = item / P::kQuads, quad = item % P::kQuads;
                if (head >= rows.heads) {
                    break;
                }
                const Merged sum = add_pieces<P, false, 4>(pieces, 0, 1, head, quad);
                if (whole) {
                    sum.template Store<P>(p, rows, head, quad);
                }
                else {
                    float* const piece = p.partial_o + (i64)(blockIdx.x * 2 + which) * P::kFloats;
                    sum.template Keep<P>(piece, head, quad);
                }
            }
            if (!whole && thread == kThreads - 1) {  // which most often has no item
                const Shares shares = shared.shares;
                const int unit0 = part[e].start + kSegmentUnits;
                shared.left[which] = Left{b * p.num_kv_heads * p.head_packs + slot,
                                          end - first,
                                          part[e].tiles,
                                          rows,
                                          shares.worker_of(unit0) / kWarps,
                                          shares.worker_of(unit0 + part[e].tiles - 1) / kWarps,
                                          0};
            }
        }
    }

    // Tells the others which tiles have arrived; the CTA whose tiles complete a segment merges its pieces in the order of the CTAs.
    template<class Params>
    DEVICE void MergeGrid(const Params& p, int thread) const
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
        const int complete0 = shared.left[0].complete, complete = complete0 + shared.left[1].complete;
        if (complete) {  // uniform
            MergeLeft(p, complete0 ? 0 : 1, complete, thread);
        }
    }

private:
    // `count` segments from `which` on, side by side: a slow CTA is often the last of both of its segments. CTAs first..last of a segment hold
    // one piece each: the first its odd one, the others their even one. Teams of threads take every teams-th piece; how many there are must
    // not depend on `count`, which is chance: the same sums in every run.
    template<class Params>
    DEVICE void MergeLeft(const Params& p, int which, int count, int thread) const
    {
        const int items = min(P::kHeads, p.group_size) * P::kQuads;
        int teams = 1;  // kThreads / items, without a division
        while ((teams + 1) * items <= kThreads) {
            ++teams;
        }
        Merged* const sums = (Merged*)smem;
#pragma unroll 1
        for (int i = thread; i < count * teams * items; i += kThreads) {
            int item = i, team = 0;
            for (; item >= items; item -= items) {
                ++team;
            }
            const int second = team >= teams ? 1 : 0, head = item / P::kQuads, quad = item % P::kQuads;
            const Left& left = shared.left[which + second];
            if (head >= left.rows.heads) {
                continue;
            }
            const float* const even = p.partial_o + (i64)left.first * 2 * P::kFloats;
            const PieceList pieces{even + P::kFloats, even, 2 * P::kFloats, left.last - left.first + 1};
            const Merged sum = add_pieces<P, true, 6>(pieces, team - second * teams, teams, head, quad);
            if (teams == 1) {
                sum.template Store<P>(p, left.rows, head, quad);
            }
            else {
                sums[i] = sum;
            }
        }
        if (teams == 1) {
            return;  // uniform
        }
        __syncthreads();
        if (thread < count * items) {  // with teams, both segments' items are no more than the threads
            const int second = thread >= items ? 1 : 0, item = thread - second * items, head = item / P::kQuads;
            const Left& left = shared.left[which + second];
            if (head < left.rows.heads) {
                const Merged* const mine = sums + second * teams * items + item;
                Merged sum = mine[0];
#pragma unroll 1
                for (int i = 1; i < teams; ++i) {
                    sum.Add(mine[i * items]);
                }
                sum.template Store<P>(p, left.rows, head, item % P::kQuads);
            }
        }
    }
};
