// The sum of pieces: of some dims of one head, in a thread.
#pragma once

#include "decode/pieces.cuh"
#include "ptx/memory.cuh"

// Dims of one head while pieces are added up: of its quads number `quad` and, of kSpans equal parts of a row, the ones as far into the others.
template<int kSpans>
struct MergedSpans {
    float m, l;
    float4 o[kSpans];

    // The float of a row that quad `span` begins with.
    template<class P>
    static DEVICE int dim(int quad, int span)
    {
        return (quad + span * (P::kQuads / kSpans)) * 4;
    }

    DEVICE void Clear()
    {
        m = negative_infinity();
        l = 0.f;
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            o[s] = make_float4(0.f, 0.f, 0.f, 0.f);
        }
    }

    // The sum on the scale of a maximum that is not below its own.
    DEVICE void MoveTo(float top)
    {
        const float a = m == top ? 1.f : ex2(m - top);
        m = top;
        l = __fmul_rn(l, a);  // not fused with what follows: sums of lanes (lane_sum.cuh) have the same bits
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            o[s] = make_float4(__fmul_rn(o[s].x, a), __fmul_rn(o[s].y, a), __fmul_rn(o[s].z, a), __fmul_rn(o[s].w, a));
        }
    }

    // Adds what is on the scale of other_m, which is not above m.
    DEVICE void Weigh(float other_m, float other_l, const float4 (&other)[kSpans])
    {
        const float w = other_m == m ? 1.f : ex2(other_m - m);
        l = fmaf(w, other_l, l);
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            o[s].x = fmaf(w, other[s].x, o[s].x);
            o[s].y = fmaf(w, other[s].y, o[s].y);
            o[s].z = fmaf(w, other[s].z, o[s].z);
            o[s].w = fmaf(w, other[s].w, o[s].w);
        }
    }

    template<class P>
    DEVICE void Load(const float* piece, int head, int quad)
    {
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            o[s] = *(const float4*)(piece + head * P::kHeadDim + dim<P>(quad, s));
        }
        const float2 ends = *(const float2*)(piece + P::kEnds + 2 * head);
        m = ends.x;
        l = ends.y;
    }

    template<class P>
    DEVICE void Keep(float* piece, int head, int quad) const
    {
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            *(float4*)(piece + head * P::kHeadDim + dim<P>(quad, s)) = o[s];
        }
        if (quad == 0) {
            P::StoreEnds(piece, head, m, l);
        }
    }

    DEVICE void Add(const MergedSpans& other)
    {
        MoveTo(fmaxf(m, other.m));
        Weigh(other.m, other.l, other.o);
    }

    // Adds pieces whose O and (m, l) are o and ends; absent ones are (0, -infinity, 0).
    template<int kCount>
    DEVICE void AddAll(const float4 (&o)[kCount][kSpans], const float2 (&ends)[kCount])
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
        T* const out = (T*)p.out + rows.out + head * P::kHeadDim;
#pragma unroll
        for (int s = 0; s < kSpans; ++s) {
            *(uint2*)(out + dim<P>(quad, s)) = P::quad(o[s], end.scale);
        }
        if (quad == 0) {
            P::StoreLse(p, rows, head, end.lse);
        }
    }
};

using Merged = MergedSpans<1>;

// Where floats lie: what loads them follows from it.
struct SharedFloats {
    using Offset = int;
    u32 address;
    DEVICE SharedFloats operator+(int n) const { return {address + n * 4}; }
};
struct OwnFloats {  // of this CTA, in shared or in global memory
    using Offset = i64;
    const float* address;
    DEVICE OwnFloats operator+(i64 n) const { return {address + n}; }
};
struct OthersFloats {  // in global memory, and other CTAs, or warps that no barrier binds, may have written them: read past the L1 cache
    using Offset = i64;
    const float* address;
    DEVICE OthersFloats operator+(i64 n) const { return {address + n}; }
};

template<class D>
DEVICE void load_if(D& d, SharedFloats p, bool there)
{
    ld_shared_if(d, p.address, there);
}

template<class D>
DEVICE void load_if(D& d, OwnFloats p, bool there)
{
    ld_if(d, p.address, there);
}

template<class D>
DEVICE void load_if(D& d, OthersFloats p, bool there)
{
    ld_global_cg_if(d, p.address, there);
}

// Where the pieces of a segment lie: the first one, then one every `stride` floats from `rest` on.
template<class Floats>
struct PieceList {
    Floats first;
    Floats rest;  // piece i at rest + i * stride
    int stride;
    int count;

    DEVICE Floats at(int i, bool may_be_first) const { return may_be_first && i == 0 ? first : rest + (typename Floats::Offset)i * stride; }
};

// Adds pieces begin, begin + step, ... in this order; kAtOnce loads are in flight. No branch stands between the loads, and little else: this runs
// once, and what it costs is to fetch its instructions.
template<class P, int kAtOnce, int kSpans, class Floats>
DEVICE MergedSpans<kSpans> add_pieces(const PieceList<Floats>& pieces, int begin, int step, int head, int quad)
{
    using Sum = MergedSpans<kSpans>;
    const int row = head * P::kHeadDim + quad * 4, ends_of = P::kEnds + 2 * head - row;
    Sum sum;
    sum.Clear();
#pragma unroll 1
    for (int i = begin; i < pieces.count; i += kAtOnce * step) {
        float2 ends[kAtOnce];
        float4 o[kAtOnce][kSpans];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int index = i + k * step;
            const Floats at = pieces.at(index, k == 0) + row;
            ends[k] = make_float2(negative_infinity(), 0.f);
            load_if(ends[k], at + ends_of, index < pieces.count);
#pragma unroll
            for (int s = 0; s < kSpans; ++s) {
                o[k][s] = make_float4(0.f, 0.f, 0.f, 0.f);
                load_if(o[k][s], at + Sum::template dim<P>(0, s), index < pieces.count);
            }
        }
        sum.AddAll(o, ends);
    }
    return sum;
}
