// One warp's arithmetic on a tile of 32 quantised keys. Codes enter the mma; K's (scale, zero) act on scores, V's scale on P, and V's zero
// comes from one extra mma per 16 keys, two where codes turn: no element is ever scaled.
// Lane l is (g, t) = (l / 4, l % 4) and owns K's keys 4g .. 4g + 3, V's 8t .. 8t + 7. Row g of tile m is key 4g + 2m, row g + 8 the next.
#pragma once

#include "core/mma_k16.cuh"
#include "decode/cursor.cuh"
#include "decode/softmax_m16n8.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/memory.cuh"
#include "quant/codes.cuh"
#include "smem/swizzle.cuh"

template<class Arch, class T_, int kBits, int kHeadDim_, int kHeads_, bool kQueryInShared_, bool kFewRegisters_>
struct DecodeQuantImpl {
    using T = T_;
    using Code = Codes<T, kBits>;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kHeads = kHeads_;
    static constexpr bool kQueryInShared = kQueryInShared_;
    static constexpr bool kFewRegisters = kFewRegisters_;  // recompute addresses rather than keep them
    static constexpr bool kEager = kBits == 4;             // the order of the main loop's copies
    static constexpr int CTA_S = 32;
    static constexpr int kKeyTiles = 2, kLaneKeys = 2 * kKeyTiles;
    static constexpr int kHeadTiles = kHeads / 8;
    static constexpr int kDimTiles = kHeadDim / 16, kDimPairs = kDimTiles;
    static constexpr int kRowBytes = kHeadDim * kBits / 8;
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kWordDims = 32 / kBits;      // dims of a word of codes
    static constexpr int kWordSteps = kWordDims / 4;  // k-steps of a word of K: four lanes bring 16 dims to each
    static constexpr int kWordTiles = kWordDims / 2;  // accumulator tiles of a word of V

    static constexpr int widest(int words) { return words % 4 == 0 ? 4 : words % 2 == 0 ? 2 : 1; }
    static constexpr int kLaneKeyWords = kRowBytes / 16;  // of a row of K, a lane's share
    static constexpr int kKeyWords = widest(kLaneKeyWords);
    static constexpr int kKeyLoads = kLaneKeyWords / kKeyWords;
    static constexpr int kSteps = kLaneKeyWords * kWordSteps;
    static constexpr int kLaneValueWords = kRowBytes / 32;                         // of a row of V, whole words
    static constexpr bool kHalfWord = kRowBytes % 32 != 0;                         // and then half a word: two lanes share it
    static constexpr bool kNarrow = Arch::kTurns && kHeads * kHeadDim >= 16 * 96;  // a tile waits in the registers that O leaves
    static constexpr int kWaiting = kNarrow ? (kBits == 8 && kHeads * kHeadDim >= 16 * 128 ? 2 : 4) : 8;
    static constexpr int kValueWords = (kQueryInShared || kNarrow) && kLaneValueWords % 2 == 0 ? 2 : widest(kLaneValueWords);
    static constexpr int kValueLoads = kLaneValueWords / kValueWords;
    static constexpr int kWholePairs = kLaneValueWords * kWordTiles;

    static constexpr int kTileBytes = CTA_S * kRowBytes;
    static constexpr int kParamTileBytes = CTA_S * 2 * sizeof(T);
    static constexpr int kValueOffset = Arch::kTurns ? 0 : kTileBytes;
    static constexpr int kParamOffset = kValueOffset + kTileBytes;
    static constexpr int kSlotBytes = kParamOffset + 2 * kParamTileBytes;  // K, V, K's parameters, V's parameters

    using SmemLayoutK = CodeKeySwizzle<kRowChunks, kLaneKeys, kKeyWords>;
    using SmemLayoutV = CodeValueSwizzle<kRowChunks, kLaneKeys>;
    using Map = WarpLinearMap<kRowChunks * CTA_S, kWaiting>;
    template<class Iterators>  // K brings the parameters of both
    using GmemIterK =
        CombinedIterator<typename Iterators::template Data<u8, Map, SmemLayoutK, kKeyData>, typename Iterators::template Params<T, CTA_S>>;
    template<class Iterators>
    using GmemIterV = typename Iterators::template Data<u8, Map, SmemLayoutV, kValueData>;

    template<class IterK, class IterV>
    static DEVICE void SetSmem(IterK& k, IterV& v, u32 ring)
    {
        k.SetSmem(ring, ring + kParamOffset);
        v.SetSmem(ring + kValueOffset);
    }

    using Softmax = DecodeSoftmax<T, kKeyTiles, kHeadTiles, kDimTiles>;
    using FragS = typename Softmax::FragS;
    using FragP = typename Softmax::FragP;
    using State = typename Softmax::State;  // FragL: [0], [1] sums of p * zero

    struct Query {
        u32 frag_q[kQueryInShared ? 1 : kSteps][kHeadTiles][2];  // B: column g is head g, dims permuted like K's words
        float bias[kHeadTiles][4];                               // C: minus what the magic numbers add to the scores of heads 2t and 2t + 1
        float sum[kHeadTiles][2];                                // of the head's dims
    };

    // Accumulator tile i holds dims dim_of(i, g) in its rows g and, `second` = 1, in its rows g + 8.
    static DEVICE int dim_of(int i, int g, int, int second)
    {
        if (i < kWholePairs) {
            const int word = i / kWordTiles / kValueWords * 8 * kValueWords + g * kValueWords + i / kWordTiles % kValueWords;
            return word * kWordDims + i % kWordTiles * 2 + second;
        }
        return (kLaneValueWords * 8 + g / 2) * kWordDims + ((i - kWholePairs) * 2 + second) * 2 + g % 2;  // nibbles of one parity
    }

    // Step `step` of a lane's words of a row: the first of its four dims.
    static DEVICE int query_dim(int step, int t)
    {
        const int word = step / kWordSteps;
        return ((word / kKeyWords * 4 + t) * kKeyWords + word % kKeyWords) * kWordDims + step % kWordSteps * 4;
    }

    // Columns past the last head repeat it; nobody reads them. Sums of dims are products with ones: they stand where scores will.
    template<class Params>
    static DEVICE void LoadQ(Query& query, u32 smem_q, const T* q, int heads, const Params&, int g, int t)
    {
        constexpr u32 kOnes = Pair<T>::kOnes;
        constexpr bool kOneBias = Code::kBias[0] == Code::kBias[1];
        __syncwarp();
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            const int head = 8 * n + g;
            const T* const row = q + min(head, heads - 1) * kHeadDim + query_dim(0, t);
            float first[4] = {}, second[4] = {};  // sums of the pairs that carry kBias[0] and kBias[1]
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                const uint2 w = *(const uint2*)(row + query_dim(s, 0));
                mma_k16<Arch, T>(first, {kOnes, kOnes, kOneBias ? kOnes : 0, kOneBias ? kOnes : 0}, {w.x, w.y});
                if (!kOneBias) {
                    mma_k16<Arch, T>(second, {0, 0, kOnes, kOnes}, {w.x, w.y});
                }
                if constexpr (kQueryInShared) {
                    st_shared_v2(query_address(smem_q, s, n, g, t), w.x, w.y);
                }
                else {
                    query.frag_q[s][n][0] = w.x;
                    query.frag_q[s][n][1] = w.y;
                }
            }
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                query.sum[n][e] = first[e] + second[e];
                query.bias[n][e] = opaque(-(Code::kBias[0] * first[e] + Code::kBias[1] * second[e]));
                query.bias[n][2 + e] = opaque(query.bias[n][e]);  // four registers that an mma takes as they are
            }
        }
        __syncwarp();
    }

    static DEVICE void ComputeQK(FragS& frag_s, const Query& query, u32 smem_q, u32 slot, int g, int t)
    {
        const u32 lane_base = slot + SmemLayoutK::group_offset(g, t * 4 * kKeyWords);
#pragma unroll
        for (int j = 0; j < kKeyLoads; ++j) {
            u32 frag_k[kLaneKeys][kKeyWords];
#pragma unroll
            for (int k = 0; k < kLaneKeys; ++k) {
                const int further = k * kRowBytes + j * 16 * kKeyWords;
                ld_shared(frag_k[k], SmemLayoutK::kWholeLines ? line_step(lane_base, further) : lane_base + further);
            }
#pragma unroll
            for (int w = 0; w < kKeyWords; ++w) {
#pragma unroll
                for (int e = 0; e < kWordSteps; ++e) {
                    const int step = (j * kKeyWords + w) * kWordSteps + e;
                    u32 pairs[kLaneKeys][2];
#pragma unroll
                    for (int k = 0; k < kLaneKeys; ++k) {
                        Code::key_pairs(pairs[k], frag_k[k][w], e);
                    }
#pragma unroll
                    for (int n = 0; n < kHeadTiles; ++n) {
                        u32 q[2];
                        if constexpr (kQueryInShared) {
                            ld_shared(q, query_address(smem_q, step, n, g, t));
                        }
                        else {
                            q[0] = query.frag_q[step][n][0], q[1] = query.frag_q[step][n][1];
                        }
#pragma unroll
                        for (int m = 0; m < kKeyTiles; ++m) {
                            const u32 a[4] = {pairs[2 * m][0], pairs[2 * m + 1][0], pairs[2 * m][1], pairs[2 * m + 1][1]};
                            if (step == 0) {
                                mma_k16<Arch, T>(frag_s[m][n], a, q,
                                                 {query.bias[n][0], query.bias[n][1], query.bias[n][0], query.bias[n][1]});
                            }
                            else {
                                mma_k16<Arch, T>(frag_s[m][n], a, q);
                            }
                        }
                    }
                }
            }
        }
    }

    // Scores s = code score * scale + zero * sum(q) become probabilities 2^(s*qk_scale - m). Keys outside [from, to) of the tile do not
    // count.
    template<class Params, class Place>
    static DEVICE void ComputeP(FragP& frag_p, FragS& frag_s, State& state, const Query& query, u32, u32 slot, const Params& p,
                                const Place& place, int from, int to, bool fresh, int g, int t)
    {
        u32 param[kLaneKeys], mine[1];
        ld_shared(param, slot + kParamOffset + g * kLaneKeys * 4);
        ld_shared(mine, value_param(slot, 4 * g + t));
        Scale(frag_s, state, query, param, p.adjust ? 1.f : p.qk_scale, !p.adjust);
        if (p.adjust) {
            Softmax::Adjust(frag_s, p, Pack(p, place.slot).first_head<kHeads>(p), place, to, g, t);
#pragma unroll
            for (int m = 0; m < kKeyTiles; ++m) {
#pragma unroll
                for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        frag_s[m][n][i] = fmaf(frag_s[m][n][i], p.qk_scale, -state.frag_m[n][i & 1]);
                    }
                }
            }
        }
        if (from > 0 || to < CTA_S) {  // rare
            Softmax::Mask(frag_s, from, to, g);
            ClearValueParam(slot, mine[0], 4 * g + t, from, to);
        }
        // P is multiplied by V's scale in T: 2^8 * 2^6 stays a float16; above that the reference is put 12 binary orders higher.
        constexpr float kLargeScale = 64.f, kLower = 12.f;
        const bool large = kFloat16 && fabsf(low_to_float<T>(mine[0])) > kLargeScale;
        Softmax::MoveReference(frag_s, state, fresh, large, kLower);
        Softmax::Exponentials(frag_p, frag_s, state);
    }

    static DEVICE void ComputePV(State& state, FragP& frag_p, u32, u32 slot, int from, int to, int g, int t)
    {
        constexpr int kKeys = 2 * kLaneKeys;  // of a lane
        u32 param[kKeys];
        {
            u32 half[4];
#pragma unroll
            for (int i = 0; i < kKeys / 4; ++i) {
                ld_shared(half, value_param(slot, t * kKeys + 4 * i));
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    param[4 * i + k] = half[k];
                }
            }
        }
        // B of 16 keys: (u, u + kLaneKeys) and (u + 1, u + 1 + kLaneKeys) of the lane's keys
#pragma unroll
        for (int u = 0; u < kLaneKeys; u += 2) {
            const u32 scale0 = prmt(param[u], param[u + kLaneKeys], 0x5410), scale1 = prmt(param[u + 1], param[u + 1 + kLaneKeys], 0x5410);
            const u32 zero0 = fma_rn_x2<T>(scale0, Code::kMiddlePair, prmt(param[u], param[u + kLaneKeys], 0x7632));
            const u32 zero1 = fma_rn_x2<T>(scale1, Code::kMiddlePair, prmt(param[u + 1], param[u + 1 + kLaneKeys], 0x7632));
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
                SumRows(state, n, zero0, zero1, frag_p, u);
                frag_p[n][u] = mul_rn_x2<T>(frag_p[n][u], turned(u) ? negative(scale0) : scale0);
                frag_p[n][u + 1] = mul_rn_x2<T>(frag_p[n][u + 1], turned(u) ? negative(scale1) : scale1);
                if constexpr (Code::kTurns) {
                    SumRows(state, n, negative(Code::kMiddlePair), negative(Code::kMiddlePair), frag_p, u);
                }
            }
        }
        const u32 tile = slot + kValueOffset, lane_base = tile + SmemLayoutV::group_offset(t, g * 4 * kValueWords);
#pragma unroll
        for (int j = 0; j < kValueLoads; ++j) {
            u32 frag_v[kKeys][kValueWords];
#pragma unroll
            for (int k = 0; k < kKeys; ++k) {
                const int further = k * kRowBytes + j * 32 * kValueWords;
                ld_shared(frag_v[k],
                          kHalfWord ? tile + SmemLayoutV::group_offset(t, further + g * 4 * kValueWords) : line_step(lane_base, further));
            }
#pragma unroll
            for (int w = 0; w < kValueWords; ++w) {
#pragma unroll
                for (int u = 0; u < kLaneKeys; u += 2) {
                    const u32 x0 = frag_v[u][w], x1 = frag_v[u + kLaneKeys][w], y0 = frag_v[u + 1][w], y1 = frag_v[u + 1 + kLaneKeys][w];
                    const u32 x[2] = {prmt(x0, x1, 0x5410), prmt(x0, x1, 0x7632)}, y[2] = {prmt(y0, y1, 0x5410), prmt(y0, y1, 0x7632)};
#pragma unroll
                    for (int i = 0; i < kWordTiles; ++i) {
                        const u32 a[4] = {value(x, i, 0, turned(u)), value(x, i, 1, turned(u)), value(y, i, 0, turned(u)),
                                          value(y, i, 1, turned(u))};
                        Accumulate(state, (j * kValueWords + w) * kWordTiles + i, a, frag_p, u);
                    }
                }
            }
        }
        if constexpr (kHalfWord) {
            const u32 selector = g % 2 ? 0x7632 : 0x5410;
            u32 frag_v[kKeys];
#pragma unroll
            for (int k = 0; k < kKeys; ++k) {
                u32 word[1];
                ld_shared(word, tile + SmemLayoutV::group_offset(t, k * kRowBytes + (8 * kLaneValueWords + g / 2) * 4));
                frag_v[k] = word[0];
            }
#pragma unroll
            for (int u = 0; u < kLaneKeys; u += 2) {
                const u32 x = prmt(frag_v[u], frag_v[u + kLaneKeys], selector),
                          y = prmt(frag_v[u + 1], frag_v[u + 1 + kLaneKeys], selector);
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const u32 a[4] = {Code::low(x >> 8 * i, turned(u)), Code::high(x >> 8 * i, turned(u)), Code::low(y >> 8 * i, turned(u)),
                                      Code::high(y >> 8 * i, turned(u))};
                    Accumulate(state, kWholePairs + i, a, frag_p, u);
                }
            }
        }
    }

    // V's zeros join O: sum p scale (code - middle) + sum p (zero + middle scale). Where codes turn, the first is in two places: O has the sum of
    // p scale code and, of turned ones, -p scale (most - code); the zeros' sum has -middle times that of p scale and -p scale.
    static DEVICE void Finish(State& state)
    {
        Softmax::Finish(state);
#pragma unroll
        for (int i = 0; i < kDimTiles; ++i) {
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    state.frag_o[i][n][e] =
                        fmaf(state.frag_o[i][n][e], Code::kUnit[i < kWholePairs ? i % 2 : e / 2], state.frag_l[n][e & 1]);
                }
            }
        }
    }

private:
    static constexpr bool kFloat16 = Pair<T>::kOnes == Pair<half_t>::kOnes;

    // s = (code score * scale + zero * sum(q)) * factor - m * relative
    static DEVICE void Scale(FragS& frag_s, const State& state, const Query& query, const u32 (&param)[kLaneKeys], float factor,
                             bool relative)
    {
        float sum[kHeadTiles][2], reference[kHeadTiles][2];
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                sum[n][e] = query.sum[n][e] * factor;
                reference[n][e] = relative ? -state.frag_m[n][e] : 0.f;
            }
        }
#pragma unroll
        for (int k = 0; k < kLaneKeys; ++k) {
            const float scale = low_to_float<T>(param[k]) * factor, zero = high_to_float<T>(param[k]);
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& s = frag_s[k / 2][n][k % 2 * 2 + e];
                    s = fmaf(s, scale, fmaf(zero, sum[n][e], reference[n][e]));
                }
            }
        }
    }

    // Of a lane's keys of V, half: those of every second mma.
    static DEVICE bool turned(int u) { return Code::kTurns && u >= kLaneKeys / 2; }
    static DEVICE u32 negative(u32 pair) { return pair ^ 0x80008000u; }

    // Codes of tile i's first or second dim, of two keys, as V's operands are; x are the low and the high halves of their words.
    static DEVICE u32 value(const u32 (&x)[2], int i, int second, bool turn)
    {
        if (kBits == 8) {
            return second ? Code::high(x[i], turn) : Code::low(x[i], turn);
        }
        const u32 nibbles = x[second] >> 8 * (i / 2);
        return i % 2 ? Code::high(nibbles, turn) : Code::low(nibbles, turn);
    }

    static DEVICE void Accumulate(State& state, int tile, const u32 (&a)[4], const FragP& frag_p, int u)
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            mma_k16<Arch, T>(state.frag_o[tile][n], a, {frag_p[n][u], frag_p[n][u + 1]});
        }
    }

    // Adds p times a number of each key, for 16 keys, to what joins all dims of O. Every row of the product is the same, and its lower half is
    // not kept.
    static DEVICE void SumRows(State& state, int n, u32 numbers0, u32 numbers1, const FragP& frag_p, int u)
    {
        float sum[4] = {state.frag_l[n][0], state.frag_l[n][1], 0.f, 0.f};
        mma_k16<Arch, T>(sum, {numbers0, 0, numbers1, 0}, {frag_p[n][u], frag_p[n][u + 1]});
        state.frag_l[n][0] = sum[0];
        state.frag_l[n][1] = sum[1];
    }

    static DEVICE u32 value_param(u32 slot, int key) { return slot + kParamOffset + kParamTileBytes + key * 4; }

    // Parameters of V outside [from, to) may hold NaN, which a zero probability would not silence; codes are always finite.
    static DEVICE void ClearValueParam(u32 slot, u32& param, int key, int from, int to)
    {
        if (key < from || key >= to) {
            param = 0;
            st_shared(value_param(slot, key), 0);
        }
        __syncwarp();
    }

    // A lane's fragments of Q lie where no other lane reads.
    static DEVICE u32 query_address(u32 smem_q, int step, int n, int g, int t)
    {
        return smem_q + ((step * kHeadTiles + n) * kWarpSize + 4 * g + t) * 8;
    }
};
