// The sum of pieces: of four dims of one head, in a thread.
#pragma once

#include "decode/pieces.cuh"
#include "ptx/memory.cuh"

// Four dims of one head while pieces are added up.
struct Merged {
    float m, l;
    float4 o;

    DEVICE void Clear()
    {
        m = negative_infinity();
        l = 0.f;
        o = make_float4(0.f, 0.f, 0.f, 0.f);
    }

    // The sum on the scale of a maximum that is not below its own.
    DEVICE void MoveTo(float top)
    {
        const float a = m == top ? 1.f : ex2(m - top);
        m = top;
        l = __fmul_rn(l, a);  // not fused with what follows: sums of lanes (lane_sum.cuh) have the same bits
        o.x = __fmul_rn(o.x, a);
        o.y = __fmul_rn(o.y, a);
        o.z = __fmul_rn(o.z, a);
        o.w = __fmul_rn(o.w, a);
    }

    // Adds what is on the scale of other_m, which is not above m.
    DEVICE void Weigh(float other_m, float other_l, float4 other)
    {
        const float w = other_m == m ? 1.f : ex2(other_m - m);
        l = fmaf(w, other_l, l);
        o.x = fmaf(w, other.x, o.x);
        o.y = fmaf(w, other.y, o.y);
        o.z = fmaf(w, other.z, o.z);
        o.w = fmaf(w, other.w, o.w);
    }

    template<class P>
    DEVICE void Load(const float* piece, int head, int quad)
    {
        o = *(const float4*)(piece + head * P::kHeadDim + quad * 4);
        const float2 ends = *(const float2*)(piece + P::kEnds + 2 * head);
        m = ends.x;
        l = ends.y;
    }

    template<class P>
    DEVICE void Keep(float* piece, int head, int quad) const
    {
        *(float4*)(piece + head * P::kHeadDim + quad * 4) = o;
        if (quad == 0) {
            P::StoreEnds(piece, head, m, l);
        }
    }

    DEVICE void Add(const Merged& other)
    {
        MoveTo(fmaxf(m, other.m));
        Weigh(other.m, other.l, other.o);
    }

    // Adds pieces whose O and (m, l) are o and ends; absent ones are (0, -infinity, 0).
    template<int kCount>
    DEVICE void AddAll(const float4 (&o)[kCount], const float2 (&ends)[kCount])
    {
        float top = m;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            top = fmaxf(top, ends[k].x);
        }
        MoveTo(top);
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
            Weigh(ends[k].x, ends[k].y, o[k]);
        }
    }

    template<class P, class Params>
    DEVICE void Store(const Params& p, const OutRows& rows, int head, int quad) const
    {
        using T = typename P::T;
        const RowEnd end(p, rows.head + head, m, l);
        const u32 lo = Pair<T>::pack(o.x * end.scale, o.y * end.scale), hi = Pair<T>::pack(o.z * end.scale, o.w * end.scale);
        *(uint2*)((T*)p.out + rows.out + head * P::kHeadDim + quad * 4) = make_uint2(lo, hi);
        if (quad == 0) {
            P::StoreLse(p, rows, head, end.lse);
        }
    }
};

// Where the pieces of a segment lie: the first one, then one every `stride` floats from `rest` on.
struct PieceList {
    const float* first;
    const float* rest;  // piece i at rest + i * stride
    int stride;
    int count;
};

// Adds pieces begin, begin + step, ... in this order; kAtOnce loads are in flight. Pieces of other CTAs, or of warps that no barrier binds, are
// read past the L1 cache. No branch stands between the loads, and little else: this runs once, and what it costs is to fetch its instructions.
template<class P, bool kOfOthers, int kAtOnce>
DEVICE Merged add_pieces(const PieceList& pieces, int begin, int step, int head, int quad)
{
    const int row = head * P::kHeadDim + quad * 4, ends_of = P::kEnds + 2 * head - row;
    Merged sum;
    sum.Clear();
#pragma unroll 1
    for (int i = begin; i < pieces.count; i += kAtOnce * step) {
        float2 ends[kAtOnce];
        float4 o[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int index = i + k * step;
            const float* const at = (k == 0 && i == 0 ? pieces.first : pieces.rest + (i64)index * pieces.stride) + row;
            ends[k] = make_float2(negative_infinity(), 0.f);
            o[k] = make_float4(0.f, 0.f, 0.f, 0.f);
            if constexpr (kOfOthers) {
                ld_global_cg_if(ends[k], at + ends_of, index < pieces.count);
                ld_global_cg_if(o[k], at, index < pieces.count);
            }
            else {
                ld_if(ends[k], at + ends_of, index < pieces.count);
                ld_if(o[k], at, index < pieces.count);
            }
        }
        sum.AddAll(o, ends);
    }
    return sum;
}
