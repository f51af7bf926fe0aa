// A warp's arithmetic on a tile of keys: S = Q K^T, O += P V by m16n8, 16 steps of K at a time. A warp owns kSlabs slabs of 16 query rows;
// every fragment of K and V serves all of them.
#pragma once

#include "core/mma_k16.cuh"
#include "iterator/iterator.cuh"
#include "prefill/softmax.cuh"
#include "ptx/ldmatrix.cuh"
#include "smem/swizzle.cuh"

// Lane l holds of a slab rows l/4 and l/4 + 8, of 8 keys (or dims) columns 2*(l%4) and +1.
struct M16n8Map {
    static constexpr int kRowStep = 8;
    static constexpr int kRowLanes[2] = {1, 2};

    static DEVICE int row(int lane) { return lane / 4; }
    static DEVICE int key(int lane) { return lane % 4 * 2; }
    // Where pair array 0 of O begins in a row, and how far on array j does: 16-byte chunks, and bytes.
    static constexpr int chunk(int) { return 0; }
    static DEVICE int byte(int lane) { return lane % 4 * 4; }
    static constexpr int chunks(int j) { return j; }
    static constexpr int bytes(int) { return 0; }
};

template<class T, class SmemLayout, int kRowBytes>
struct M16n8IterQ: BaseSmemIterator<T, SmemLayout> {
    DEVICE M16n8IterQ(u32 rows, int lane): BaseSmemIterator<T, SmemLayout>(rows + SmemLayout::offset(lane % 16, lane / 16)) {}

    // Rows [16 slab, 16 slab + 16), dims [16 dim, 16 dim + 16).
    DEVICE void Load(u32 (&d)[4], int slab, int dim) const { ldmatrix_x4(d, SmemLayout::step(this->smem_, dim) + slab * 16 * kRowBytes); }
};

template<class Arch, class T_, int kHeadDim_, int kSlabs_, int CTA_S_>
struct PrefillImpl: PrefillSoftmax<T_, M16n8Map, kSlabs_, CTA_S_ / 16, kHeadDim_ / 16> {
    using Base = PrefillSoftmax<T_, M16n8Map, kSlabs_, CTA_S_ / 16, kHeadDim_ / 16>;
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
    using typename Base::FragO;
    using typename Base::FragRow;
    using typename Base::FragS;

    // Fragments must arrive in the register order that the mma wants: K as B (rows 0-7, chunk 0), (0-7, 1), (8-15, 0), (8-15, 1);
    // Q as A and V as transposed B (rows 0-7, chunk 0), (8-15, 0), (0-7, 1), (8-15, 1).
    struct SmemIterK: BaseSmemIterator<T, SmemLayout> {
        DEVICE SmemIterK(u32 tile, int lane)
            : BaseSmemIterator<T, SmemLayout>(tile + SmemLayout::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2))
        {}

        // Keys [16 key, 16 key + 16), dims [16 dim, 16 dim + 16).
        DEVICE void Load(u32 (&d)[4], int key, int dim) const { ldmatrix_x4(d, SmemLayout::step(this->smem_, dim) + key * 16 * kRowBytes); }
    };

    using SmemIterQ = M16n8IterQ<T, SmemLayout, kRowBytes>;

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
        Base::FillScores(frag_s, 0.f);
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
                mma_k16<Arch, T>(frag_s[i][2 * key], frag_q[dim & 1][i], {k[0], k[1]});
                mma_k16<Arch, T>(frag_s[i][2 * key + 1], frag_q[dim & 1][i], {k[2], k[3]});
            }
        }
    }

    // P = 2^S, O += P V, of the first `keys` keys: all, or half of them, and then every lane must be known to say so (`uniform`). The exponentials
    // of the next 16 keys stand between the mma of these.
    static DEVICE void ComputePV(FragO& frag_o, FragRow& frag_l, FragS& frag_s, const SmemIterV& smem_v, int keys = CTA_S)
    {
        constexpr int kSteps = kKeySteps * kDimSteps;
        u32 frag_v[kAhead + 1][4], frag_p[2][kSlabs][4];
        auto load_v = [&](int n) { smem_v.Load(frag_v[n % (kAhead + 1)], n / kDimSteps, n % kDimSteps); };
        constexpr int kUnits = 4 * kSlabs;  // (8 keys) x (row half) of every slab
        auto exponentials = [&](int key, int begin, int end) {
#pragma unroll
            for (int u = begin; u < end; ++u) {
                const int i = u / 4, e = u % 4, h = e & 1;
                frag_p[key & 1][i][e] = Base::Exponentials(frag_s[i][2 * key + e / 2], h, frag_l[i][h]);
            }
        };
#pragma unroll
        for (int n = 0; n < kAhead; ++n) {
            load_v(n);
        }
        exponentials(0, 0, kUnits);
#pragma unroll
        for (int n = 0; n < kSteps; ++n) {
            const int key = n / kDimSteps, dim = n % kDimSteps;
            if (2 * n == kSteps && keys < CTA_S) {
                return;
            }
            if (n + kAhead < kSteps) {
                load_v(n + kAhead);
            }
            if (key + 1 < kKeySteps) {
                exponentials(key + 1, dim * kUnits / kDimSteps, (dim + 1) * kUnits / kDimSteps);
            }
            const u32(&v)[4] = frag_v[n % (kAhead + 1)];
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
                mma_k16<Arch, T>(frag_o[i][2 * dim], frag_p[key & 1][i], {v[0], v[1]});
                mma_k16<Arch, T>(frag_o[i][2 * dim + 1], frag_p[key & 1][i], {v[2], v[3]});
            }
        }
    }
};
