// The query tile to shared memory, SM80 family: by cp.async, on its way when this returns.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/thread_map.cuh"
#include "prefill/query_tile.cuh"
#include "ptx/cp_async.cuh"

// Rows past the sequence's end become zeros.
template<class T, int kHeadDim, int kThreads, class SmemLayout, int kRows, class Params>
DEVICE void prefetch_query(const Params& p, const QueryTile<kRows>& shared, u32 smem_q, int thread)
{
    const QueryTile<kRows> tile = shared;  // not read anew for every row
    constexpr int kRowChunks = kHeadDim * sizeof(T) / kChunkBytes;
    using Map = RakedThreadMap<kRowChunks, kRows, kThreads>;
    if (!Map::active(Map::offset_s(thread))) {
        return;
    }
    const int chunk = Map::offset_c(thread);
#pragma unroll
    for (int i = 0; i < Map::kIterS; ++i) {
        const int row = Map::offset_s(thread) + i * Map::kRowsPerIter;
        const i64 token = tile.row0 + min(tile.token(row), tile.qlen - 1);
        const T* const src = (const T*)p.q + token * p.q_stride + tile.head(row) * kHeadDim + chunk * (kChunkBytes / (int)sizeof(T));
        cp_async_16_zfill(smem_q + SmemLayout::offset(row, chunk), src, tile.valid(row));
    }
}
