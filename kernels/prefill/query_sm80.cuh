// The query tile to shared memory, SM80 family: by cp.async, on its way when this returns.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/thread_map.cuh"
#include "prefill/query_tile.cuh"
#include "ptx/cp_async.cuh"

// Each warp sends for its own rows, a slab at a time, which are tokens of one head; those past the sequence's end become zeros.
template<class Impl, int kWarps, int kRows, class Params>
DEVICE void prefetch_query(const Params& p, const QueryTile<kRows>& tile, u32 smem_q, int thread)
{
    using T = typename Impl::T;
    using SmemLayout = typename Impl::SmemLayout;
    using Map = WarpRowsMap<Impl::kRowChunks, kRows, kWarps>;
    static_assert(Map::kPartRows == Impl::kSlabRows);
    const int lane = thread % kWarpSize;
#pragma unroll
    for (int part = 0; part < Map::kParts; ++part) {
        const int first = Map::first_row(thread) + part * Map::kPartRows, token = tile.token(first), rows = tile.qlen - token;
        const T* const src = (const T*)p.q + (i64)(tile.row0 + token) * p.q_stride + tile.head(first) * Impl::kHeadDim;
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            const int n = i % Map::kPeriod, row = Map::row(lane, n), down = i / Map::kPeriod * Map::kPeriodRows;
            const T* const mine = src + (i64)row * p.q_stride + Map::chunk(lane, n) * (kChunkBytes / (int)sizeof(T));
            cp_async_16_zfill(SmemLayout::down(smem_q + SmemLayout::offset(first + row, Map::chunk(lane, n)), down),
                              mine + (i64)down * p.q_stride, row + down < rows);
        }
    }
}
