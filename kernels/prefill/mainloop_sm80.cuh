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
        const int first_tile = query.first_key(p) / CTA_S, tiles = (query.keys(p) + CTA_S - 1) / CTA_S - first_tile;
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

        // A warp's slabs hold consecutive tokens, or the same tokens of other heads.
        const int position = query.position(warp_row), slab_step = Impl::kSlabRows < 1 << query.tokens_log2 ? Impl::kSlabRows : 0;
        const Place place{warp_row, position, position + (Impl::kSlabs - 1) * slab_step + Impl::kSlabRows - 1, slab_step, lane};
        const typename Impl::SmemIterQ iter_q{smem_q + warp_row * Impl::kRowBytes, lane};

        const int whole_end = query.common_keys(p) / CTA_S, whole_begin = (query.common_first_key(p) + CTA_S - 1) / CTA_S;
        for (; tile >= last_tile; --tile) {
            const int left = tile - last_tile;
            const u32 slot = source.Next(left);
            if (tile < whole_end && tile >= whole_begin) {
                Step<Impl, false>(p, query, start, frag_l, iter_q, place, slot, tile * CTA_S, [&] {
                    source.EndK(left);
                    source.BeginV(left);
                });
                source.EndV(left);
                continue;
            }
            source.BeginV(left);
#pragma unroll 1
            for (int key = CTA_S - Part::CTA_S; key >= 0; key -= Part::CTA_S) {
                Step<Part, true>(p, query, start, frag_l, iter_q, place, slot + key * Impl::kRowBytes, tile * CTA_S + key, [] {});
            }
            source.EndK(left);
            source.EndV(left);
        }
        sum = Impl::Finish(frag_l, start, lane);
    }

private:
    // Tiles that the diagonal, the window or the sequence's end cuts are computed in two parts, of which one may be empty.
    struct Part: PrefillImpl<arch::Sm80, T, Impl::kHeadDim, Impl::kSlabs, CTA_S / 2> {
        static constexpr bool kAdjusted = Impl::kAdjusted;
    };

    // Where a warp stands: its first row, positions of that and of the last one.
    struct Place {
        int warp_row, position, last, slab_step, lane;
    };

    // The keys of a tile, or of a part of one, from key0 on; V of each lies kTileBytes behind K. `between`: what is done when K is used up, and
    // before V is read.
    template<class Some, bool masked, class Params, class Between>
    DEVICE void Step(const Params& p, const QueryTile<kRows>& query, typename Impl::Start& start, typename Impl::FragRow& frag_l,
                     const typename Impl::SmemIterQ& iter_q,
                     const Place& place, u32 k, int key0, Between&& between)
    {
        // Of what the warp's first row keeps, but for the window.
        const int end = 1 + (p.causal ? place.position : position_of_key(p, query.len - 1)), place0 = position_of_key(p, key0);
        if (masked && place0 >= end + (p.causal ? place.last - place.position : 0)) {
            return;  // no row of this warp keeps a key
        }
        typename Some::FragS frag_s;
        Some::ClearScores(frag_s);
        Some::ComputeQK(frag_s, iter_q, typename Some::SmemIterK{k, place.lane});
        if constexpr (Impl::kAdjusted) {
            adjust_scores<Some>(frag_s, p, query, place.warp_row, key0, place.lane);
        }
        if (masked) {
            const Bounds bounds{place.position - p.window_size + 1 - place0, end - place0, p.causal ? 1 : 0, place.slab_step, p.cp_size};
            Some::Mask(frag_s, bounds, p.window_size, place.lane);
        }
        between();
        Some::MoveReference(frag_s, frag_o, start, frag_l, p.qk_scale);
        Some::ComputePV(frag_o, frag_l, frag_s, typename Some::SmemIterV{k + kTileBytes, place.lane});
    }
};
