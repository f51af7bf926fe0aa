// A tile that the diagonal, the window or the sequence's end cuts.
#pragma once

#include "prefill/query_tile.cuh"

// Where a warp stands in such a tile. Worked out where it is needed, not kept in registers.
template<class Impl, int kRows>
struct CutTile {
    int row, position, last;   // the warp's first row, its position and that of the last row
    int slab_step, lane, end;  // behind the last position that the first row keeps

    template<class Params>
    DEVICE CutTile(const Params& p, const QueryTile<kRows>& query, int thread)
        : row(first_query_row<Impl::kWarpRows>(thread / kWarpSize)), position(query.position(row)),
          slab_step(query.slab_step(Impl::kSlabRows)), lane(thread % kWarpSize),
          end(1 + (p.causal ? position : position_of_key(p, query.len - 1)))
    {
        last = position + (Impl::kSlabs - 1) * slab_step + Impl::kSlabRows - 1;
    }

    // Whether a row of the warp may keep one of the keys from key0 on.
    template<class Params>
    DEVICE bool Keeps(const Params& p, int key0) const
    {
        return position_of_key(p, key0) < end + (p.causal ? last - position : 0);
    }

    // Whether a row of the warp does not keep all keys of the tile from key0 on.
    template<class Params>
    DEVICE bool Hides(const Params& p, int key0) const
    {
        return position_of_key(p, key0 + Impl::CTA_S - 1) >= end || (p.window_size && position_of_key(p, key0) <= last - p.window_size);
    }

    // Scores of keys from key0 on: those that their rows do not keep become -infinity.
    template<class Params>
    DEVICE void Mask(typename Impl::FragS& frag_s, const Params& p, int key0) const
    {
        const int place0 = position_of_key(p, key0);
        const Bounds bounds{position - p.window_size + 1 - place0, end - place0, p.causal ? 1 : 0, slab_step, p.cp_size};
        Impl::Mask(frag_s, bounds, p.window_size, lane);
    }
};
