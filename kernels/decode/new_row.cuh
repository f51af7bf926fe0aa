// A decode launch that brings the new token's rows of K and V: the warp that attends to the last tile of a segment writes them first.
#pragma once

#include "copy/quant_row.cuh"

// Whether the warp's part of the segment holds its last tile.
template<class Place>
DEVICE bool ends_segment(const Place& place)
{
    return !place.done() && place.stop == place.tiles;
}

// By one warp, a row of K and a row of V of a KV head.
template<class Layout, class Params>
DEVICE void write_new_row(const Params& p, int b, int head, int token, int position, int lane)
{
    const TokenPlace at(p, b, position);
    const Layout layout = Layout::of(p);
    if constexpr (Layout::Config::kQuantised) {
        using Rows = QuantRow<Layout>;
#pragma unroll
        for (int first = 0; first < 2; first += Rows::kWarpRows) {
            const int which = first + lane / Rows::kLanes, row = which * p.num_kv_heads + head;
            const bool active = which < 2 && lane % Rows::kLanes < Rows::kUsedLanes;
            Rows::Store(p, layout, at, row, active ? Rows::contiguous(p, token, row) : nullptr, active, lane % Rows::kLanes);
        }
    }
    else {
        using Rows = TokenRows<Layout>;
        constexpr int kRowChunks = Layout::Config::kRowChunks;
#pragma unroll
        for (int i = lane; i < 2 * kRowChunks; i += kWarpSize) {
            const int row = i / kRowChunks * p.num_kv_heads + head, chunk = i % kRowChunks;
            ((uint4*)Rows::data(p, layout, at, row))[chunk] = ((const uint4*)Rows::contiguous(p, token, row))[chunk];
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
