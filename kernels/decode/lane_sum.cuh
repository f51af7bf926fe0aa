// A warp's sum of the parts of a group, beside the state of the part that it computes: each lane keeps what its registers hold of a state.
// The same operations in the same order as Merged's: it does not show where a group was shared by warps.
#pragma once

#include "decode/pieces.cuh"

template<class P>
struct LaneSum {
    using Impl = typename P::Impl;
    using State = typename P::State;
    using T = typename P::T;
    static constexpr int kQuads = Impl::kHeadTiles * (Impl::kDimPairs + 1);  // of dims of two heads; of their m and l
    static constexpr int kAtOnce = 4;
    static constexpr int kFloats = 4 * kQuads * kWarpSize;

    float4* at;  // the lane's

    DEVICE LaneSum(float* sum, int lane): at((float4*)sum + lane) {}

    // A pair of dims of head 0 and of head 1 of a head tile; their m and l.
    DEVICE float4& quad(int i, int n) const { return at[(n * (Impl::kDimPairs + 1) + i) * kWarpSize]; }
    DEVICE float4& ends(int n) const { return quad(Impl::kDimPairs, n); }

    DEVICE void Keep(const State& s)
    {
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
            ends(n) = make_float4(s.m(n, 0), s.l(n, 0), s.m(n, 1), s.l(n, 1));
#pragma unroll
            for (int i = 0; i < Impl::kDimPairs; ++i) {
                const float2 x = s.pair(i, n, 0), y = s.pair(i, n, 1);
                quad(i, n) = make_float4(x.x, x.y, y.x, y.y);
            }
        }
    }

    DEVICE void Add(const State& s)
    {
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
            const float4 mine = ends(n);
            const float m0 = s.m(n, 0), m1 = s.m(n, 1), top0 = fmaxf(mine.x, m0), top1 = fmaxf(mine.z, m1);
            const float a0 = mine.x == top0 ? 1.f : ex2(mine.x - top0), w0 = m0 == top0 ? 1.f : ex2(m0 - top0);
            const float a1 = mine.z == top1 ? 1.f : ex2(mine.z - top1), w1 = m1 == top1 ? 1.f : ex2(m1 - top1);
            ends(n) = make_float4(top0, fmaf(w0, s.l(n, 0), __fmul_rn(mine.y, a0)), top1, fmaf(w1, s.l(n, 1), __fmul_rn(mine.w, a1)));
#pragma unroll
            for (int i = 0; i < Impl::kDimPairs; ++i) {
                if (i % kAtOnce == 0) {
                    __syncwarp();  // what is read behind it takes no registers before it
                }
                float4& o = quad(i, n);
                const float2 x = s.pair(i, n, 0), y = s.pair(i, n, 1);
                o = make_float4(fmaf(w0, x.x, __fmul_rn(o.x, a0)), fmaf(w0, x.y, __fmul_rn(o.y, a0)), fmaf(w1, y.x, __fmul_rn(o.z, a1)),
                                fmaf(w1, y.y, __fmul_rn(o.w, a1)));
            }
        }
    }

    // To a piece; where there is none it is a whole segment, and goes to out.
    template<class Params>
    DEVICE void Store(const Params& p, const OutRows& rows, float* piece, int lane) const
    {
        const int g = lane / 4, t = lane % 4;
#pragma unroll 1
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll 1
            for (int e = 0; e < 2; ++e) {
                const int head = State::head(n, e, g, t);
                if (head >= rows.heads) {
                    continue;
                }
                const float2 own = pair(Impl::kDimPairs, n, e);
                const RowEnd end(p, rows.head + head, own.x, own.y);
                T* const out = (T*)p.out + rows.out + head * P::kHeadDim;
#pragma unroll(2 * kAtOnce)
                for (int i = 0; i < Impl::kDimPairs; ++i) {
                    const float2 o = pair(i, n, e);
                    if (piece) {
                        P::StorePair(piece + head * P::kHeadDim, i, g, t, o);
                    }
                    else {
                        P::StorePair(out, i, g, t, make_float2(o.x * end.scale, o.y * end.scale));
                    }
                }
                if (State::tells(g, t)) {
                    if (piece) {
                        P::StoreEnds(piece, head, own.x, own.y);
                    }
                    else {
                        P::StoreLse(p, rows, head, end.lse);
                    }
                }
            }
        }
    }

private:
    DEVICE float2 pair(int i, int n, int e) const { return ((const float2*)&quad(i, n))[e]; }
};
