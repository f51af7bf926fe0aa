// A tile that the diagonal, the window or the sequence's end cuts: computed in two halves, of which the last one may be empty; or whole where
// scores are adjusted, which is more code than a second half is worth.
#pragma once

#include "prefill/query_tile.cuh"

// Where a warp stands in such a tile. Worked out where it is needed, not kept in registers.
template<class Impl, int kRows>
struct CutTile {
    using Half = typename Impl::template OfKeys<Impl::CTA_S / 2>;
    using FragHalf = typename Half::FragS;
    static constexpr int kKeys = Half::CTA_S;
    static constexpr int kPairs = 2 * Half::kKeySteps;

    int row, position, last;   // the warp's first row, its position and that of the last row
    int slab_step, lane, end;  // behind the last position that the first row keeps

    template<class Params>
    DEVICE CutTile(const Params& p, const QueryTile<kRows>& query, int thread)
        : row(first_query_row<Impl::kWarpRows>(thread / kWarpSize)), position(query.position(row)),
          // a warp's slabs hold consecutive tokens, or the same tokens of other heads
          slab_step(Impl::kSlabRows < 1 << query.tokens_log2 ? Impl::kSlabRows : 0), lane(thread % kWarpSize),
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

    // Scores of Keys' keys, from key0 on: those that their rows do not keep become -infinity.
    template<class Keys, class Params>
    DEVICE void Mask(typename Keys::FragS& frag_s, const Params& p, int key0) const
    {
        const int place0 = position_of_key(p, key0);
        const Bounds bounds{position - p.window_size + 1 - place0, end - place0, p.causal ? 1 : 0, slab_step, p.cp_size};
        Keys::Mask(frag_s, bounds, p.window_size, lane);
    }

    // Scores of the half whose keys begin at key0. False, and no key, where no row of the warp keeps one.
    template<class Params>
    DEVICE bool ComputeQK(FragHalf& half, const Params& p, const typename Impl::SmemIterQ& iter_q, u32 k, int key0) const
    {
        if (!Keeps(p, key0)) {
            Half::FillScores(half, negative_infinity());
            return false;
        }
        Half::ComputeQK(half, iter_q, typename Half::SmemIterK{k, lane});
        Mask<Half>(half, p, key0);
        return true;
    }

    // A half's scores, the first of `from`, to those from pair array kTo on.
    template<int kTo, class To, class From>
    static DEVICE void Copy(To& to, const From& from)
    {
#pragma unroll
        for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < kPairs; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    to[i][kTo + j][e] = from[i][j][e];
                }
            }
        }
    }
};
