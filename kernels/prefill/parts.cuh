// A query tile whose keys several CTAs share: each leaves (O, m, l) in global memory as its threads hold them, and the CTA that comes last
// adds the parts up in their order: the same bits in every run.
#pragma once

#include "core/softmax.cuh"
#include "ptx/gpu_scope.cuh"

template<class Mainloop>
struct TileParts {
    using Impl = typename Mainloop::Impl;
    static constexpr int kThreads = Mainloop::kThreads;
    static constexpr int kRowFloats = Impl::kSlabs * 2;  // rows of a thread
    static constexpr int kValues = Impl::kSlabs * 2 * Impl::kDimSteps * 4;
    static constexpr int kBytes = kThreads * (kValues + 2 * kRowFloats) * 4;

    // True for the CTA that must store the tile; its `loop` then holds the whole. `last` is shared memory.
    template<class Params>
    static DEVICE bool Merge(const Params& p, Mainloop& loop, int tile, int part, bool& last, int thread)
    {
        float* const pieces = p.partial_o + (i64)tile * p.num_splits * (kBytes / 4) + thread;
        Visit(loop, [piece = pieces + (i64)part * (kBytes / 4)](float& x, int i) { piece[i * kThreads] = x; });
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
        if (!last) {
            return false;
        }
        loop.Clear();
#pragma unroll 1
        for (int k = 0; k < p.num_splits; ++k) {
            Add(loop, pieces + (i64)k * (kBytes / 4));
        }
        return true;
    }

private:
    // Every value of a thread with its index in a piece: m and l of its rows, then O.
    template<class Visitor>
    static DEVICE void Visit(Mainloop& loop, Visitor&& visit)
    {
#pragma unroll
        for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                visit(loop.frag_m[i][h], i * 2 + h);
                visit(loop.frag_l[i][h], kRowFloats + i * 2 + h);
            }
#pragma unroll
            for (int j = 0; j < 2 * Impl::kDimSteps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    visit(loop.frag_o[i][j][e], 2 * kRowFloats + (i * 2 * Impl::kDimSteps + j) * 4 + e);
                }
            }
        }
    }

    static DEVICE void Add(Mainloop& loop, const float* piece)
    {
        float mine[Impl::kSlabs][2], theirs[Impl::kSlabs][2];
#pragma unroll
        for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float m = __ldcg(piece + (i * 2 + h) * kThreads), top = fmaxf(loop.frag_m[i][h], m);
                mine[i][h] = loop.frag_m[i][h] == top ? 1.f : ex2(loop.frag_m[i][h] - top);
                theirs[i][h] = m == top ? 1.f : ex2(m - top);
                loop.frag_m[i][h] = top;
                loop.frag_l[i][h] = loop.frag_l[i][h] * mine[i][h] + __ldcg(piece + (kRowFloats + i * 2 + h) * kThreads) * theirs[i][h];
            }
#pragma unroll
            for (int j = 0; j < 2 * Impl::kDimSteps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float& o = loop.frag_o[i][j][e];
                    o = o * mine[i][e / 2] +
                        __ldcg(piece + (2 * kRowFloats + (i * 2 * Impl::kDimSteps + j) * 4 + e) * kThreads) * theirs[i][e / 2];
                }
            }
        }
    }
};
