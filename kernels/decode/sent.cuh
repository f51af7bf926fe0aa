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
    float* first;  // in the workspace: one for each of `count` CTAs
    int count;

    static constexpr int kFloats = P::kFloats;

    template<class Params>
    static DEVICE float* of_cta(const Params& p, int cta)
    {
        return (float*)p.partial_count + (i64)cta * kFloats;
    }

    // Never zero: -0 stands for it.
    static DEVICE float word(float x) { return x == 0.f ? -0.f : x; }
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

    static DEVICE float4 words(float4 x) { return make_float4(word(x.x), word(x.y), word(x.z), word(x.w)); }

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

    // Adds pieces begin, begin + step, ... in this order as they arrive, and clears their O; kAtOnce loads are in flight.
    template<int kAtOnce>
    DEVICE void AddTo(Sum& sum, int begin, int step, int head, int quad) const
    {
        const int row = head * P::kHeadDim + quad * 4, ends_of = P::kEnds + 2 * head - row;
#pragma unroll 1
        for (int i = begin; i < count; i += kAtOnce * step) {
            float2 ends[kAtOnce];
            float4 o[kAtOnce][kSpans];
            bool missing[kAtOnce];
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                missing[k] = i + k * step < count;
                ends[k] = make_float2(negative_infinity(), 0.f);
#pragma unroll
                for (int s = 0; s < kSpans; ++s) {
                    o[k][s] = make_float4(0.f, 0.f, 0.f, 0.f);
                }
            }
            Await(o, ends, missing, i, step, row, ends_of);
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                if (i + k * step < count) {
                    ClearRow(first + (i64)(i + k * step) * kFloats + row);
                }
            }
            sum.AddAll(o, ends);
        }
    }

    // The others' m and l, which several threads read, behind a barrier.
    DEVICE void ClearEnds(int heads, int thread, int threads) const
    {
#pragma unroll 1
        for (int i = thread; i < count * P::kHeads; i += threads) {
            const int cta = i / P::kHeads, head = i % P::kHeads;
            if (head < heads) {
                *(float2*)(first + (i64)cta * kFloats + P::kEnds + 2 * head) = make_float2(0.f, 0.f);
            }
        }
    }

private:
    // Asks for the missing ones of pieces i, i + step, ... until all of them are there.
    template<int kAtOnce>
    DEVICE void Await(float4 (&o)[kAtOnce][kSpans], float2 (&ends)[kAtOnce], bool (&missing)[kAtOnce], int i, int step, int row,
                      int ends_of) const
    {
        bool waiting = true;
#pragma unroll 1
        for (int tries = 0; waiting; ++tries) {
            waiting = false;
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                const float* const at = first + (i64)(i + k * step) * kFloats + row;
                ld_relaxed_if(ends[k], at + ends_of, missing[k]);
#pragma unroll
                for (int s = 0; s < kSpans; ++s) {
                    ld_relaxed_if(o[k][s], at + Sum::template dim<P>(0, s), missing[k]);
                }
            }
#pragma unroll
            for (int k = 0; k < kAtOnce; ++k) {
                missing[k] = missing[k] && !arrived(o[k], ends[k]);
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
