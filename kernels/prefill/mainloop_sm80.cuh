// Prefill's main loop, SM80 family: from the last key tile to the first, K and V of the next tile on their way while this one is computed.
#pragma once

#include "core/family_sm80.cuh"
#include "core/warp.cuh"
#include "prefill/adjust.cuh"
#include "prefill/cut_tile.cuh"
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
    using Tile = if_else<Impl::kAdjusted, MaskedTile<kRows>, QueryTile<kRows>>;

    typename Impl::FragO frag_o;
    RowSum sum;  // of the lane's own row

    // By one thread, before a barrier.
    static DEVICE void InitBarriers() { TileSource::InitBarriers(); }

    // Part `part` of p.num_splits of the tile's keys.
    template<class Params>
    DEVICE void operator()(const Params& p, const Tile& query, int part, u32 smem_ring, u32 smem_q, int thread)
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
            typename Impl::FragS frag_s;
            const int keys = ComputeScores(frag_s, p, query, iter_q, k, tile * CTA_S, whole, opaque(thread));
            source.EndK(left);
            source.BeginV(left);
            if (keys > 0 || !Impl::kAdjusted) {  // plain kernels' tiles have all scores, and most have keys
                Impl::MoveReference(frag_s, frag_o, start, frag_l, p.qk_scale);
            }
            if (keys > 0) {
                Impl::ComputePV(frag_o, frag_l, frag_s, typename Impl::SmemIterV{k + kTileBytes, lane}, Impl::kAdjusted ? CTA_S : keys);
            }
            source.EndV(left);
        }
        sum = Impl::Finish(frag_l, start, lane);
    }

private:
    using Cut = CutTile<Impl, kRows>;

    // Scores of a tile, cut or whole. Returns how many keys, from the first one on, hold all that rows of the warp keep: a tile's, half of them
    // (plain kernels only), or none; adjusted ones have set no scores then.
    template<class Params>
    static DEVICE int ComputeScores(typename Impl::FragS& frag_s, const Params& p, const Tile& query,
                                    const typename Impl::SmemIterQ& iter_q, u32 k, int key0, bool whole, int thread)
    {
        KeptKeys<Impl> kept;
        if constexpr (Impl::kAdjusted) {
            const int id = opaque_id(thread);
            // by a vote: the compiler must know that all lanes take the branch alike, or it writes what they do together twice
            if (!__any_sync(kFullWarp, whole || Cut(p, query, id).Keeps(p, key0))) {
                return 0;
            }
            // before Q K: the mask's bytes take the scores' registers
            if (p.extras.mask && !kept.Find(p, query, first_query_row<Impl::kWarpRows>(id / kWarpSize), key0, id % kWarpSize)) {
                return 0;
            }
        }
        Impl::ComputeQK(frag_s, iter_q, typename Impl::SmemIterK{k, thread % kWarpSize});
        if constexpr (Impl::kAdjusted) {
            const int id = opaque_id(thread);  // no register for lane and row meanwhile
            adjust_scores<Impl>(frag_s, p, query, kept, first_query_row<Impl::kWarpRows>(id / kWarpSize), key0, id % kWarpSize);
        }
        if (whole) {
            return CTA_S;
        }
        const Cut cut(p, query, opaque(thread));  // no register for it meanwhile
        cut.Mask(frag_s, p, key0);
        if constexpr (Impl::kAdjusted) {
            return CTA_S;  // a branch in P V would cost registers that it lacks
        }
        return uniform(cut.Keeps(p, key0 + CTA_S / 2) ? CTA_S : cut.Keeps(p, key0) ? CTA_S / 2 : 0);
    }
};
