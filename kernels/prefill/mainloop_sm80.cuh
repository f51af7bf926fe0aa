// Prefill's main loop, SM80 family: from the last key tile to the first, K and V of the next tile on their way while this one is computed.
#pragma once

#include "core/family_sm80.cuh"
#include "prefill/adjust.cuh"
#include "prefill/query_sm80.cuh"

template<class Arch, class Impl, class TileSource, int kWarps>
struct PrefillMainloop;

template<class Impl_, class TileSource, int kWarps>
struct PrefillMainloop<arch::Sm80, Impl_, TileSource, kWarps> {
    using Impl = Impl_;
    using T = typename Impl::T;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kRows = kWarps * Impl::kWarpRows;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kRingBytes = TileSource::kBytes;

    typename Impl::FragO frag_o;
    RowSum sum;  // of the lane's own row

    // By one thread, before a barrier.
    static DEVICE void InitBarriers() { TileSource::InitBarriers(); }

    // Part `part` of p.num_splits of the tile's keys.
    template<class Params>
    DEVICE void operator()(const Params& p, const QueryTile<kRows>& query, int part, u32 smem_ring, u32 smem_q, int thread)
    {
        const int lane = thread % kWarpSize, warp_row = first_query_row<Impl::kWarpRows>(thread / kWarpSize);
        const int first_tile = query.first_key / CTA_S, tiles = (query.keys + CTA_S - 1) / CTA_S - first_tile;
        const int per_part = p.num_splits > 1 ? (tiles + p.num_splits - 1) / p.num_splits : tiles;
        int tile = first_tile + tiles - 1 - part * per_part;
        const int last_tile = max(first_tile, tile - per_part + 1);
        typename Impl::FragRow frag_l;
        Impl::Clear(frag_o, frag_l);
        sum = {negative_infinity(), 0.f};
        if (tile < last_tile) {
            return;  // no keys for this part
        }

        typename Impl::Start start;
        TileSource source(p, query.b, query.kv_head, smem_ring, thread);
        source.Find(tile, query.len);  // is looked up while the queries are sent for
        prefetch_query<Impl, kWarps>(p, query, smem_q, thread);
        source.Start(tile - last_tile + 1, query.len);  // the queries arrive with the first tile

        const typename Impl::SmemIterQ iter_q{smem_q + warp_row * Impl::kRowBytes, lane};

        const int whole_end = query.common_keys / CTA_S, whole_begin = (query.common_first_key + CTA_S - 1) / CTA_S;
        for (; tile >= last_tile; --tile) {
            const int left = tile - last_tile;
            const u32 k = source.Next(left);
            const bool whole = tile < whole_end && tile >= whole_begin;
            const int keys = whole ? CTA_S : Keys(p, query, Place(query, opaque(thread)), tile * CTA_S);
            typename Impl::FragS frag_s;
            ComputeQK(frag_s, iter_q, k, keys, lane);
            if constexpr (Impl::kAdjusted) {
                adjust_scores<Impl>(frag_s, p, query, warp_row, tile * CTA_S, lane);
            }
            if (!whole) {
                Mask(frag_s, p, query, Place(query, opaque(thread)), tile * CTA_S);
            }
            source.EndK(left);
            source.BeginV(left);
            Impl::MoveReference(frag_s, frag_o, start, frag_l, p.qk_scale);
            ComputePV(frag_l, frag_s, k + kTileBytes, keys, lane);
            source.EndV(left);
        }
        sum = Impl::Finish(frag_l, start, lane);
    }

private:
    // Of a tile that the diagonal or the sequence's end cuts the first half may be enough.
    using Half = PrefillImpl<arch::Sm80, T, Impl::kHeadDim, Impl::kSlabs, CTA_S / 2>;

    // Where a warp stands: positions of its first row and of the last one. Worked out where it is needed, not kept in registers.
    struct Place {
        int position, last, slab_step, lane;

        DEVICE Place(const QueryTile<kRows>& query, int thread)
            : position(query.position(first_query_row<Impl::kWarpRows>(thread / kWarpSize))),
              // a warp's slabs hold consecutive tokens, or the same tokens of other heads
              slab_step(Impl::kSlabRows < 1 << query.tokens_log2 ? Impl::kSlabRows : 0),
              lane(thread % kWarpSize)
        {
            last = position + (Impl::kSlabs - 1) * slab_step + Impl::kSlabRows - 1;
        }
    };

    // Behind the last position that the warp's first row keeps.
    template<class Params>
    static DEVICE int End(const Params& p, const QueryTile<kRows>& query, const Place& place)
    {
        return 1 + (p.causal ? place.position : position_of_key(p, query.len - 1));
    }

    // Of the keys from key0 on, so many hold all that rows of the warp keep: a tile's, half of them, or none.
    template<class Params>
    static DEVICE int Keys(const Params& p, const QueryTile<kRows>& query, const Place& place, int key0)
    {
        const int end = End(p, query, place) + (p.causal ? place.last - place.position : 0);
        return position_of_key(p, key0 + Half::CTA_S) < end ? CTA_S : position_of_key(p, key0) < end ? Half::CTA_S : 0;
    }

    template<class Params>
    static DEVICE void Mask(typename Impl::FragS& frag_s, const Params& p, const QueryTile<kRows>& query, const Place& place, int key0)
    {
        const int place0 = position_of_key(p, key0);
        const Bounds bounds{place.position - p.window_size + 1 - place0, End(p, query, place) - place0, p.causal ? 1 : 0, place.slab_step, p.cp_size};
        Impl::Mask(frag_s, bounds, p.window_size, place.lane);
    }

    // Scores of keys that are left out are zeros.
    static DEVICE void ComputeQK(typename Impl::FragS& frag_s, const typename Impl::SmemIterQ& iter_q, u32 k, int keys, int lane)
    {
        if (keys == CTA_S) {
            Impl::ComputeQK(frag_s, iter_q, typename Impl::SmemIterK{k, lane});
            return;
        }
        Impl::ClearScores(frag_s);
        if (keys > 0) {
            typename Half::FragS half;
            Half::ComputeQK(half, iter_q, typename Half::SmemIterK{k, lane});
            Copy(frag_s, half);
        }
    }

    DEVICE void ComputePV(typename Impl::FragRow& frag_l, typename Impl::FragS& frag_s, u32 v, int keys, int lane)
    {
        if (keys == CTA_S) {
            Impl::ComputePV(frag_o, frag_l, frag_s, typename Impl::SmemIterV{v, lane});
        }
        else if (keys > 0) {
            typename Half::FragS half;
            Copy(half, frag_s);
            Half::ComputePV(frag_o, frag_l, half, typename Half::SmemIterV{v, lane});
        }
    }

    template<class To, class From>
    static DEVICE void Copy(To& to, const From& from)
    {
#pragma unroll
        for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * Half::kKeySteps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    to[i][j][e] = from[i][j][e];
                }
            }
        }
    }
};
