// One warp's arithmetic on 32 quantised keys at a time. Codes enter the mma; K's (scale, zero) act on scores, V's on P and its sums; where codes
// turn, one mma more per 16 keys puts them right: no element is ever scaled.
// Lane l is (g, t) = (l / 4, l % 4) and owns K's keys 4g .. 4g + 3. Row g of tile m is key 4g + 2m, row g + 8 the next; so that B of V's u-th 8
// keys has keys 8t + u and 8t + u + 4, and ldmatrix's u-th matrix of V has rows 4i + u.
#pragma once

#include "core/mma_k16.cuh"
#include "decode/cursor.cuh"
#include "decode/softmax_m16n8.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory.cuh"
#include "quant/codes.cuh"
#include "smem/swizzle.cuh"

template<class Arch, class T_, int kBits, int kHeadDim_, int kHeads_, int kTileKeys, bool kFewRegisters_>
struct DecodeQuantImpl {
    using T = T_;
    using Code = Codes<T, kBits>;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kHeads = kHeads_;
    static constexpr bool kFewRegisters = kFewRegisters_;  // recompute addresses rather than keep them
    static constexpr bool kEager = kBits == 4;             // the order of the main loop's copies
    static constexpr int CTA_S = kTileKeys;                // sent for together
    static constexpr int kStepKeys = 32;                   // computed together
    static constexpr int kKeyTiles = 2, kLaneKeys = 2 * kKeyTiles;
    static constexpr int kHeadTiles = kHeads / 8;
    static constexpr int kDimTiles = kHeadDim / 16, kDimPairs = kDimTiles;
    static constexpr int kRowBytes = kHeadDim * kBits / 8;
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kWordDims = 32 / kBits;      // dims of a word of codes
    static constexpr int kWordSteps = kWordDims / 4;  // k-steps of a word of K: four lanes bring 16 dims to each
    static constexpr int kChunkTiles = 8 / kBits;     // accumulator tiles of a chunk of V

    static constexpr int widest(int words) { return words % 4 == 0 ? 4 : words % 2 == 0 ? 2 : 1; }
    static constexpr int kLaneKeyWords = kRowBytes / 16;  // of a row of K, a lane's share
    static constexpr int kKeyWords = widest(kLaneKeyWords);
    static constexpr int kKeyLoads = kLaneKeyWords / kKeyWords;
    static constexpr int kSteps = kLaneKeyWords * kWordSteps;
    static constexpr int kWaiting = Arch::kTurns && kHeads * kHeadDim >= 16 * 96  // a tile waits in the registers that O leaves
                                        ? (kBits == 8 && kHeads * kHeadDim >= 16 * 128 ? 2 : 4)
                                        : 8;

    static constexpr int kTileBytes = CTA_S * kRowBytes;
    static constexpr int kParamBytes = 2 * sizeof(T);
    static constexpr int kValueOffset = Arch::kTurns ? 0 : kTileBytes;
    static constexpr int kParamOffset = kValueOffset + kTileBytes;
    static constexpr int kSlotBytes = kParamOffset + 2 * CTA_S * kParamBytes;  // K, V, K's parameters, V's parameters

    using SmemLayoutK = CodeKeySwizzle<kRowChunks, kLaneKeys, kKeyWords>;
    using SmemLayoutV = CodeValueSwizzle<kRowChunks, kLaneKeys>;
    using Map = WarpLinearMap<kRowChunks * CTA_S, kWaiting>;
    template<class Iterators>  // K brings the parameters of both
    using GmemIterK =
        CombinedIterator<typename Iterators::template Data<u8, Map, SmemLayoutK, kKeyData>, typename Iterators::template Params<T, CTA_S>>;
    template<class Iterators>
    using GmemIterV = typename Iterators::template Data<u8, Map, SmemLayoutV, kValueData>;

    template<class IterK, class IterV>
    static DEVICE void SetSmem(IterK& k, IterV& v, u32 slot)
    {
        k.SetSmem(slot, slot + kParamOffset);
        v.SetSmem(slot + kValueOffset);
    }

    using Softmax = DecodeSoftmax<T, kKeyTiles, kHeadTiles, kDimTiles + (Code::kTurns ? 1 : 0)>;
    using FragS = typename Softmax::FragS;
    using FragP = typename Softmax::FragP;
    using State = typename Softmax::State;
    static constexpr int kSumTile = Code::kTurns ? kDimTiles : 0;  // of O: where codes turn, what joins all dims

    // Of two numbers; all four that an mma takes, if twelve warps do not need the registers.
    static constexpr int kBiases = kHeadTiles > 1 && kHeadDim <= 64 ? 2 : 4;

    struct Query {
        u32 frag_q[kSteps][kHeadTiles][2];  // B: column g is head g, dims permuted like K's words
        float bias[kHeadTiles][kBiases];    // C: minus what the magic numbers add to the scores of heads 2t and 2t + 1
        float sum[kHeadTiles][2];           // of the head's dims, on the scale of scores
    };

    // Accumulator tile i holds dim dim_of(i, g) in its rows g, and kPairStep further in its rows g + 8. A word's nibbles are dims 0 2 4 6 1 3 5 7.
    static constexpr int kPairStep = kBits == 8 ? 1 : 2;
    static DEVICE int dim_of(int i, int g, int) { return kBits == 8 ? 16 * i + 2 * g : i / 2 * 32 + g / 2 * 8 + i % 2 * 4 + g % 2; }

    // Step `step` of a lane's words of a row: the first of its four dims.
    static DEVICE int query_dim(int step, int t)
    {
        const int word = step / kWordSteps;
        return ((word / kKeyWords * 4 + t) * kKeyWords + word % kKeyWords) * kWordDims + step % kWordSteps * 4;
    }

    // Columns past the last head repeat it; nobody reads them. Sums of dims are products with ones: they stand where scores will.
    template<class Params>
    static DEVICE void LoadQ(Query& query, u32, const T* q, int heads, const Params& p, int g, int t)
    {
        constexpr u32 kOnes = Pair<T>::kOnes;
        __syncwarp();
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            const int head = 8 * n + g;
            const T* const row = q + min(head, heads - 1) * kHeadDim + query_dim(0, t);
            float bias[4] = {}, sum[4] = {};
#pragma unroll
            for (int s = 0; s < kSteps; ++s) {
                const uint2 w = *(const uint2*)(row + query_dim(s, 0));
                mma_k16<Arch, T>(bias, {Code::kUnbias[0], Code::kUnbias[0], Code::kUnbias[1], Code::kUnbias[1]}, {w.x, w.y});
                mma_k16<Arch, T>(sum, {kOnes, kOnes, kOnes, kOnes}, {w.x, w.y});
                query.frag_q[s][n][0] = w.x;
                query.frag_q[s][n][1] = w.y;
            }
#pragma unroll
            for (int e = 0; e < kBiases; ++e) {
                query.bias[n][e] = bias[e];
            }
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                query.sum[n][e] = sum[e] * (p.adjust ? 1.f : p.qk_scale);
            }
        }
        __syncwarp();
    }

    static DEVICE void ComputeQK(FragS& frag_s, const Query& query, u32, u32 slot, int key, int g, int t)
    {
        const u32 lane_base = slot + key * kRowBytes + SmemLayoutK::group_offset(g, t * 4 * kKeyWords);
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
                        const u32(&q)[2] = query.frag_q[step][n];
                        const float (&bias)[kBiases] = query.bias[n];
#pragma unroll
                        for (int m = 0; m < kKeyTiles; ++m) {
                            const u32 a[4] = {pairs[2 * m][0], pairs[2 * m + 1][0], pairs[2 * m][1], pairs[2 * m + 1][1]};
                            if (step == 0) {
                                mma_k16<Arch, T>(frag_s[m][n], a, q, {bias[0], bias[1], bias[kBiases - 2], bias[kBiases - 1]});
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

    // Scores s = code score * scale + zero * sum(q) become probabilities 2^(s*qk_scale - m). Of the 32 from `key` on those outside
    // [from, to) do not count; the slot begins with the tile's first key.
    template<class Params, class Place>
    static DEVICE void ComputeP(FragP& frag_p, FragS& frag_s, State& state, const Query& query, u32, u32 slot, int key, const Params& p,
                                const Place& place, int from, int to, bool fresh, int g, int t)
    {
        u32 key_params[kLaneKeys], value_params[kLaneKeys];
        ld_shared(key_params, slot + kParamOffset + (key + kLaneKeys * g) * kParamBytes);
        ld_shared(value_params, slot + kParamOffset + (CTA_S + key + kLaneKeys * g) * kParamBytes);
        Scale(frag_s, state, query, key_params, p.adjust ? 1.f : p.qk_scale, !p.adjust);
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
        float scale[kLaneKeys], zero[kLaneKeys];
#pragma unroll
        for (int k = 0; k < kLaneKeys; ++k) {
            const float x = low_to_float<T>(value_params[k]);
            zero[k] = fmaf(x, Code::kTurns ? Code::kTurn : Code::kMiddle, high_to_float<T>(value_params[k]));
            scale[k] = turned(k) ? -x : x;
        }
        const bool partial = from > 0 || to < kStepKeys;
        if (Softmax::Outgrown(frag_s, fresh || partial || any_large(scale))) {
            if (partial) {
                Softmax::Mask(frag_s, from, to, g);
                Softmax::Mask(scale, from, to, g);
                Softmax::Mask(zero, from, to, g);
            }
            Softmax::MoveReference(frag_s, state, fresh, any_large(scale), kLower);  // asked again: rows that do not count hold anything
        }
        Softmax::Exponentials(frag_p, frag_s, state, scale, zero);
    }

    // B of 16 keys: frag_p's u and u + 1.
    static DEVICE void ComputePV(State& state, FragP& frag_p, u32, u32 slot, int key, int, int, int g, int t)
    {
        if constexpr (Code::kTurns) {
            constexpr u32 kLess = Code::kMinusTurn;
#pragma unroll
            for (int u = 0; u < kLaneKeys; u += 2) {
                Accumulate(state, kSumTile, {kLess, kLess, kLess, kLess}, frag_p, u);
            }
        }
#pragma unroll
        for (int c = 0; c < kRowChunks; ++c) {
            u32 x[kLaneKeys];  // dims of the chunk as rows, keys 8t + u and 8t + u + 4 as columns
            ldmatrix_x4_trans(x, value_address(slot + kValueOffset + key * kRowBytes, c, 4 * g + t));
#pragma unroll
            for (int u = 0; u < kLaneKeys; u += 2) {
#pragma unroll
                for (int i = 0; i < kChunkTiles; ++i) {
                    const u32 a[4] = {Code::low(x[u] >> 8 * i, turned(u)), Code::high(x[u] >> 8 * i, turned(u)),
                                      Code::low(x[u + 1] >> 8 * i, turned(u)), Code::high(x[u + 1] >> 8 * i, turned(u))};
                    Accumulate(state, c * kChunkTiles + i, a, frag_p, u);
                }
            }
        }
    }

    // V's zeros join O: sum p scale (code - middle) + sum p (zero + middle scale). Where codes turn, the first is in three places: O has the sum of
    // p scale code and, of turned ones, -p scale (most - code), tile kSumTile -middle times that of p scale and -p scale.
    static DEVICE void Finish(State& state)
    {
        Softmax::template Finish<true>(state);
#pragma unroll
        for (int i = 0; i < kDimTiles; ++i) {
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const float all = state.frag_l[n][e & 1] + (Code::kTurns ? state.frag_o[kSumTile][n][e & 1] : 0.f);
                    state.frag_o[i][n][e] = fmaf(state.frag_o[i][n][e], Code::kUnit[e / 2], all);
                }
            }
        }
    }

private:
    static constexpr bool kFloat16 = Pair<T>::kOnes == Pair<half_t>::kOnes;

    // P times V's scale becomes T: 2^8 * 2^6 is a float16; above that the reference is put 12 binary orders higher.
    static constexpr float kLargeScale = 64.f, kLower = 12.f;

    static DEVICE bool any_large(const float (&scale)[kLaneKeys])
    {
        float largest = 0.f;
#pragma unroll
        for (int k = 0; k < kLaneKeys; ++k) {
            largest = fmaxf(largest, fabsf(scale[k]));
        }
        return kFloat16 && largest > kLargeScale;
    }

    // s = (code score * scale + zero * sum(q)) * factor - m * relative
    static DEVICE void Scale(FragS& frag_s, const State& state, const Query& query, const u32 (&param)[kLaneKeys], float factor,
                             bool relative)
    {
        float reference[kHeadTiles][2];
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 2; ++e) {
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
                    s = fmaf(s, scale, fmaf(zero, query.sum[n][e], reference[n][e]));
                }
            }
        }
    }

    // Of a lane's keys half: those of every second mma.
    static DEVICE bool turned(int u) { return Code::kTurns && u >= kLaneKeys / 2; }

    // Where lane `lane` finds its row of ldmatrix's matrices for chunk c: of matrix u, key 4i + u.
    static DEVICE u32 value_address(u32 tile, int c, int lane)
    {
        constexpr bool kEven = (kRowChunks & (kRowChunks - 1)) == 0;
        const int byte = lane / 8 * kRowBytes, further = c * kChunkBytes;
        return kEven ? line_step(tile + SmemLayoutV::group_offset(lane % 8, byte), further)
                     : tile + SmemLayoutV::group_offset(lane % 8, byte + further);
    }

    static DEVICE void Accumulate(State& state, int tile, const u32 (&a)[4], const FragP& frag_p, int u)
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            mma_k16<Arch, T>(state.frag_o[tile][n], a, {frag_p[n][u], frag_p[n][u + 1]});
        }
    }
};
