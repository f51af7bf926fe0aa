// A decode launch that brings the new token's rows of K and V: the warp that attends to the last tile of a segment writes them first.
#pragma once

#include "copy/quant_row.cuh"
#include "ptx/memory.cuh"

// Whether the warp's part of the segment holds its last tile.
template<class Place>
DEVICE bool ends_segment(const Place& place)
{
    return !place.done() && place.stop == place.tiles;
}

// Where a token's row of K and of V of a KV head comes from and goes to.
template<class Layout>
struct NewRow {
    using Config = typename Layout::Config;
    static constexpr int kChunks = Config::kHeadDim * (int)sizeof(typename Config::T) / kChunkBytes;  // of a row that comes
    static_assert(kChunks <= kWarpSize);
    const uint4 *k, *v;
    int b, head, position;

    template<class Params>
    DEVICE NewRow(const Params& p, int b, int head, int token, int position): b(b), head(head), position(position)
    {
        k = (const uint4*)((const typename Config::T*)p.k + token * p.k_stride + head * Config::kHeadDim);
        v = (const uint4*)((const typename Config::T*)p.v + token * p.v_stride + head * Config::kHeadDim);
    }

    template<class Params>
    DEVICE void Prefetch(const Params& p, int lane) const
    {
        if (lane < kChunks) {
            prefetch_l1(k + lane);
            prefetch_l1(v + lane);
        }
        prefetch_l1(p.block_table + (i64)b * p.max_blocks + (position >> p.block_len_log2));
    }

    // By one warp; all is loaded before anything is stored.
    template<class Params>
    DEVICE void Write(const Params& p, int lane) const
    {
        const TokenPlace at(p, b, position);
        const Layout layout = Layout::of(p);
        char* const data = at.block + layout.k_data(head, at.ti);
        if constexpr (Config::kQuantised) {
            WriteCodes(layout, data, at.block + layout.k_param(head, at.ti), lane);
        }
        else if (lane < kChunks) {
            const uint4 chunk[2] = {k[lane], v[lane]};
            ((uint4*)data)[lane] = chunk[0];
            ((uint4*)(data + layout.v_offset))[lane] = chunk[1];
        }
    }

private:
    DEVICE void WriteCodes(const Layout& layout, char* data, char* param, int lane) const
    {
        using Row = QuantRow<Layout>;
        constexpr int kPasses = Row::kWarpRows > 1 ? 1 : 2;
        const int mine = lane % Row::kLanes;
        uint4 dims[kPasses];
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
            const int is_v = i * Row::kWarpRows + lane / Row::kLanes;
            dims[i] = is_v < 2 && mine < kChunks ? (is_v ? v : k)[mine] : make_uint4(0, 0, 0, 0);
        }
#pragma unroll 1
        for (int i = 0; i < kPasses; ++i) {
            const int is_v = i * Row::kWarpRows + lane / Row::kLanes;
            Row::Store(data + (is_v ? layout.v_offset : 0), (u32*)(param + (is_v ? layout.v_param_offset : 0)),
                       i ? dims[kPasses - 1] : dims[0], is_v < 2 && mine < kChunks, mine);
        }
    }
};

// The new rows of every segment that ends in the units [place, end). No other warp reads them in this launch: a segment's last tile is one
// warp's, and where packs of heads share a KV head, append has a launch of its own. This warp's cp.async, which is of the generic proxy as
// the stores are, comes after them.
template<class Mainloop, class Layout, class Params, class Place>
DEVICE void write_new_rows(const Params& p, Place place, int end, int lane)
{
    auto row_of = [&](const Place& at) { return NewRow<Layout>(p, at.b, at.slot, Mainloop::query_row(p, at.b), at.len - 1); };
    place.end_at(p, end);
    if (!ends_segment(place)) {
        return;
    }
    bool writes = false;  // first the rows of all of them are sent for, by the same code
    Place at = place;
#pragma unroll 1
    for (;;) {
        const auto row = row_of(at);
        if (writes) {
            row.Write(p, lane);
        }
        else {
            row.Prefetch(p, lane);
        }
        at.leave(p, end);
        if (!ends_segment(at)) {
            if (writes) {
                break;
            }
            writes = true;
            at = place;
        }
    }
    __threadfence_block();
    __syncwarp();
}
