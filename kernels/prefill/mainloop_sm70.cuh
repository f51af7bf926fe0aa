// Prefill's main loop, SM70 family: from the last key tile to the first, in three phases: tiles that the sequence's end or the diagonal
// cuts, whole ones, and those that the window cuts. V of a tile is on its way during Q K^T, K of the next one during softmax and P V.
#pragma once

#include "core/family_sm70.cuh"
#include "prefill/adjust.cuh"
#include "prefill/cut_tile.cuh"
#include "prefill/query_sm70.cuh"

template<class Arch, class Impl, class TileSource, int kWarps>
struct PrefillMainloop;

template<class Impl_, class TileSource, int kWarps>
struct PrefillMainloop<arch::Sm70, Impl_, TileSource, kWarps> {
    using Impl = Impl_;
    using T = typename Impl::T;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kRows = kWarps * Impl::kWarpRows;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kRingBytes = TileSource::kBytes;
    using Tile = if_else<Impl::kAdjusted, MaskedTile<kRows>, QueryTile<kRows>>;
    using SmemIterQ = typename Impl::SmemIterQ;

    typename Impl::FragO frag_o;
    RowSum sum;  // of the lane's own row

    static DEVICE void InitBarriers() {}

    // Part `part` of p.num_splits of the tile's keys.
    template<class Params>
    DEVICE void operator()(const Params& p, const Tile& query, int part, u32 smem_ring, u32 smem_q, int thread)
    {
        const int lane = thread % kWarpSize, warp_row = first_query_row<Impl::kWarpRows>(thread / kWarpSize);
        const int first_tile = query.first_key / CTA_S, tiles = (query.keys + CTA_S - 1) / CTA_S - first_tile;
        const int per_part = (tiles + p.num_splits - 1) / p.num_splits;
        int tile = first_tile + tiles - 1 - part * per_part;
        const int last_tile = max(first_tile, tile - per_part + 1);
        typename Impl::FragRow frag_l;
        Impl::Clear(frag_o, frag_l);
        sum = {negative_infinity(), 0.f};
        if (tile < last_tile) {
            return;  // no keys for this part
        }
        prefetch_query<T, Impl::kHeadDim, kThreads, typename Impl::SmemLayout>(p, query, smem_q,
                                                                               thread);  // is there after the next barrier

        typename Impl::Start start;
        TileSource source(p, query.b, query.kv_head, smem_ring, thread);
        source.Start(tile, query.len);

        const SmemIterQ iter_q{smem_q + warp_row * Impl::kRowBytes, lane};

        int until = Impl::kAdjusted ? last_tile : max(last_tile, query.common_keys / CTA_S);  // adjusting is too much code to have it twice
#pragma unroll 1
        for (bool front = false;; front = true, until = last_tile) {  // one body serves the cut tiles of both ends
            for (; tile >= until; --tile) {
                Turn<true>(p, query, source, start, frag_l, iter_q, thread, tile, tile > last_tile);
            }
            if (front || Impl::kAdjusted) {
                break;
            }
            const int whole_last = max(last_tile, (query.common_first_key + CTA_S - 1) / CTA_S);  // here: no register for it before
            for (; tile >= whole_last; --tile) {
                Turn<false>(p, query, source, start, frag_l, iter_q, thread, tile, tile > last_tile);
            }
        }
        sum = Impl::Finish(frag_l, start, lane);
    }

private:
    using Cut = CutTile<Impl, kRows>;

    // One tile. `masked`: the sequence's end, the diagonal or the window may cut it; `more`: another one follows.
    template<bool masked, class Params>
    DEVICE void Turn(const Params& p, const Tile& query, TileSource& source, typename Impl::Start& start, typename Impl::FragRow& frag_l,
                     const SmemIterQ& iter_q, int thread_id, int tile, bool more)
    {
        const int thread = opaque(thread_id), lane = thread % kWarpSize, key0 = tile * CTA_S;
        const Cut cut(p, query, thread);
        bool some = !masked || cut.Keeps(p, key0);
        KeptKeys<Impl> kept;
        if constexpr (Impl::kAdjusted) {
            some = __any_sync(kFullWarp, some);  // so that the compiler knows that all lanes say so
            if (some && p.extras.mask) {
                some = kept.Find(p, query, cut.row, key0, lane);
            }
        }
        typename Impl::FragS frag_s;
        source.template LoadV<masked>(query.len);
        __syncthreads();  // K is there, and the last V is used up
        if (some) {
            Impl::ComputeQK(frag_s, iter_q, typename Impl::SmemIterK{source.smem_k_, lane});
        }
        if (TileSource::kTurns) {
            __syncthreads();  // K is used up
        }
        source.SaveV();
        if (more) {
            source.LoadK();
        }
        if (some) {
            if constexpr (Impl::kAdjusted) {
                adjust_scores<Impl>(frag_s, p, query, kept, cut.row, key0, lane);
            }
            if (masked && cut.Hides(p, key0)) {
                cut.Mask(frag_s, p, key0);
            }
            Impl::MoveReference(frag_s, frag_o, start, frag_l, p.qk_scale);
        }
        __syncthreads();  // V is there, and K is used up
        if (some) {
            Impl::ComputePV(frag_o, frag_l, frag_s, typename Impl::SmemIterV{source.smem_v_, lane});
        }
        if (TileSource::kTurns) {
            __syncthreads();  // V is used up
        }
        if (more) {
            source.SaveK();
        }
    }
};
