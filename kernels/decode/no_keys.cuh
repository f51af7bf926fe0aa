// Under context parallelism a query may have all of its keys on other ranks: no tile of the list is its, and its rows are written here.
#pragma once

#include "core/context.cuh"
#include "core/softmax.cuh"

// Out 0, and in lse nothing, or the sink alone.
template<class Place, class Mainloop, class Params>
DEVICE void store_rows_without_keys(const Params& p, int thread_id, int threads)
{
    if (p.cp_size <= 1) {
        return;
    }
    const int thread = opaque_id(thread_id);  // nothing of this is worth a register of the main loop
    using Impl = typename Mainloop::Impl;
    constexpr int kChunks = Impl::kHeadDim * (int)sizeof(typename Impl::T) / kChunkBytes;  // of a row
#pragma unroll 1
    for (int b = blockIdx.x; b < p.batch_size; b += gridDim.x) {
        int len, low;
        if (Place::any_keys(p, b, len, low) || !Place::takes(p, b)) {
            continue;
        }
        const i64 row = Mainloop::query_row(p, b);
        uint4* const out = (uint4*)((typename Impl::T*)p.out + row * p.out_stride);
#pragma unroll 1
        for (int i = thread; i < p.num_heads * kChunks; i += threads) {
            const int head = i / kChunks;
            out[i] = make_uint4(0, 0, 0, 0);
            if (p.lse && i == head * kChunks) {
                p.lse[row * p.num_heads + head] = RowEnd(p, head, negative_infinity(), 0.f).lse;
            }
        }
    }
}
