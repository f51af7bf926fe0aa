// The end of a flat launch: the pieces of a CTA's warps merge in shared memory; of a segment that several CTAs share, the CTA that has the last
// tile merges what the others send it.
#pragma once

#include "decode/runs.cuh"
#include "decode/sent.cuh"

// A warp leaves at most two pieces: of the segment that it found begun (even), and of the one that it left unfinished (odd).
// `kSharedPieces` of them lie in shared memory: the odd one in the warp's drained ring, the even one behind the rings; others in the workspace.
template<class P_, int kWarps, int kRingBytes, int kSharedPieces>
struct FlatMerge {
    using P = P_;
    static constexpr int kSpans = P::kQuads % 16 ? 3 : 2;  // 8 lanes that read together read a line
    using Sum = MergedSpans<kSpans>;
    using Sent = SentPieces<P, kSpans>;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kItems = P::kQuads / kSpans;          // of a head: what a thread adds up
    static constexpr int kMostTeams = 4;                       // of threads, which share the pieces of a segment
    static constexpr int kTeamBytes = kThreads * sizeof(Sum);  // of shared memory that they take
    static constexpr int kAtOnce = 5;                          // a team's pieces of a segment that an eighth of 132 CTAs share
    static_assert(!kSharedPieces || P::kBytes <= kRingBytes, "a drained ring holds a piece");

    struct SharedStorage {
        Part part[2 * kWarps];
        Shares ctas;    // here, not in registers, while the main loop runs
        int first_cta;  // that has a piece of the segment which this one found begun
    };

    SharedStorage& shared;
    char* smem;  // the warps' rings, then a place for each warp's even piece

    static constexpr int kOutside = 2 - kSharedPieces;
    using Floats = if_else<kOutside == 0, SharedFloats, OwnFloats>;
    static constexpr int kEvenStride = (kOutside == 2 ? 2 : 1) * P::kFloats;  // floats from a warp's even piece to the next warp's

    template<class Params>
    DEVICE float* place(const Params& p, int e) const
    {
        if (kOutside == 0 || (kOutside == 1 && e & 1)) {
            return (float*)(smem + (e & 1 ? (e >> 1) * kRingBytes : kWarps * kRingBytes + (e >> 1) * P::kBytes));
        }
        return p.partial_o + (i64)(blockIdx.x * kWarps * kOutside + (kOutside == 1 ? e >> 1 : e)) * P::kFloats;
    }

    template<class Params>
    DEVICE Floats floats(const Params& p, int e) const
    {
        if constexpr (kOutside == 0) {
            return {shared_address(place(p, e))};
        }
        else {
            return {place(p, e)};
        }
    }

    // No barrier follows: a warp clears and notes its own parts, the others look at them behind the barrier before the merge.
    DEVICE void Begin(const Shares& ctas, int thread) const
    {
        if (thread == 0) {
            shared.ctas = ctas;
            shared.first_cta = 0;
        }
        if (thread % kWarpSize < 2) {
            shared.part[thread / kWarpSize * 2 + thread % kWarpSize].b = -1;
        }
        __syncwarp();
    }

    // Pieces of this CTA, which are runs of one segment each, by all threads at once: those of the last run first, for others wait for what it
    // leaves unfinished; at the end the one that others send the rest of.
    template<class Params>
    DEVICE void operator()(const Params& p, int thread) const
    {
        if (thread == 0) {
            const volatile Part& found = shared.part[0];  // volatile: no other thread looks at it before the barrier
            if (found.b >= 0) {
                shared.first_cta = shared.ctas.worker_of(found.start + kSegmentUnits);
            }
        }
        __syncthreads();
        const Runs<2 * kWarps> runs(shared.part, thread % kWarpSize);
        const bool received = (runs.starts & 1) && runs.of(shared.part, 0).received();
        const u32 others = received ? runs.starts & ~1u : runs.starts;
        const int items = min(P::kHeads, p.group_size) * kItems, teams = received ? teams_of(items) : 1;
        const Sent sent{Sent::of_cta(p, shared.first_cta), (int)blockIdx.x - shared.first_cta};
        const int own_items = __popc(others) * items, to = (own_items + kWarpSize - 1) & -kWarpSize;
        // Whole warps change over to receiving: no lane waits for other CTAs while another one of its warp has not sent what they wait for. All
        // threads make the same number of passes then.
        bool receiving = false;
#pragma unroll 1
        for (int i = kThreads - 1 - thread;; i += kThreads) {
            if (!receiving && i >= to) {
                receiving = true;
                i = thread;
            }
            if (receiving && (!received || i - thread >= teams * items)) {
                break;
            }
            const bool wanted = i < (receiving ? teams * items : own_items);
            int item = i, number = 0;  // of the run, from the last one; of the team
#pragma unroll 1
            for (; wanted && item >= items; item -= items) {
                ++number;
            }
            const int e = receiving ? 0 : runs.last_but(others, number), team = receiving ? number : 0;
            const Run run = runs.of(shared.part, e);
            const OutRows rows = run.template rows<typename P::Impl>(p);
            const int head = item / kItems, quad = item % kItems;
            const bool active = wanted && head < rows.heads;
            Sum sum;
            if (active) {
                // the first is e; every later one is the even piece of the next warp
                sum = add_pieces<P, 2, kSpans, Floats>({floats(p, e), floats(p, e & ~1), kEvenStride, run.count}, team,
                                                       receiving ? teams : 1, head, quad);
                if (receiving) {
                    sent.template AddTo<kAtOnce>(sum, team, teams, head, quad);
                }
            }
            if (receiving && teams > 1) {
                __syncthreads();
                AddTeams(sum, items, teams, thread);
            }
            if (active && team == 0) {
                if (run.ended) {
                    sum.template Store<P>(p, rows, head, quad);
                }
                else {
                    Sent::Send(Sent::of_cta(p, blockIdx.x), sum, head, quad);
                }
            }
        }
        if (received) {  // uniform
            if (teams == 1) {
                __syncthreads();
            }
            sent.ClearEnds(Pack(p, shared.part[0].slot).heads<P::kHeads>(p), thread, kThreads);
        }
    }

private:
    // kThreads / items, without a division. It must not depend on chance: the same sums in every run.
    static DEVICE int teams_of(int items)
    {
        int teams = 1;
#pragma unroll 1
        while (teams < kMostTeams && (teams + 1) * items <= kThreads) {
            ++teams;
        }
        return teams;
    }

    // The sums of all teams, of which there are no more than threads, in those of the first one.
    DEVICE void AddTeams(Sum& sum, int items, int teams, int thread) const
    {
        Sum* const sums = (Sum*)smem;
        sums[thread] = sum;
        __syncthreads();
        if (thread < items) {
#pragma unroll 1
            for (int i = 1; i < teams; ++i) {
                sum.Add(sums[thread + i * items]);
            }
        }
    }
};
