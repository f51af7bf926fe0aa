// A warp's arithmetic on a tile of keys: S = Q K^T, O += P V by m16n8k16. A warp owns kSlabs slabs of 16 query rows; every fragment of K
// and V serves all of them.
// Lane l holds of a slab rows l/4 and l/4 + 8, of 8 keys (or dims) columns 2*(l%4) and +1.
#pragma once

#include "core/family_sm80.cuh"
#include "core/softmax.cuh"
#include "iterator/iterator.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/mma.cuh"
#include "smem/swizzle.cuh"

template<class T_, int kHeadDim_, int kSlabs_, int CTA_S_>
struct PrefillImpl {
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

    using SmemLayout = LdmatrixSwizzle<kRowChunks>;
    using FragS = float[kSlabs][2 * kKeySteps][4];
    using FragO = float[kSlabs][2 * kDimSteps][4];
    using FragRow = float[kSlabs][2];  // one value for each of a lane's rows

    // Fragments must arrive in the register order that the mma wants: K as B (rows 0-7, chunk 0), (0-7, 1), (8-15, 0), (8-15, 1);
    // Q as A and V as transposed B (rows 0-7, chunk 0), (8-15, 0), (0-7, 1), (8-15, 1).
    struct SmemIterK: BaseSmemIterator<T, SmemLayout> {
        DEVICE SmemIterK(u32 tile, int lane)
            : BaseSmemIterator<T, SmemLayout>(tile + SmemLayout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2))
        {}

        // Keys [16 key, 16 key + 16), dims [16 dim, 16 dim + 16).
        DEVICE void Load(u32 (&d)[4], int key, int dim) const { ldmatrix_x4(d, SmemLayout::step(this->smem_, dim) + key * 16 * kRowBytes); }
    };

    struct SmemIterQ: BaseSmemIterator<T, SmemLayout> {
        DEVICE SmemIterQ(u32 rows, int lane): BaseSmemIterator<T, SmemLayout>(rows + SmemLayout::offset(lane % 16, lane / 16)) {}

        DEVICE void Load(u32 (&d)[4], int slab, int dim) const
        {
            ldmatrix_x4(d, SmemLayout::step(this->smem_, dim) + slab * kSlabRows * kRowBytes);
        }
    };

    struct SmemIterV: BaseSmemIterator<T, SmemLayout> {
        DEVICE SmemIterV(u32 tile, int lane): BaseSmemIterator<T, SmemLayout>(tile + SmemLayout::offset(lane % 16, lane / 16)) {}

        DEVICE void Load(u32 (&d)[4], int key, int dim) const
        {
            ldmatrix_x4_trans(d, SmemLayout::step(this->smem_, dim) + key * 16 * kRowBytes);
        }
    };

    static DEVICE void ComputeQK(FragS& frag_s, const SmemIterQ& smem_q, const SmemIterK& smem_k)
    {
        constexpr int kSteps = kKeySteps * kDimSteps;
        u32 frag_k[kAhead + 1][4], frag_q[2][kSlabs][4];
        auto load_k = [&](int n) { smem_k.Load(frag_k[n % (kAhead + 1)], n % kKeySteps, n / kKeySteps); };
        auto load_q = [&](int dim) {
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                smem_q.Load(frag_q[dim & 1][i], i, dim);
            }
        };
        load_q(0);
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
            load_k(n);
        }
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
            const int dim = n / kKeySteps, key = n % kKeySteps;
            if (n + kAhead < kSteps) {
                load_k(n + kAhead);
            }
            if (key == 0 && dim + 1 < kDimSteps) {
                load_q(dim + 1);
            }
            const u32(&k)[4] = frag_k[n % (kAhead + 1)];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                if (dim == 0) {
                    mma_m16n8k16_zero<T>(frag_s[i][2 * key], frag_q[dim & 1][i], {k[0], k[1]});
                    mma_m16n8k16_zero<T>(frag_s[i][2 * key + 1], frag_q[dim & 1][i], {k[2], k[3]});
                }
                else {
                    mma_m16n8k16<T>(frag_s[i][2 * key], frag_q[dim & 1][i], {k[0], k[1]});
                    mma_m16n8k16<T>(frag_s[i][2 * key + 1], frag_q[dim & 1][i], {k[2], k[3]});
                }
            }
        }
    }

    // Row r of slab i stands d = i * slab_step + r positions after the warp's first row; it keeps the keys [from + d, to + d * step_to) of
    // this tile.
    struct Bounds {
        int from, to, step_to, slab_step;
    };

    static DEVICE void Mask(FragS& frag_s, const Bounds& bounds, int lane)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int down = i * bounds.slab_step + lane / 4 + 8 * h, first = lane % 4 * 2;
                const int from = bounds.from + down - first, to = bounds.to + down * bounds.step_to - first;
#pragma unroll
                for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int key = j * 8 + e;
                        if (key < from || key >= to) {
                            frag_s[i][j][2 * h + e] = negative_infinity();
                        }
                    }
                }
            }
        }
    }

    // Moves the running maximum of the rows (unscaled) where a score outgrew it, and O and l with it.
    static DEVICE void MoveReference(FragS& frag_s, FragO& frag_o, FragRow& frag_m, FragRow& frag_l, float qk_scale)
    {
        float top[kSlabs][2];
        bool outgrown = false;
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float v = fmaxf(frag_s[i][0][2 * h], frag_s[i][0][2 * h + 1]);
#pragma unroll
                for (int j = 1; j < 2 * kKeySteps; ++j) {
                    v = fmaxf(v, fmaxf(frag_s[i][j][2 * h], frag_s[i][j][2 * h + 1]));
                }
                top[i][h] = v;
                outgrown |= (v - frag_m[i][h]) * qk_scale > kLazyLimit;
            }
        }
        if (__any_sync(kFullWarp, outgrown)) {  // rare
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float v = top[i][h];
                    v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, 1));
                    v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, 2));
                    v = fmaxf(v, frag_m[i][h]);
                    const float down = v == negative_infinity() ? 1.f : ex2((frag_m[i][h] - v) * qk_scale);
                    frag_m[i][h] = v;
                    frag_l[i][h] *= down;
#pragma unroll
                    for (int j = 0; j < 2 * kDimSteps; ++j) {
                        frag_o[i][j][2 * h] *= down;
                        frag_o[i][j][2 * h + 1] *= down;
                    }
                }
            }
        }
    }

    // P = 2^((S - m) * qk_scale), O += P V. The exponentials of the next 16 keys stand before the mma of these.
    static DEVICE void ComputePV(FragO& frag_o, FragRow& frag_l, FragS& frag_s, const FragRow& frag_m, const SmemIterV& smem_v,
                                 float qk_scale)
    {
        constexpr int kSteps = kKeySteps * kDimSteps;
        float reference[kSlabs][2];
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                reference[i][h] = frag_m[i][h] == negative_infinity() ? 0.f : frag_m[i][h] * qk_scale;
            }
        }
        u32 frag_v[kAhead + 1][4], frag_p[2][kSlabs][4];
        auto load_v = [&](int n) { smem_v.Load(frag_v[n % (kAhead + 1)], n / kDimSteps, n % kDimSteps); };
        auto exponentials = [&](int key) {
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {  // (8 keys) x (row half)
                    const float (&s)[4] = frag_s[i][2 * key + e / 2];
                    const float x = ex2(fmaf(s[2 * (e & 1)], qk_scale, -reference[i][e & 1]));
                    const float y = ex2(fmaf(s[2 * (e & 1) + 1], qk_scale, -reference[i][e & 1]));
                    frag_l[i][e & 1] += x;
                    frag_l[i][e & 1] += y;
                    frag_p[key & 1][i][e] = Pair<T>::pack(x, y);
                }
            }
        };
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
            load_v(n);
        }
        exponentials(0);
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
            const int key = n / kDimSteps, dim = n % kDimSteps;
            if (n + kAhead < kSteps) {
                load_v(n + kAhead);
            }
            if (dim == 0 && key + 1 < kKeySteps) {
                exponentials(key + 1);
            }
            const u32(&v)[4] = frag_v[n % (kAhead + 1)];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                mma_m16n8k16<T>(frag_o[i][2 * dim], frag_p[key & 1][i], {v[0], v[1]});
                mma_m16n8k16<T>(frag_o[i][2 * dim + 1], frag_p[key & 1][i], {v[2], v[3]});
            }
        }
    }
};
