// Rows end: O is normalised, passes through the warp's own rows of the query tile and leaves in 16-byte stores.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "prefill/query_tile.cuh"

template<class Mainloop, int kRows, class Params>
DEVICE void store_output(const Params& p, const Mainloop& loop, const QueryTile<kRows>& query, char* smem_q, int thread)
{
    using Impl = typename Mainloop::Impl;
    using T = typename Impl::T;
    using SmemLayout = typename Impl::SmemLayout;
    using Map = typename Impl::Map;
    const int warp = thread / kWarpSize, lane = thread % kWarpSize, warp_row = warp * Impl::kWarpRows;
    __syncwarp();  // this warp's readers of its rows of Q are done
#pragma unroll
    for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float l = loop.frag_l[i][h];
            l += __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[0]);
            l += __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[1]);
            const int row = warp_row + i * Impl::kSlabRows + h * Map::kRowStep + Map::row(lane);
            const RowEnd end(p, query.head(row), loop.frag_m[i][h] * p.qk_scale, l);
            if (p.lse && Map::key(lane) == 0 && query.valid(row)) {
                p.lse[(i64)(query.row0 + query.token(row)) * p.num_heads + query.head(row)] = end.lse;
            }
#pragma unroll
            for (int j = 0; j < 2 * Impl::kDimSteps; ++j) {
                *(u32*)(smem_q + SmemLayout::offset(row, Map::chunk(lane, j)) + Map::byte(lane, j)) =
                    Pair<T>::pack(loop.frag_o[i][j][2 * h] * end.scale, loop.frag_o[i][j][2 * h + 1] * end.scale);
            }
        }
    }
    __syncwarp();
    for (int i = lane; i < Impl::kWarpRows * Impl::kRowChunks; i += kWarpSize) {
        const int row = warp_row + i / Impl::kRowChunks, chunk = i % Impl::kRowChunks;
        const uint4 v = *(const uint4*)(smem_q + SmemLayout::offset(row, chunk));
        if (query.valid(row)) {
            const i64 token = query.row0 + query.token(row);
            *(uint4*)((T*)p.out + token * p.out_stride + query.head(row) * Impl::kHeadDim + chunk * (kChunkBytes / (int)sizeof(T))) = v;
        }
    }
}
