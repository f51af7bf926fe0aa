// The end of a cut: every piece goes to global memory, and the warp that brings a segment's last piece merges it.
#pragma once

#include "decode/pieces.cuh"

// Cut `cut` of a segment: tiles [begin, end) of `count` cuts that are not empty.
struct Cut {
    int begin, end, count;

    template<class Params, class Place>
    DEVICE Cut(const Params& p, const Place& c, int cut, int keys_of_tile)
    {
        if (p.num_splits > 0) {  // that many cuts of equal length
            const int per = (c.tiles + p.num_splits - 1) / p.num_splits;
            begin = min(cut * per, c.tiles);
            end = min(begin + per, c.tiles);
            count = (c.tiles + per - 1) / per;
        }
        else {  // at multiples of -num_splits keys, whatever the batch
            const int per = -p.num_splits / keys_of_tile, first = c.first(), base = first / per;
            begin = min(max((base + cut) * per - first, 0), c.tiles);
            end = min((base + cut + 1) * per - first, c.tiles);
            count = (first + c.tiles + per - 1) / per - base;
        }
    }
};

template<class P, class Params>
DEVICE void merge_cuts(const Params& p, const OutRows& rows, int segment, int count, int lane)
{
    __threadfence();
    u32 arrived = 0;
    __syncwarp();
    if (lane == 0) {
        arrived = atomicAdd(p.partial_count + segment, 1u) + 1;
        __threadfence();
    }
    if (__shfl_sync(kFullWarp, arrived, 0) != (u32)count) {
        return;
    }
    if (lane == 0) {
        p.partial_count[segment] = 0;  // for the next launch
    }
    __threadfence();
    const float* const first = p.partial_o + (i64)segment * p.max_splits * P::kFloats;
    const PieceList pieces{first, first, P::kFloats, count};
    for (int item = lane; item < rows.heads * P::kQuads; item += kWarpSize) {
        const int head = item / P::kQuads, quad = item % P::kQuads;
        add_pieces<P, true>(pieces, 0, 1, head, quad).template Store<P>(p, rows, head, quad);
    }
}
