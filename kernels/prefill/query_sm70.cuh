// The query tile to shared memory, SM70 family: through registers; who reads it waits for a barrier.
#pragma once

#include "core/family_sm70.cuh"
#include "iterator/thread_map.cuh"
#include "prefill/query_tile.cuh"
#include "ptx/memory.cuh"

// Rows past the sequence's end become zeros.
template<class T, int kHeadDim, int kThreads, class SmemLayout, int kRows, class Params>
DEVICE void prefetch_query(const Params& p, const QueryTile<kRows>& tile, u32 smem_q, int thread)
{
    constexpr int kRowChunks = kHeadDim * sizeof(T) / kChunkBytes;
    using Map = RakedThreadMap<kRowChunks, kRows, kThreads>;
    if (!Map::active(Map::offset_s(thread))) {
        return;
    }
    constexpr int kAtOnce = Map::kIterS < 4 ? Map::kIterS : 4;  // loads in flight
    const int chunk = Map::offset_c(thread);
#pragma unroll 1
    for (int i = 0; i < Map::kIterS; i += kAtOnce) {
        u32 v[kAtOnce][4] = {};
        const int row0 = Map::offset_s(thread) + i * Map::kRowsPerIter;
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int row = row0 + k * Map::kRowsPerIter;
            const i64 token = tile.row0 + tile.token(row);
            if (tile.valid(row)) {
                ld_global(v[k], (const T*)p.q + token * p.q_stride + tile.head(row) * kHeadDim + chunk * (kChunkBytes / (int)sizeof(T)));
            }
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            st_shared_v4(smem_q + SmemLayout::offset(row0 + k * Map::kRowsPerIter, chunk), v[k]);
        }
    }
}
