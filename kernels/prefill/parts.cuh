// A query tile whose keys several CTAs share: each leaves (O, m, l) in global memory as its threads hold them, and the CTA that comes last
// adds the parts up in their order: the same bits in every run.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "prefill/query_tile.cuh"

template<class Mainloop>
struct TileParts {
    using Impl = typename Mainloop::Impl;
    using Map = typename Impl::Map;
    static constexpr int kThreads = Mainloop::kThreads;
    static constexpr int kPairs = 2 * Impl::kDimSteps;  // arrays of a slab
    static constexpr int kQuads = Impl::kSlabs * kPairs;
    static constexpr int kBytes = kThreads * (kQuads * sizeof(float4) + sizeof(RowSum));
    static constexpr int kTogether = kPairs % 8 ? 4 : 8;  // that are on their way at once

    // True for the CTA that must store the tile; its rows' sums then are those of the whole. `last` is shared memory.
    template<class Params>
    static DEVICE bool Share(const Params& p, Mainloop& loop, int tile, int part, bool& last, int thread)
    {
        float4* const mine = Quads(p, tile, part) + thread;
#pragma unroll
        for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < kPairs; ++j) {
                const float (&o)[4] = loop.frag_o[i][j];
                mine[(i * kPairs + j) * kThreads] = make_float4(o[0], o[1], o[2], o[3]);
            }
        }
        Sums(p, tile, part)[thread] = make_float2(loop.sum.m, loop.sum.l);
        __threadfence();
        __syncthreads();
        if (thread == 0) {
            u32* const count = p.partial_count + tile;
            last = atomicAdd(count, 1u) + 1 == (u32)p.num_splits;
            if (last) {
                *count = 0;  // for the next launch
            }
            __threadfence();
        }
        __syncthreads();
        if (last) {
            loop.sum = Add(p, tile, thread);
        }
        return last;
    }

    // Rows of the sum of all parts, multiplied with their owners' `scale`, to shared memory, where the lane's first pair is at `mine`. One loop
    // and not three: ptxas gives what a deeper one uses the registers of the main loop.
    template<class Params>
    static DEVICE void Save(const Params& p, RowSum sum, float scale, int tile, char* smem, u32 mine, int thread)
    {
        float o[kTogether][4] = {};
        int part = 0;
#pragma unroll 1
        for (int quad = 0; quad < kQuads;) {
            const int slab = quad / kPairs;
            AddQuads(o, p, sum, scale, tile, part, slab, quad, thread);
            if (++part == p.num_splits) {
                SaveQuads(o, smem, mine, slab, quad % kPairs);
                part = 0;
                quad += kTogether;
            }
        }
    }

private:
    template<class Params>
    static DEVICE float4* Quads(const Params& p, int tile, int part)
    {
        return (float4*)((char*)p.partial_o + ((i64)tile * p.num_splits + part) * kBytes);
    }

    template<class Params>
    static DEVICE float2* Sums(const Params& p, int tile, int part)
    {
        return (float2*)(Quads(p, tile, part) + kQuads * kThreads);
    }

    template<class Params>
    static DEVICE RowSum Add(const Params& p, int tile, int thread)
    {
        RowSum all{negative_infinity(), 0.f};
#pragma unroll 1
        for (int k = 0; k < p.num_splits; ++k) {
            const float2 part = __ldcg(Sums(p, tile, k) + thread);
            const float top = fmaxf(all.m, part.x);
            all.l = all.l * Weight(all.m, top) + part.y * Weight(part.x, top);
            all.m = top;
        }
        return all;
    }

    static DEVICE float Weight(float m, float top) { return m == top ? 1.f : ex2(m - top); }

    // A part's quads from `quad` on, of slab `slab`, join those in `o`.
    template<class Params>
    static DEVICE void AddQuads(float (&o)[kTogether][4], const Params& p, RowSum sum, float scale, int tile, int part, int slab, int quad,
                                int thread)
    {
        const float4* const quads = Quads(p, tile, part) + quad * kThreads + thread;
        float4 x[kTogether];
#pragma unroll
        for (int n = 0; n < kTogether; ++n) {
            x[n] = __ldcg(quads + n * kThreads);
        }
        float weight[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int owner = Impl::owner(thread, 2 * slab + h);
            const float m = __shfl_sync(kFullWarp, sum.m, owner), f = __shfl_sync(kFullWarp, scale, owner);
            weight[h] = Weight(__ldcg(&Sums(p, tile, part)[owner].x), m) * f;
        }
#pragma unroll
        for (int n = 0; n < kTogether; ++n) {
            o[n][0] += x[n].x * weight[0];
            o[n][1] += x[n].y * weight[0];
            o[n][2] += x[n].z * weight[1];
            o[n][3] += x[n].w * weight[1];
        }
    }

    // They go to shared memory, and are zeros again.
    static DEVICE void SaveQuads(float (&o)[kTogether][4], char* smem, u32 mine, int slab, int pair)
    {
        using T = typename Impl::T;
#pragma unroll
        for (int n = 0; n < kTogether; ++n) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const u32 at = Impl::SmemLayout::step(mine, slab * Impl::kSlabRows + h * Map::kRowStep, Map::chunks(pair + n));
                *(u32*)(smem + at + Map::bytes(pair + n)) = Pair<T>::pack(o[n][2 * h], o[n][2 * h + 1]);
                o[n][2 * h] = o[n][2 * h + 1] = 0.f;
            }
        }
    }
};
