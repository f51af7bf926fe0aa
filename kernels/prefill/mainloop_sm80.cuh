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
    typename Impl::FragRow frag_m, frag_l;

    DEVICE void Clear() { Impl::Clear(frag_o, frag_m, frag_l); }

    // Part `part` of p.num_splits of the tile's keys. Q is on its way to smem_q, uncommitted: it arrives with the first tile.
    template<class Params>
    DEVICE void operator()(const Params& p, const QueryTile<kRows>& query, int part, u32 smem_ring, u32 smem_q, int thread)
    {
        const int warp = thread / kWarpSize, lane = thread % kWarpSize, warp_row = warp * Impl::kWarpRows;
        const int first_tile = query.first_key(p) / CTA_S, tiles = (query.keys(p) + CTA_S - 1) / CTA_S - first_tile;
        const int per_part = (tiles + p.num_splits - 1) / p.num_splits;
        int tile = first_tile + tiles - 1 - part * per_part;
        const int last_tile = max(first_tile, tile - per_part + 1);
        Clear();
        if (tile < last_tile) {  // no keys for this part
            cp_async_commit_group();
            cp_async_wait_group<0>();
            __syncthreads();  // nothing of Q arrives any more in what becomes the place of O
            return;
        }

        TileSource source(p, query.b, query.kv_head, smem_ring, thread);
        source.Start(tile, query.len);
        cp_async_commit_group();

        // A warp's slabs hold consecutive tokens, or the same tokens of other heads.
        const int position = query.position(warp_row), slab_step = Impl::kSlabRows < 1 << query.tokens_log2 ? Impl::kSlabRows : 0;
        const typename Impl::SmemIterQ iter_q{smem_q + warp_row * Impl::kRowBytes, lane};
        for (; tile >= last_tile; --tile) {
            const u32 slot = source.Next(tile > last_tile, query.len);
            const int key0 = tile * CTA_S, place0 = position_of_key(p, key0);
            const int last = position + (Impl::kSlabs - 1) * slab_step + Impl::kSlabRows - 1;  // position of the warp's last row
            if (!p.causal || place0 <= last) {                                                 // else no row of this warp keeps a key
                typename Impl::FragS frag_s;
                Impl::ComputeQK(frag_s, iter_q, typename Impl::SmemIterK{slot, lane});
                if constexpr (Impl::kAdjusted) {
                    adjust_scores<Impl>(frag_s, p, query, warp_row, key0, lane);
                }
                // of what the warp's first row keeps, but for the window
                const int end = 1 + (p.causal ? position : position_of_key(p, query.len - 1));
                if (position_of_key(p, key0 + CTA_S - 1) >= end || (p.window_size && place0 <= last - p.window_size)) {
                    typename Impl::Bounds bounds;
                    bounds.to = end - place0;
                    bounds.step_to = p.causal ? 1 : 0;
                    bounds.from = p.window_size ? position - p.window_size + 1 - place0 : -1 << 30;
                    bounds.slab_step = slab_step;
                    bounds.key_step = p.cp_size;
                    Impl::Mask(frag_s, bounds, lane);
                }
                Impl::MoveReference(frag_s, frag_o, frag_m, frag_l, p.qk_scale);
                Impl::ComputePV(frag_o, frag_l, frag_s, frag_m, typename Impl::SmemIterV{slot + kTileBytes, lane}, p.qk_scale);
            }
        }
    }
};
