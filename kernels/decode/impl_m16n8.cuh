// One warp's arithmetic on a tile of 16 keys: S^T = K Q^T (keys are M rows, heads N columns), O^T = V^T P^T by m16n8, 16 steps of K at a time.
// Lane l is (g, t) = (l / 4, l % 4). Row g of the key tile is key 2g, row g + 8 is key 2g + 1; column n is head n.
// The dims of K and Q share one permutation: 16 contiguous bytes of a row feed the k-slots of one lane.
#pragma once

#include "core/mma_k16.cuh"
#include "decode/cursor.cuh"
#include "decode/softmax_m16n8.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory.cuh"
#include "smem/swizzle.cuh"

template<class Arch, class T_, int kHeadDim_, int kHeads_, bool kQueryInShared_>
struct DecodeImpl {
    using T = T_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kHeads = kHeads_;
    static constexpr bool kQueryInShared = kQueryInShared_;
    static constexpr bool kFewRegisters = kQueryInShared || Arch::kTurns;  // recompute addresses rather than keep them
    static constexpr bool kEager = true;                                   // the order of the main loop's copies
    static constexpr int CTA_S = 16, kStepKeys = CTA_S;
    static constexpr int kRowBytes = kHeadDim * sizeof(T);
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kTileBytes = CTA_S * kRowBytes;
    static constexpr int kHeadTiles = kHeads / 8;
    static constexpr int kKeyLoads = kHeadDim / 32;            // 16-byte reads of a lane from one row of K; each feeds two k-steps
    static constexpr int kValueWords = kHeadDim % 64 ? 2 : 4;  // words of one read of V: 16 bytes where the lanes fill lines with them
    static constexpr int kValueLoads = kHeadDim / 16 / kValueWords;
    static constexpr int kDimTiles = kHeadDim / 16, kDimPairs = kDimTiles;
    // Reads in flight, as far as O, and a tile that waits in registers, leave registers for them.
    static constexpr int kWaiting = kHeads * kHeadDim > 16 * 192 ? 2 : 8;
    static constexpr int kMostKeys = Arch::kTurns ? 2 : 4;
    static constexpr int kKeyAhead = kQueryInShared ? 1 : kKeyLoads < kMostKeys ? kKeyLoads : kMostKeys;
    static constexpr int kValueAhead = kQueryInShared || Arch::kTurns || kValueLoads < 2 ? 1 : 2;

    static constexpr int kValueOffset = Arch::kTurns ? 0 : kTileBytes;
    static constexpr int kSlotBytes = kValueOffset + kTileBytes;  // K, V

    using SmemLayoutK = PairRowSwizzle<kRowChunks>;
    using SmemLayoutV = QuadRowSwizzle<kRowChunks>;

    using Map = WarpLinearMap<kRowChunks * CTA_S, kWaiting>;
    template<class Iterators>
    using GmemIterK = typename Iterators::template Data<T, Map, SmemLayoutK, kKeyData>;
    template<class Iterators>
    using GmemIterV = typename Iterators::template Data<T, Map, SmemLayoutV, kValueData>;

    template<class IterK, class IterV>
    static DEVICE void SetSmem(IterK& k, IterV& v, u32 slot)
    {
        k.SetSmem(slot);
        v.SetSmem(slot + kValueOffset);
    }

    using Softmax = DecodeSoftmax<T, 1, kHeadTiles, kDimTiles>;
    using State = typename Softmax::State;
    using FragS = typename Softmax::FragS;
    using FragP = typename Softmax::FragP;

    struct Query {
        u32 frag_q[kQueryInShared ? 1 : 2 * kKeyLoads][kHeadTiles][2];  // B: column g is head g
    };

    // Accumulator tile i holds dim dim_of(i, g) in its rows g, and kPairStep further in its rows g + 8.
    static constexpr int kPairStep = 1;
    static DEVICE int dim_of(int i, int g, int) { return i / kValueWords * 16 * kValueWords + 2 * kValueWords * g + i % kValueWords * 2; }

    // smem_ is the address of the lane's first chunk.
    struct SmemIterK: BaseSmemIterator<T, SmemLayoutK> {
        DEVICE SmemIterK(u32 tile, int g, int t): BaseSmemIterator<T, SmemLayoutK>(tile + SmemLayoutK::group_offset(g, t * kChunkBytes)) {}

        // 16 bytes of key 2g + odd.
        DEVICE void Load(u32 (&d)[4], int odd, int j) const { ld_shared(d, line_step(this->smem_, odd * kRowBytes + j * 4 * kChunkBytes)); }
    };

    struct SmemIterV: BaseSmemIterator<T, SmemLayoutV> {
        static constexpr int kReadBytes = kValueWords * 4;

        DEVICE SmemIterV(u32 tile, int g, int t): BaseSmemIterator<T, SmemLayoutV>(tile + SmemLayoutV::group_offset(t, g * kReadBytes)) {}

        // kValueWords words of key 4t + k.
        DEVICE void Load(u32 (&d)[kValueWords], int k, int j) const
        {
            ld_shared(d, line_step(this->smem_, k * kRowBytes + j * 8 * kReadBytes));
        }
    };

    // Q rows of `heads` heads from global memory; the columns past them repeat the last one, and nobody reads what comes of those.
    template<class Params>
    static DEVICE void LoadQ(Query& query, u32 smem_q, const T* q, int heads, const Params&, int g, int t)
    {
        __syncwarp();  // the previous segment's readers of smem_q are done
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            const int head = 8 * n + g;
            const char* const row = (const char*)(q + min(head, heads - 1) * kHeadDim) + t * kChunkBytes;
#pragma unroll
            for (int j = 0; j < kKeyLoads; ++j) {
                const uint4 w = *(const uint4*)(row + j * 4 * kChunkBytes);
                if constexpr (kQueryInShared) {
                    st_shared_v4(line_step(smem_q + query_base(head, t), j * 4 * kChunkBytes), {w.x, w.y, w.z, w.w});
                }
                else {
                    query.frag_q[2 * j][n][0] = w.x;
                    query.frag_q[2 * j][n][1] = w.y;
                    query.frag_q[2 * j + 1][n][0] = w.z;
                    query.frag_q[2 * j + 1][n][1] = w.w;
                }
            }
        }
        __syncwarp();
    }

    static DEVICE void ComputeQK(FragS& frag_s, const Query& query, u32 smem_q, u32 slot, int, int g, int t)
    {
        const SmemIterK smem_k{slot, g, t};
        constexpr int kAhead = kKeyAhead;
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            frag_s[0][n][0] = frag_s[0][n][1] = frag_s[0][n][2] = frag_s[0][n][3] = 0.f;
        }
#pragma unroll
        for (int j0 = 0; j0 < kKeyLoads; j0 += kAhead) {
            u32 frag_k[kAhead][2][4];
#pragma unroll
            for (int j = 0; j < kAhead; ++j) {
                if (j0 + j < kKeyLoads) {
                    smem_k.Load(frag_k[j][0], 0, j0 + j);
                    smem_k.Load(frag_k[j][1], 1, j0 + j);
                }
            }
#pragma unroll
            for (int j = 0; j < kAhead; ++j) {
                if (j0 + j < kKeyLoads) {
                    const u32(&even)[4] = frag_k[j][0];
                    const u32(&odd)[4] = frag_k[j][1];
#pragma unroll
                    for (int n = 0; n < kHeadTiles; ++n) {
                        u32 w[4];
                        if constexpr (kQueryInShared) {
                            ld_shared(w, line_step(smem_q + query_base(8 * n + g, t), (j0 + j) * 4 * kChunkBytes));
                        }
                        else {
                            w[0] = query.frag_q[2 * (j0 + j)][n][0], w[1] = query.frag_q[2 * (j0 + j)][n][1];
                            w[2] = query.frag_q[2 * (j0 + j) + 1][n][0], w[3] = query.frag_q[2 * (j0 + j) + 1][n][1];
                        }
                        mma_k16<Arch, T>(frag_s[0][n], {even[0], odd[0], even[1], odd[1]}, {w[0], w[1]});
                        mma_k16<Arch, T>(frag_s[0][n], {even[2], odd[2], even[3], odd[3]}, {w[2], w[3]});
                    }
                }
            }
        }
    }

    // Scores become probabilities 2^(s*qk_scale - m). Keys outside [from, to) of the tile do not count.
    template<class Params, class Place>
    static DEVICE void ComputeP(FragP& frag_p, FragS& frag_s, State& state, const Query&, u32, u32, int, const Params& p,
                                const Place& place, int from, int to, bool fresh, int g, int t)
    {
        if (p.adjust) {
            Softmax::Adjust(frag_s, p, Pack(p, place.slot).first_head<kHeads>(p), place, to, g, t);
        }
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                frag_s[0][n][i] = fmaf(frag_s[0][n][i], p.qk_scale, -state.frag_m[n][i & 1]);
            }
        }
        const bool partial = from > 0 || to < CTA_S;
        if (Softmax::Outgrown(frag_s, fresh || partial)) {
            if (partial) {
                Softmax::Mask(frag_s, from, to, g);
            }
            Softmax::MoveReference(frag_s, state, fresh);
        }
        Softmax::Exponentials(frag_p, frag_s, state);
    }

    static DEVICE void ComputePV(State& state, const FragP& frag_p, u32, u32 slot, int, int from, int to, int g, int t)
    {
        const SmemIterV smem_v{slot + kValueOffset, g, t};
        constexpr int kAhead = kValueAhead;
#pragma unroll
        for (int j0 = 0; j0 < kValueLoads; j0 += kAhead) {
            u32 frag_v[kAhead][4][kValueWords];
#pragma unroll
            for (int j = 0; j < kAhead; ++j) {
                if (j0 + j < kValueLoads) {
#pragma unroll
                    for (int k = 0; k < 4; ++k) {
                        smem_v.Load(frag_v[j][k], k, j0 + j);
                    }
                }
            }
            if (from > 0 || to < CTA_S) {  // rows that do not count may hold NaN: a zero probability would not silence them
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    if (4 * t + k < from || 4 * t + k >= to) {
#pragma unroll
                        for (int j = 0; j < kAhead; ++j) {
#pragma unroll
                            for (int w = 0; w < kValueWords; ++w) {
                                frag_v[j][k][w] = 0;
                            }
                        }
                    }
                }
            }
#pragma unroll
            for (int j = 0; j < kAhead; ++j) {
                if (j0 + j < kValueLoads) {
#pragma unroll
                    for (int w = 0; w < kValueWords; ++w) {
                        const u32(&v)[4][kValueWords] = frag_v[j];
                        const u32 a[4] = {prmt(v[0][w], v[2][w], 0x5410), prmt(v[0][w], v[2][w], 0x7632), prmt(v[1][w], v[3][w], 0x5410),
                                          prmt(v[1][w], v[3][w], 0x7632)};
#pragma unroll
                        for (int n = 0; n < kHeadTiles; ++n) {
                            mma_k16<Arch, T>(state.frag_o[(j0 + j) * kValueWords + w][n], a, frag_p[n]);
                        }
                    }
                }
            }
        }
    }

    static DEVICE void Finish(State& state) { Softmax::template Finish<false>(state); }

private:
    // Chunk t of a row of Q; rows are whole lines.
    static DEVICE int query_base(int head, int t) { return (head * kRowChunks + (t ^ (head & 1) << 2)) * kChunkBytes; }
};
