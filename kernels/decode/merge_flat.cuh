// The end of a flat launch: the pieces of a CTA's warps merge in shared memory; what other CTAs share goes through global memory, and the
// CTA that completes a segment merges it.
#pragma once

#include "decode/pieces.cuh"

// A warp leaves at most two pieces: of the segment that it found begun (even), and of the one that it left unfinished (odd).
// A CTA leaves at most two in global memory likewise.
// `kSharedPieces` of them lie in shared memory: the odd one in the warp's drained ring, the even one behind the rings; others in the workspace,
// behind what CTAs leave for each other.
template<class P_, int kWarps, int kRingBytes, int kSharedPieces>
struct FlatMerge {
    using P = P_;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kItems = P::kHeads * P::kQuads;
    static constexpr int kTeamBytes = (kItems > kThreads ? kItems : kThreads) * sizeof(Merged);  // shared memory that MergeGrid takes
    static_assert(2 * kWarps <= kWarpSize, "one lane for each piece");
    static_assert(!kSharedPieces || P::kBytes <= kRingBytes, "a drained ring holds a piece");

    struct Part {  // of a segment: tiles [first, end) of `tiles`
        int b, slot, row, start, tiles, first, end;
    };
    struct Left {  // what this CTA left in global memory
        int b, slot, row, start, tiles, count, last;
    };
    struct SharedStorage {
        Part part[2 * kWarps];
        Left left[2];
        Shares shares;  // here, not in registers, while the main loop runs
    };

    SharedStorage& shared;
    char* smem;  // the warps' rings, then a place for each warp's even piece

    template<class Params>
    DEVICE float* place(const Params& p, int e) const
    {
        constexpr int kOutside = 2 - kSharedPieces;
        if (kOutside == 0 || (kOutside == 1 && e & 1)) {
            return (float*)(smem + (e & 1 ? (e >> 1) * kRingBytes : kWarps * kRingBytes + (e >> 1) * P::kBytes));
        }
        return p.partial_o + (i64)(gridDim.x * 2 + blockIdx.x * kWarps * kOutside + (kOutside == 1 ? e >> 1 : e)) * P::kFloats;
    }

    DEVICE void Begin(const Shares& shares, int thread) const
    {
        if (thread == 0) {
            shared.shares = shares;
        }
        if (thread < 2 * kWarps) {
            shared.part[thread].b = -1;
        }
        if (thread < 2) {
            shared.left[thread] = Left{-1, 0, 0, 0, 0, 0, 0};  // copied whole before it is looked at
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
            // piece 0 is e; every later one is the even piece of the next warp
            auto at = [&](int i) { return place(p, i == 0 ? e : 2 * (warp0 + i)); };
            for (int item = (thread + kThreads - r * kItems % kThreads) % kThreads; item < kItems; item += kThreads) {
                const int head = item / P::kQuads, quad = item % P::kQuads;
                if (head >= rows.heads) {
                    break;
                }
                Merged sum;
                sum.Clear();
#pragma unroll 4
                for (int i = 0; i < count; ++i) {
                    sum.m = fmaxf(sum.m, P::m(at(i), head));
                }
#pragma unroll 4
                for (int i = 0; i < count; ++i) {
                    float* const piece = at(i);
                    const float w = ex2(P::m(piece, head) - sum.m);
                    const float4 o = *(const float4*)(piece + head * P::kHeadDim + quad * 4);
                    sum.l += w * P::l(piece, head);
                    sum.o.x += w * o.x;
                    sum.o.y += w * o.y;
                    sum.o.z += w * o.z;
                    sum.o.w += w * o.w;
                }
                if (whole) {
                    sum.template Store<P>(p, rows, head, quad);
                }
                else {
                    const int which = first ? 0 : 1;
                    float* const piece = p.partial_o + (i64)(blockIdx.x * 2 + which) * P::kFloats;
                    *(float4*)(piece + head * P::kHeadDim + quad * 4) = sum.o;
                    if (quad == 0) {
                        P::m(piece, head) = sum.m;
                        P::l(piece, head) = sum.l;
                    }
                    if (item == 0) {
                        shared.left[which] = Left{b, slot, part[e].row, part[e].start, part[e].tiles, end - first, 0};
                    }
                }
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
            if (left.b >= 0) {
                u32* const count = p.partial_count + left.b * p.num_kv_heads * p.head_packs + left.slot;
                left.last = atom_add_acq_rel(count, left.count) + left.count == (u32)left.tiles;
                if (left.last) {
                    *count = 0;  // for the next launch
                }
            }
        }
        __syncthreads();
        for (int which = 0; which < 2; ++which) {
            const Left left = shared.left[which];
            if (left.b < 0 || !left.last) {
                continue;  // uniform
            }
            const Shares shares = shared.shares;
            const int unit0 = left.start + kSegmentUnits;
            const int first = shares.worker_of(unit0) / kWarps, last = shares.worker_of(unit0 + left.tiles - 1) / kWarps;
            MergeLeft(p, OutRows::of<typename P::Impl>(p, left.b, left.slot, left.row), first, last, thread);
        }
    }

private:
    // CTAs first..last hold one piece each: the first its odd one, the others their even one. Teams of threads take every teams-th piece.
    template<class Params>
    DEVICE void MergeLeft(const Params& p, const OutRows& rows, int first, int last, int thread) const
    {
        const int items = rows.heads * P::kQuads, teams = max(kThreads / items, 1);
        Merged* const sums = (Merged*)smem;
        for (int i = thread; i < teams * items; i += kThreads) {
            const int team = i / items, item = i % items, head = item / P::kQuads, quad = item % P::kQuads;
            const int mine = max(last - first - team + teams, 0) / teams;
            sums[i] = merge_global<P>(mine, head, quad, [&](int k) {
                const int cta = first + team + k * teams;
                return p.partial_o + (i64)(cta * 2 + (cta == first ? 1 : 0)) * P::kFloats;
            });
        }
        __syncthreads();
        for (int item = thread; item < items; item += kThreads) {
            Merged sum;
            sum.Clear();
            for (int i = 0; i < teams; ++i) {
                const Merged& part = sums[i * items + item];
                sum.Add(part.m, part.l, part.o);
            }
            sum.template Store<P>(p, rows, item / P::kQuads, item % P::kQuads);
        }
        __syncthreads();
    }
};
