// A decode launch that brings the new token's rows of K and V: the warp that attends to the last tile of a segment writes them first.
#pragma once

#include "copy/quant_row.cuh"

// Whether the warp's part of the segment holds its last tile.
template<class Place>
DEVICE bool ends_segment(const Place& place)
{
    return !place.done() && place.stop == place.tiles;
}

// By one warp, a row of K and a row of V of a KV head; both are loaded before either is stored.
template<class Layout, class Params>
DEVICE void write_new_row(const Params& p, int b, int head, int token, int position, int lane)
{
    using Config = typename Layout::Config;
    using Chunks = const uint4*;
    const Chunks k = (Chunks)((const typename Config::T*)p.k + token * p.k_stride + head * Config::kHeadDim);
    const Chunks v = (Chunks)((const typename Config::T*)p.v + token * p.v_stride + head * Config::kHeadDim);
    const TokenPlace at(p, b, position);
    const Layout layout = Layout::of(p);
    char* const data = at.block + layout.k_data(head, at.ti);
    if constexpr (!Config::kQuantised) {
        static_assert(Config::kRowChunks <= kWarpSize);
        if (lane < Config::kRowChunks) {
            const uint4 chunk[2] = {k[lane], v[lane]};
            ((uint4*)data)[lane] = chunk[0];
            ((uint4*)(data + layout.v_offset))[lane] = chunk[1];
        }
    }
    else {
        using Row = QuantRow<Layout>;
        constexpr int kPasses = Row::kWarpRows > 1 ? 1 : 2;
        char* const param = at.block + layout.k_param(head, at.ti);
        const int mine = lane % Row::kLanes;
        uint4 dims[kPasses];
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            const int row = i * Row::kWarpRows + lane / Row::kLanes;
            dims[i] = row < 2 && mine < Row::kUsedLanes ? (row ? v : k)[mine] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            const int row = i * Row::kWarpRows + lane / Row::kLanes;
            Row::Store(data + (row ? layout.v_offset : 0), (u32*)(param + (row ? layout.v_param_offset : 0)), dims[i],
                       row < 2 && mine < Row::kUsedLanes, mine);
        }
    }
}

// The new rows of every segment that ends in the units [place, end). No other warp reads them in this launch: a segment's last tile is one
// warp's, and where packs of heads share a KV head, append has a launch of its own. This warp's cp.async, which is of the generic proxy as
// the stores are, comes after them.
template<class Mainloop, class Layout, class Params, class Place>
DEVICE void write_new_rows(const Params& p, Place place, int end, int lane)
{
    place.end_at(end);
    if (!ends_segment(place)) {
        return;
    }
#pragma unroll 1
    do {
        write_new_row<Layout>(p, place.b, place.slot, Mainloop::query_row(p, place.b), place.len - 1, lane);
        place.leave(p, end);
    } while (ends_segment(place));
    __threadfence_block();
    __syncwarp();
}
