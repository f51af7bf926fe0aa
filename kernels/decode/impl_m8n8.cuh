// One warp's arithmetic on a tile of 32 keys by m8n8k4, whose sums are those of four quad pairs: S^T = K Q^T, O = P V. Q lies in shared memory,
// the same for every pair; P passes through it. Codes enter the mma: K's (scale, zero) act on scores, V's on P and on its sums.
#pragma once

#include "core/family_sm70.cuh"
#include "decode/operands_m8n8.cuh"
#include "decode/query_m8n8.cuh"
#include "decode/softmax_m8n8.cuh"
#include "decode/tile_m8n8.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/mma.cuh"

template<class T_, int kBits, int kHeadDim_, int kHeads_>
struct QuadPairImpl {
    using T = T_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kHeads = kHeads_;
    static constexpr bool kQuantised = kBits < 16;
    static constexpr bool kFewRegisters = true;
    static constexpr int CTA_S = 32;
    static constexpr int kHeadTiles = kHeads / 8;
    static constexpr int kDimPairs = kHeadDim / 16;

    using Tile = QuadPairTile<kHeadDim, kBits>;
    using QueryTile = QuadPairTile<kHeadDim, 16>;
    using Operands = QuadPairOperands<T, kBits, kHeadDim>;
    static constexpr int kParamBytes = kQuantised ? CTA_S * 2 * (int)sizeof(T) : 0;
    static constexpr int kSlotBytes = Tile::kBytes + 2 * kParamBytes;  // K or V, K's parameters, V's parameters
    static constexpr int kQueryBytes = kHeads * kHeadDim * (int)sizeof(T);
    // O leaves wide heads and packs few registers: their loops stay loops.
    static constexpr bool kWide = kHeads * kHeadDim > 8 * 128;
    static constexpr int kUnrollKeys = kWide ? 2 : Tile::kRowChunks, kUnrollValues = kWide ? 1 : CTA_S / 8;
    static constexpr int kRowBytesP = 96;  // of one head's P: 64, and what keeps rows in different banks

    using Map = WarpLinearMap<Tile::kRowChunks * CTA_S, (kWide ? 4 : 8)>;
    template<class Iterators, int Index>
    using Data = typename Iterators::template Data<if_else<kQuantised, u8, T>, Map, typename Tile::Layout, Index>;
    template<class Iterators>  // K brings the parameters of both
    using GmemIterK = if_else<kQuantised, CombinedIterator<Data<Iterators, kKeyData>, typename Iterators::template Params<T, CTA_S>>,
                              Data<Iterators, kKeyData>>;
    template<class Iterators>
    using GmemIterV = Data<Iterators, kValueData>;

    template<class IterK, class IterV>
    static DEVICE void SetSmem(IterK& k, IterV& v, u32 slot)
    {
        if constexpr (kQuantised) {
            k.SetSmem(slot, slot + Tile::kBytes);
        }
        else {
            k.SetSmem(slot);
        }
        v.SetSmem(slot);
    }

    using Softmax = QuadPairSoftmax<T, kHeadTiles, Tile::kDimTiles, kQuantised>;
    using State = typename Softmax::State;
    using FragS = typename Softmax::FragS;
    using FragHead = typename Softmax::FragHead;
    struct FragP {};  // in shared memory

    using Query = QuadPairQuery<T, kBits, kHeadDim, kHeadTiles>;

    // The first dim of pair i of a lane's; the other is kPairStep further.
    static constexpr int kPairStep = 1;
    static DEVICE int dim_of(int i, int g, int t) { return Tile::dim(i / 2, g % 4, i % 2) + t / 2 * 2; }

    template<class Params>
    static DEVICE void LoadQ(Query& query, u32 smem_q, const T* q, int heads, const Params&, int g, int t)
    {
        query.Load(smem_q, q, heads, g, t);
    }

    static DEVICE void ComputeQK(FragS& frag_s, const Query& query, u32 smem_q, u32 slot, int, int g, int t)
    {
        const int lane = 4 * g + t;
        const typename Tile::RowReader smem_k{slot, Tile::key_of(lane)};
        const typename QueryTile::RowReader smem_row{smem_q, t + g / 4 * 4};
        constexpr int kShare = 16 / kBits;  // chunks of Q that a chunk of K meets
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                Softmax::score(frag_s, n, e, 0) = Softmax::score(frag_s, n, e, 1) = kQuantised ? query.bias[n][e] : 0.f;
            }
        }
#pragma unroll kUnrollKeys
        for (int c = 0; c < Tile::kRowChunks; ++c) {
            u32 frag_k[4];
            smem_k.Load(frag_k, c);
#pragma unroll
            for (int j = 0; j < kShare; ++j) {
                u32 a[2][2];  // two steps of four dims
                Operands::Keys(a, frag_k, j);
#pragma unroll
                for (int n = 0; n < kHeadTiles; ++n) {
                    u32 q[4];
                    smem_row.Load(q, n * 8 * QueryTile::kRowChunks + c * kShare + j);
                    mma_m8n8k4_row_col(frag_s[n][0], frag_s[n][1], a[0][0], a[0][1], q[0], q[1]);
                    mma_m8n8k4_row_col(frag_s[n][0], frag_s[n][1], a[1][0], a[1][1], q[2], q[3]);
                }
            }
        }
    }

    // Scores become probabilities 2^(s*qk_scale - m) in shared memory. Keys outside [from, to) of the tile do not count.
    template<class Params, class Place>
    static DEVICE void ComputeP(FragP&, FragS& frag_s, State& state, const Query& query, u32 smem_q, u32 slot, int, const Params& p,
                                const Place& place, int from, int to, bool fresh, int g, int t)
    {
        const int lane = 4 * g + t, key = Softmax::first_key(lane);
        u32 param_k[2] = {}, param_v[2] = {};
        if constexpr (kQuantised) {
            ld_shared(param_k, slot + Tile::kBytes + key * 4);
            ld_shared(param_v, slot + Tile::kBytes + kParamBytes + key * 4);
#pragma unroll
            for (int k = 0; k < 2; ++k) {  // what does not count may hold NaN: a zero probability would not silence it
                param_v[k] = key + k < from || key + k >= to ? 0 : param_v[k];
            }
        }
        Scale(frag_s, state, query, param_k, p.adjust ? 1.f : p.qk_scale, !p.adjust);
        if (p.adjust) {
            Softmax::Adjust(frag_s, p, Pack(p, place.slot).first_head<kHeads>(p), place, to, lane);
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
#pragma unroll
                    for (int k = 0; k < 2; ++k) {
                        float& s = Softmax::score(frag_s, n, e, k);
                        s = fmaf(s, p.qk_scale, -state.frag_m[n][e]);
                    }
                }
            }
        }
        if (from > 0 || to < CTA_S) {
            Softmax::Mask(frag_s, from, to, lane);
        }
        // P is multiplied by V's scale in T: 2^8 * 2^6 stays a float16; above that the reference is put 12 binary orders higher.
        constexpr float kLargeScale = 64.f;
        const bool large = kQuantised && fmaxf(fabsf(low_to_float<T>(param_v[0])), fabsf(low_to_float<T>(param_v[1]))) > kLargeScale;
        Softmax::MoveReference(frag_s, state, lane, fresh, large, 12.f);
        StoreP(frag_s, state, param_v, smem_q + kQueryBytes, lane);
    }

    static DEVICE void ComputePV(State& state, const FragP&, u32 smem_q, u32 slot, int, int from, int to, int g, int t)
    {
        const int lane = 4 * g + t;
        const u32 smem_p = smem_q + kQueryBytes + (t + g / 4 * 4) * kRowBytesP;
        const typename Tile::ValueReader smem_v{slot, lane};
        const bool masked = !kQuantised && (from > 0 || to < CTA_S);
        __syncwarp();  // P is there
#pragma unroll kUnrollValues
        for (int s = 0; s < CTA_S / 4; s += 2) {  // four keys each
            u32 frag_p[kHeadTiles][4];
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
                ld_shared(frag_p[n], smem_p + n * 8 * kRowBytesP + s * 8);
            }
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                u32 frag_v[Tile::kUnits][Tile::kUnitWords];
#pragma unroll
                for (int j = 0; j < Tile::kUnits; ++j) {
                    smem_v.Load(frag_v[j], s + e, j);
                }
                const int key = 4 * (s + e) + t;
                if (masked && (key < from || key >= to)) {  // may hold NaN
#pragma unroll
                    for (int j = 0; j < Tile::kUnits; ++j) {
#pragma unroll
                        for (int w = 0; w < Tile::kUnitWords; ++w) {
                            frag_v[j][w] = 0;
                        }
                    }
                }
#pragma unroll
                for (int i = 0; i < Tile::kDimTiles; ++i) {
                    u32 b[2];
                    Operands::Values(b, frag_v[i / Tile::kUnitTiles], i % Tile::kUnitTiles, g / 4);
#pragma unroll
                    for (int n = 0; n < kHeadTiles; ++n) {
                        mma_m8n8k4_row_row(state.frag_o[i][n][0], state.frag_o[i][n][1], frag_p[n][2 * e], frag_p[n][2 * e + 1], b[0],
                                           b[1]);
                    }
                }
            }
        }
    }

    static DEVICE void Finish(State& state) { Softmax::Finish(state, threadIdx.x % kWarpSize); }

private:
    // s = (code score * scale + zero * sum(q)) * factor - m, without m unless `relative`
    static DEVICE void Scale(FragS& frag_s, const State& state, const Query& query, const u32 (&param)[2], float factor, bool relative)
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float reference = relative ? -state.frag_m[n][e] : 0.f;
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    float& s = Softmax::score(frag_s, n, e, k);
                    if constexpr (kQuantised) {
                        s = fmaf(s, low_to_float<T>(param[k]) * factor,
                                 fmaf(high_to_float<T>(param[k]), query.sum[n][e] * factor, reference));
                    }
                    else {
                        s = fmaf(s, factor, reference);
                    }
                }
            }
        }
    }

    // Row sums are taken before P is rounded.
    static DEVICE void StoreP(const FragS& frag_s, State& state, const u32 (&param)[2], u32 smem_p, int lane)
    {
        float zero[2];
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            if constexpr (kQuantised) {
                zero[k] = fmaf(low_to_float<T>(param[k]), Codes<T, kBits>::kMiddle, high_to_float<T>(param[k]));
            }
        }
        const u32 at = smem_p + (lane & 2) * kRowBytesP + Softmax::first_key(lane) * (int)sizeof(T);
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const float x = ex2(frag_s[n][e / 2][e % 2]), y = ex2(frag_s[n][e / 2][2 + e % 2]);
                state.frag_l[n][e] += x + y;
                u32 pair = Pair<T>::pack(x, y);
                if constexpr (kQuantised) {
                    state.frag_z[n][e] += fmaf(x, zero[0], y * zero[1]);
                    pair = mul_rn_x2<T>(pair, prmt(param[0], param[1], 0x5410));
                }
                st_shared(at + (8 * n + e / 2 * 4 + e % 2) * kRowBytesP, pair);
            }
        }
    }
};
