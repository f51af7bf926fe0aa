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
        const Pack pack(p, slot);
        const int head = pack.first_head<Impl::kHeads>(p);
        return {row * p.out_stride + head * Impl::kHeadDim, (i64)row * p.num_heads + head, head, pack.heads<Impl::kHeads>(p)};
    }
};

template<class Mainloop>
struct Pieces {
    using Impl = typename Mainloop::Impl;
    using T = typename Impl::T;
    using State = typename Mainloop::State;
    static constexpr int kHeadDim = Impl::kHeadDim;
    static constexpr int kHeads = Impl::kHeads;
    static constexpr int kFloats = kHeads * (kHeadDim + 2);  // O[head][dim], (m, l)[head]
    static constexpr int kBytes = kFloats * 4;
    static constexpr int kQuads = kHeadDim / 4;

    static constexpr int kEnds = kHeads * kHeadDim;

    static DEVICE void StoreEnds(float* piece, int head, float m, float l) { *(float2*)(piece + kEnds + 2 * head) = make_float2(m, l); }

    template<class Params>
    static DEVICE void StoreLse(const Params& p, const OutRows& rows, int head, float lse)
    {
        if (p.lse) {
            p.lse[rows.lse + head] = lse;
        }
    }

    // Two dims of a head's row that a lane has: pair i. Where every second one is of a pair, a piece has them side by side: 0 2 1 3 of four.
    static DEVICE void StorePair(T* row, int i, int g, int t, float2 o)
    {
        const u32 pair = Pair<T>::pack(o.x, o.y);
        T* const at = row + Impl::dim_of(i, g, t);
        if constexpr (Impl::kPairStep == 1) {
            *(u32*)at = pair;
        }
        else {
            at[0] = T{(u16)pair};
            at[2] = T{(u16)(pair >> 16)};
        }
    }
    static DEVICE void StorePair(float* row, int i, int g, int t, float2 o)
    {
        *(float2*)(row + Impl::dim_of(i, g, t) + (Impl::kPairStep == 1 ? 0 : g % 2)) = o;
    }

    // Four dims of a piece as elements.
    static DEVICE uint2 quad(const float4& o, float scale)
    {
        const bool apart = Impl::kPairStep == 2;
        return make_uint2(Pair<T>::pack(o.x * scale, (apart ? o.z : o.y) * scale), Pair<T>::pack((apart ? o.y : o.z) * scale, o.w * scale));
    }

    // A whole segment: straight to out.
    template<class Params>
    static DEVICE void StoreOut(const Params& p, const State& s, const OutRows& rows, int lane_id)
    {
        const int lane = opaque_id(lane_id), g = lane / 4, t = lane % 4;  // nothing of this is worth a register of the main loop
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
                        StorePair(out, i, g, t, make_float2(o.x * end.scale, o.y * end.scale));
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
        const int lane = opaque_id(lane_id), g = lane / 4, t = lane % 4;
#pragma unroll
        for (int n = 0; n < Impl::kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int head = State::head(n, e, g, t);
                if (head < heads) {
#pragma unroll
                    for (int i = 0; i < Impl::kDimPairs; ++i) {
                        StorePair(piece + head * kHeadDim, i, g, t, s.pair(i, n, e));
                    }
                    if (State::tells(g, t)) {
                        StoreEnds(piece, head, s.m(n, e), s.l(n, e));
                    }
                }
            }
        }
    }
};
