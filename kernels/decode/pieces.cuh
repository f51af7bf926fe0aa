// A segment that several warps share is left in pieces (O, m, l), which merge in a fixed order: the same bits in every run.
#pragma once

#include "core/softmax.cuh"
#include "decode/mainloop.cuh"

// Where the rows of a segment's query heads lie in out and lse.
struct OutRows {
    i64 out;   // element of the first head's first dim
    i64 lse;   // index of the first head
    int head;  // first query head
    int heads;

    template<class Impl, class Params>
    static DEVICE OutRows of(const Params& p, int b, int slot, int row)
    {
        const int pack = slot % p.head_packs, head = first_head<Impl::kHeads>(p, slot);
        return {row * p.out_stride + head * Impl::kHeadDim, (i64)row * p.num_heads + head, head,
                min(Impl::kHeads, p.group_size - pack * Impl::kHeads)};
    }
};

template<class Mainloop>
struct Pieces {
    using Impl = typename Mainloop::Impl;
    using T = typename Impl::T;
    using State = typename Mainloop::State;
    static constexpr int kHeadDim = Impl::kHeadDim;
    static constexpr int kHeads = Impl::kHeads;
    static constexpr int kFloats = kHeads * (kHeadDim + 2);  // O[head][dim], m[head], l[head]
    static constexpr int kBytes = kFloats * 4;
    static constexpr int kQuads = kHeadDim / 4;

    static DEVICE float& m(float* piece, int head) { return piece[kHeads * kHeadDim + head]; }
    static DEVICE float& l(float* piece, int head) { return piece[kHeads * kHeadDim + kHeads + head]; }

    template<class Params>
    static DEVICE void StoreLse(const Params& p, const OutRows& rows, int head, float lse)
    {
        if (p.lse) {
            p.lse[rows.lse + head] = lse;
        }
    }

    // A whole segment: straight to out.
    template<class Params>
    static DEVICE void StoreOut(const Params& p, const State& s, const OutRows& rows, int lane_id)
    {
        const int lane = opaque(lane_id), g = lane / 4, t = lane % 4;  // nothing of this is worth a register of the main loop
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int head = State::head(n, e, g, t);
                if (head < rows.heads) {
                    const RowEnd end(p, rows.head + head, s.m(n, e), s.l(n, e));
                    T* const out = (T*)p.out + rows.out + head * kHeadDim;
#pragma unroll
                    for (int i = 0; i < Impl::kDimPairs; ++i) {
                        const float2 o = s.pair(i, n, e);
                        const u32 pair = Pair<T>::pack(o.x * end.scale, o.y * end.scale);
                        if (i < Impl::kWholePairs) {  // the two dims follow each other
                            *(u32*)(out + Impl::dim_of(i, g, t, 0)) = pair;
                        }
                        else {
                            out[Impl::dim_of(i, g, t, 0)] = T{(u16)pair};
                            out[Impl::dim_of(i, g, t, 1)] = T{(u16)(pair >> 16)};
                        }
                    }
                    if (State::tells(g, t)) {
                        StoreLse(p, rows, head, end.lse);
                    }
                }
            }
        }
    }

    static DEVICE void StorePiece(float* piece, const State& s, int heads, int lane_id)
    {
        const int lane = opaque(lane_id), g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int head = State::head(n, e, g, t);
                if (head < heads) {
#pragma unroll
                    for (int i = 0; i < Impl::kDimPairs; ++i) {
                        float* const row = piece + head * kHeadDim;
                        if (i < Impl::kWholePairs) {
                            *(float2*)(row + Impl::dim_of(i, g, t, 0)) = s.pair(i, n, e);
                        }
                        else {
                            row[Impl::dim_of(i, g, t, 0)] = s.pair(i, n, e).x;
                            row[Impl::dim_of(i, g, t, 1)] = s.pair(i, n, e).y;
                        }
                    }
                    if (State::tells(g, t)) {
                        m(piece, head) = s.m(n, e);
                        l(piece, head) = s.l(n, e);
                    }
                }
            }
        }
    }
};

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

    DEVICE void Add(float other_m, float other_l, float4 other)
    {
        const float top = fmaxf(m, other_m);
        const float a = m == top ? 1.f : ex2(m - top), b = other_m == top ? 1.f : ex2(other_m - top);
        m = top;
        l = l * a + other_l * b;
        o.x = o.x * a + other.x * b;
        o.y = o.y * a + other.y * b;
        o.z = o.z * a + other.z * b;
        o.w = o.w * a + other.w * b;
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

// Adds `count` pieces in global memory, `at(i)` being piece i, in the order of i; kAtOnce loads are in flight.
template<class P, class At>
DEVICE Merged merge_global(int count, int head, int quad, At&& at)
{
    constexpr int kAtOnce = 9;
    Merged sum;
    sum.Clear();
    for (int i = 0; i < count; i += kAtOnce) {
        float m[kAtOnce], l[kAtOnce];
        float4 o[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            m[k] = negative_infinity();
            l[k] = 0.f;
            o[k] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (i + k < count) {
                float* const piece = at(i + k);
                m[k] = __ldcg(&P::m(piece, head));
                l[k] = __ldcg(&P::l(piece, head));
                o[k] = __ldcg((const float4*)(piece + head * P::kHeadDim + quad * 4));
            }
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            sum.Add(m[k], l[k], o[k]);
        }
    }
    return sum;
}
