// A warp's sum of the parts of a group, beside the state of the part that it computes: each lane keeps what its registers hold of a state.
// The same operations in the same order as Merged's: it does not show where a group was shared by warps.
#pragma once

#include "decode/pieces.cuh"

template<class P>
struct LaneSum {
    using Impl = typename P::Impl;
    using State = typename P::State;
    static constexpr int kRows = 2 * Impl::kHeadTiles;            // heads of a lane
    static constexpr int kPairs = kRows * (Impl::kDimPairs + 1);  // of dims; of m and l
    static constexpr int kAtOnce = 8;
    static constexpr int kFloats = 2 * kPairs * kWarpSize;

    static constexpr bool kInRegisters = false;

    float2* at;  // the lane's

    DEVICE LaneSum(float* sum, int lane): at((float2*)sum + lane) {}

    DEVICE float2& pair(int i, int n, int e) { return at[((n * 2 + e) * (Impl::kDimPairs + 1) + i) * kWarpSize]; }
    DEVICE float2& ends(int n, int e) { return pair(Impl::kDimPairs, n, e); }

    // As of a state.
    static DEVICE int head(int n, int e, int g, int t) { return State::head(n, e, g, t); }
    static DEVICE bool tells(int g, int t) { return State::tells(g, t); }
    DEVICE float2 pair(int i, int n, int e) const { return at[((n * 2 + e) * (Impl::kDimPairs + 1) + i) * kWarpSize]; }
    DEVICE float m(int n, int e) const { return pair(Impl::kDimPairs, n, e).x; }
    DEVICE float l(int n, int e) const { return pair(Impl::kDimPairs, n, e).y; }

    DEVICE void Keep(const State& s)
    {
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                ends(n, e) = make_float2(s.m(n, e), s.l(n, e));
#pragma unroll
                for (int i = 0; i < Impl::kDimPairs; ++i) {
                    pair(i, n, e) = s.pair(i, n, e);
                }
            }
        }
    }

    DEVICE void Add(const State& s)
    {
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const float2 mine = ends(n, e);
                const float m = s.m(n, e), top = fmaxf(mine.x, m);
                const float a = mine.x == top ? 1.f : ex2(mine.x - top), w = m == top ? 1.f : ex2(m - top);
                ends(n, e) = make_float2(top, fmaf(w, s.l(n, e), __fmul_rn(mine.y, a)));
#pragma unroll
                for (int i = 0; i < Impl::kDimPairs; ++i) {
                    if (i % kAtOnce == 0) {
                        __syncwarp();  // what is read behind it takes no registers before it
                    }
                    float2& o = pair(i, n, e);
                    const float2 x = s.pair(i, n, e);
                    o = make_float2(fmaf(w, x.x, __fmul_rn(o.x, a)), fmaf(w, x.y, __fmul_rn(o.y, a)));
                }
            }
        }
    }
};
