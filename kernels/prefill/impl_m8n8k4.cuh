// A warp's arithmetic on a tile of keys: S = Q K^T, O += P V by m8n8k4. Of a slab of 16 query rows and 16 keys (32 dims) each quad pair
// computes 8 x 8 (8 x 16). P reaches the pair that needs it by shuffles, never by shared memory. Lanes are named as in
// prefill/smem_m8n8k4.cuh.
#pragma once

#include "core/family_sm70.cuh"
#include "prefill/smem_m8n8k4.cuh"
#include "prefill/softmax.cuh"
#include "ptx/mma.cuh"

template<class Arch, class T_, int kHeadDim_, int kSlabs_, int CTA_S_>
struct PrefillImpl: PrefillSoftmax<T_, M8n8k4Map, kSlabs_, CTA_S_ / 16, kHeadDim_ / 16> {
    using Base = PrefillSoftmax<T_, M8n8k4Map, kSlabs_, CTA_S_ / 16, kHeadDim_ / 16>;
    using T = T_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kSlabs = kSlabs_;
    static constexpr int CTA_S = CTA_S_;
    static constexpr int kSlabRows = 16;
    static constexpr int kWarpRows = kSlabs * kSlabRows;
    static constexpr int kRowBytes = kHeadDim * sizeof(T);
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kDimSteps = kHeadDim / 16;
    static constexpr int kKeySteps = CTA_S / 16;
    static constexpr int kAhead = 2;  // fragments in flight before their mma

    using SmemLayout = QuadPairSwizzle<kRowChunks>;
    using typename Base::FragO;
    using typename Base::FragRow;
    using typename Base::FragS;

    using SmemIterK = QuadPairIterK<T, SmemLayout>;
    using SmemIterQ = QuadPairIterQ<T, SmemLayout>;
    using SmemIterV = QuadPairIterV<T, SmemLayout>;

    static DEVICE void ComputeQK(FragS& frag_s, const SmemIterQ& smem_q, const SmemIterK& smem_k)
    {
        constexpr int kSteps = kKeySteps * kRowChunks;
        u32 frag_k[kAhead + 1][4], frag_q[2][kSlabs][4];
        auto load_k = [&](int n) { smem_k.Load(frag_k[n % (kAhead + 1)], n % kKeySteps, n / kKeySteps); };
        auto load_q = [&](int chunk) {
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                smem_q.Load(frag_q[chunk & 1][i], i, chunk);
            }
        };
        load_q(0);
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
            load_k(n);
        }
        Zero(frag_s);
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
            const int chunk = n / kKeySteps, key = n % kKeySteps;
            if (n + kAhead < kSteps) {
                load_k(n + kAhead);
            }
            if (key == 0 && chunk + 1 < kRowChunks) {
                load_q(chunk + 1);
            }
            const u32(&k)[4] = frag_k[n % (kAhead + 1)];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                const u32(&q)[4] = frag_q[chunk & 1][i];
                mma_m8n8k4_row_col(frag_s[i][2 * key], frag_s[i][2 * key + 1], q[0], q[1], k[0], k[1]);
                mma_m8n8k4_row_col(frag_s[i][2 * key], frag_s[i][2 * key + 1], q[2], q[3], k[2], k[3]);
            }
        }
    }

    // P = 2^S, O += P V.
    static DEVICE void ComputePV(FragO& frag_o, FragRow& frag_l, FragS& frag_s, const SmemIterV& smem_v)
    {
#pragma unroll
        for (int key = 0; key < kKeySteps; ++key) {
            u32 own[kSlabs][2][2], other[kSlabs][2][2];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                u32 p[2][2];  // (half of 16 keys) x row
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int h = e & 1;
                    p[e / 2][h] = Base::Exponentials(frag_s[i][2 * key + e / 2], h, frag_l[i][h]);
                }
                Arrange(own[i], other[i], p, smem_v.lane_ & 2);
            }
            AddPV<false>(frag_o, own, smem_v, key);
            AddPV<true>(frag_o, other, smem_v, key);
        }
    }

private:
    static DEVICE void Zero(FragS& frag_s)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kKeySteps; ++j) {
                frag_s[i][j][0] = frag_s[i][j][1] = frag_s[i][j][2] = frag_s[i][j][3] = 0.f;
            }
        }
    }

    // From C's two rows of a lane to A's one: lanes b1 = 0 and 1 swap, so that each has row b0 + 2 b1 of four, keys 2 step + 0, 1, 8, 9.
    // The same of the other pair of these rows follows.
    static DEVICE void Arrange(u32 (&own)[2][2], u32 (&other)[2][2], const u32 (&p)[2][2], bool upper)
    {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const u32 given = __shfl_xor_sync(kFullWarp, upper ? p[half][0] : p[half][1], 2);
            own[0][half] = upper ? given : p[half][0];
            own[1][half] = upper ? p[half][1] : given;
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                other[step][half] = __shfl_xor_sync(kFullWarp, own[step][half], 4);
            }
        }
    }

    template<bool kOther>
    static DEVICE void AddPV(FragO& frag_o, const u32 (&p)[kSlabs][2][2], const SmemIterV& smem_v, int key)
    {
        constexpr int kDims = kHeadDim / 32;
        u32 frag_v[kAhead + 1][4];
        auto load_v = [&](int n) { smem_v.template Load<kOther>(frag_v[n % (kAhead + 1)], key, n / kDims, n % kDims); };
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
            load_v(n);
        }
#pragma unroll
        for (int n = 0; n < 2 * kDims; ++n) {
            const int step = n / kDims, dim = n % kDims;
            if (n + kAhead < 2 * kDims) {
                load_v(n + kAhead);
            }
            const u32(&v)[4] = frag_v[n % (kAhead + 1)];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
                for (int t = 0; t < 2; ++t) {
                    mma_m8n8k4_row_row(frag_o[i][4 * dim + 2 * t], frag_o[i][4 * dim + 2 * t + 1], p[i][step][0], p[i][step][1], v[2 * t],
                                       v[2 * t + 1]);
                }
            }
        }
    }
};
