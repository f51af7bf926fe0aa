// Rows end: O is normalised, passes through the warp's own rows of the query tile and leaves in 16-byte stores.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "iterator/thread_map.cuh"
#include "prefill/query_tile.cuh"

template<class Parts, class Mainloop, int kRows, class Params>
DEVICE void store_output(const Params& p, const Mainloop& loop, const QueryTile<kRows>& shared, int tile, char* smem_q, int thread)
{
    using Impl = typename Mainloop::Impl;
    using T = typename Impl::T;
    using SmemLayout = typename Impl::SmemLayout;
    using Map = typename Impl::Map;
    const QueryTile<kRows> query = shared;  // not read anew for every row
    const int lane = thread % kWarpSize, warp_row = first_query_row<Impl::kWarpRows>(thread / kWarpSize), own = Impl::own_row(lane);
    const int row = warp_row + own / 2 * Impl::kSlabRows + own % 2 * Map::kRowStep + Map::row(lane);
    const RowEnd end(p, query.head(row), loop.sum.m, loop.sum.l);
    if (p.lse && Impl::owner(lane, own) == lane && query.valid(row)) {
        p.lse[(i64)(query.row0 + query.token(row)) * p.num_heads + query.head(row)] = end.lse;
    }
    const u32 mine = SmemLayout::offset(warp_row + Map::row(lane), Map::chunk(lane)) + Map::byte(lane);
    __syncwarp();  // this warp's readers of its rows of Q are done
    if (p.num_splits > 1) {
        Parts::Save(p, loop.sum, end.scale, tile, smem_q, mine, thread);
    }
    else {
        float scale[Impl::kRows];
#pragma unroll
        for (int n = 0; n < Impl::kRows; ++n) {
            scale[n] = __shfl_sync(kFullWarp, end.scale, Impl::owner(lane, n));
        }
#pragma unroll
        for (int n = 0; n < Impl::kRows; ++n) {
            const int i = n / 2, h = n % 2;
#pragma unroll
            for (int j = 0; j < 2 * Impl::kDimSteps; ++j) {
                const u32 at = SmemLayout::step(mine, i * Impl::kSlabRows + h * Map::kRowStep, Map::chunks(j)) + Map::bytes(j);
                *(u32*)(smem_q + at) = Pair<T>::pack(loop.frag_o[i][j][2 * h] * scale[n], loop.frag_o[i][j][2 * h + 1] * scale[n]);
            }
        }
    }
    __syncwarp();
    using Rows = WarpRowsMap<Impl::kRowChunks, kRows, kRows / Impl::kWarpRows>;
#pragma unroll 1
    for (int part = 0; part < Rows::kParts; ++part) {  // a slab: tokens of one head
        const int first = warp_row + part * Rows::kPartRows, token = query.token(first), rows = query.qlen - token;
        T* const out = (T*)p.out + (i64)(query.row0 + token) * p.out_stride + query.head(first) * Impl::kHeadDim;
        uint4 v[Rows::kIterS];
#pragma unroll
        for (int i = 0; i < Rows::kIterS; ++i) {
            const int n = i % Rows::kPeriod, down = i / Rows::kPeriod * Rows::kPeriodRows;
            v[i] = *(const uint4*)(smem_q + SmemLayout::offset(first + Rows::row(lane, n) + down, Rows::chunk(lane, n)));
        }
        T* to[Rows::kPeriod];
#pragma unroll
        for (int n = 0; n < Rows::kPeriod; ++n) {
            to[n] = out + (i64)Rows::row(lane, n) * p.out_stride + Rows::chunk(lane, n) * (kChunkBytes / (int)sizeof(T));
        }
#pragma unroll
        for (int i = 0; i < Rows::kIterS; ++i) {
            const int n = i % Rows::kPeriod;
            if (Rows::row(lane, n) + i / Rows::kPeriod * Rows::kPeriodRows < rows) {
                *(uint4*)to[n] = v[i];
            }
            to[n] += (i64)Rows::kPeriodRows * p.out_stride;
        }
    }
}
