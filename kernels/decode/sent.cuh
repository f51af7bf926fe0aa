// Pieces that CTAs send each other through global memory which is zero before. No word of a piece is zero, so that each tells by itself that it
// has arrived: neither side waits for a fence or asks a counter, which would cost another way to L2 and back each. Whoever has read the pieces
// puts the zeros back for the next launch.
//
// A CTA waits for CTAs of lower numbers only, and only after it has sent what others wait for. That these began before it is how GPUs have always
// started CTAs, though nothing promises it.
#pragma once

#include "decode/merged.cuh"
#include "ptx/gpu_scope.cuh"
#include "ptx/launch.cuh"

constexpr int kMostTries = 1 << 24;  // of some tenths of a microsecond each: what does not come by then never will

template<class P, int kSpans>
struct SentPieces {
    using Sum = MergedSpans<kSpans>;
    static constexpr int kFloats = P::kFloats;

    template<class Params>
    static DEVICE float* of_cta(const Params& p, int cta)
    {
        return (float*)p.partial_count + (i64)cta * kFloats;
    }

    static DEVICE void Send(float* piece, const Sum& x, int head, int quad)
    {
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            st_relaxed(piece + head * P::kHeadDim + Sum::template dim<P>(quad, s), words(x.o[s]));
        }
        if (quad == 0) {
            st_relaxed(piece + P::kEnds + 2 * head, make_float2(word(x.m), word(x.l)));
        }
    }

    // Adds pieces begin, begin + step, ... in this order; kAtOnce loads are in flight. Those that were sent are waited for, and their O is cleared. No
    // branch stands between the loads, and little else: this runs a few times, and what it costs is to fetch its instructions.
    template<int kAtOnce>
    static DEVICE void AddTo(Sum& sum, const PieceList& pieces, bool sent, int begin, int step, int head, int quad)
    {
        const int row = head * P::kHeadDim + quad * 4, ends_of = P::kEnds + 2 * head - row;
#pragma unroll 1
        for (int i = begin; i < pieces.count; i += kAtOnce * step) {
            float2 ends[kAtOnce];
            float4 o[kAtOnce][kSpans];
            float* at[kAtOnce];
            bool missing[kAtOnce];
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                const int index = i + k * step;
                at[k] = pieces.at(k, index) + row;
                missing[k] = index < pieces.count;
                ends[k] = make_float2(negative_infinity(), 0.f);
#pragma unroll
                for (int s = 0; s < kSpans; ++s) {
                    o[k][s] = make_float4(0.f, 0.f, 0.f, 0.f);
                }
            }
            Load(o, ends, at, missing, sent, ends_of);
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                if (sent && i + k * step < pieces.count) {
                    ClearRow(at[k]);
                }
            }
            sum.AddAll(o, ends);
        }
    }

    // Their m and l, which several threads read, behind a barrier.
    static DEVICE void ClearEnds(const PieceList& pieces, int begin, int step, int head)
    {
#pragma unroll 1
        for (int i = begin; i < pieces.count; i += step) {
            *(float2*)(pieces.at(i, i) + P::kEnds + 2 * head) = make_float2(0.f, 0.f);
        }
    }

private:
    // Never zero: -0 stands for it.
    static DEVICE float word(float x) { return x == 0.f ? -0.f : x; }
    static DEVICE float4 words(float4 x) { return make_float4(word(x.x), word(x.y), word(x.z), word(x.w)); }
    static DEVICE bool arrived(float x) { return __float_as_uint(x) != 0; }
    static DEVICE bool arrived(const float4 (&o)[kSpans], float2 ends)
    {
        bool all = arrived(ends.x) && arrived(ends.y);
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            all = all && arrived(o[s].x) && arrived(o[s].y) && arrived(o[s].z) && arrived(o[s].w);
        }
        return all;
    }

    // The missing ones; of those that were sent, until all of them are there.
    template<int kAtOnce>
    static DEVICE void Load(float4 (&o)[kAtOnce][kSpans], float2 (&ends)[kAtOnce], float* const (&at)[kAtOnce], bool (&missing)[kAtOnce], bool sent,
                            int ends_of)
    {
        bool waiting = true;
#pragma unroll 1
        for (int tries = 0; waiting; ++tries) {
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                ld_relaxed_if(ends[k], at[k] + ends_of, missing[k]);
#pragma unroll
                for (int s = 0; s < kSpans; ++s) {
                    ld_relaxed_if(o[k][s], at[k] + Sum::template dim<P>(0, s), missing[k]);
                }
            }
            waiting = false;
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                missing[k] = sent && missing[k] && !arrived(o[k], ends[k]);
                waiting = waiting || missing[k];
            }
            if (tries == kMostTries) {
                trap();  // lengths were changed while the launch ran, or the workspace was not zeroed
            }
        }
    }

    static DEVICE void ClearRow(float* at)
    {
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            *(float4*)(at + Sum::template dim<P>(0, s)) = make_float4(0.f, 0.f, 0.f, 0.f);
        }
    }
};
