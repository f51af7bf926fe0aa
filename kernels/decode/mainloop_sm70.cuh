// Decode's main loop, SM70 family: global -> registers -> shared memory, one slot a warp. While the K tile is computed, V's loads are in flight;
// while softmax and V are, the next K's. Warps never wait for each other.
#pragma once

#include "core/family_sm70.cuh"
#include "decode/mainloop.cuh"
#include "iterator/gmem_warp_sm70.cuh"

template<class Impl_, class CacheIterFactory, int kStages, int kWarps>
struct DecodeMainloop<arch::Sm70, Impl_, CacheIterFactory, kStages, kWarps>: DecodeQueries<Impl_> {
    using Impl = Impl_;
    using T = typename Impl::T;
    using DecodeQueries<Impl>::query_of;
    using DecodeQueries<Impl>::PrefetchQ;
    static constexpr int CTA_S = Impl::CTA_S;
    static_assert(kStages == 1, "the next tile waits in registers");

    using CacheIter = typename CacheIterFactory::Iterator;
    using GmemIterK = typename Impl::template GmemIterK<Sm70WarpIterators>;
    using GmemIterV = typename Impl::template GmemIterV<Sm70WarpIterators>;
    using State = typename Impl::State;
    // Whether a block's index is looked up before V has arrived: not where V's later portions need the block that it stands in.
    static constexpr bool kAhead = GmemIterV::portions() == 1;

    // A tile's first portion is in flight while something else is computed; the others, where there are any, follow one by one.
    template<class Gmem>
    static DEVICE void Load(const Gmem& gmem, const CacheIter& cache, typename Gmem::Fragment& frag, int lane, int portion)
    {
        if (cache.Joined()) {
            gmem.template Load<true>(cache, frag, lane, portion);
        }
        else {
            gmem.template Load<false>(cache, frag, lane, portion);
        }
    }

    template<class Gmem>
    static DEVICE void Save(const Gmem& gmem, const CacheIter& cache, typename Gmem::Fragment& frag, int lane)
    {
        gmem.Save(frag, lane, 0);
#pragma unroll
        for (int portion = 1; portion < Gmem::portions(); ++portion) {
            Load(gmem, cache, frag, lane, portion);
            gmem.Save(frag, lane, portion);
        }
        __syncwarp();
    }

    // Walks the units [place, end) and calls finish(state, place, first tile of the piece) where a piece, a segment or the range ends; place.tile
    // is then the end of the piece.
    template<class Params, class Place, class Finish>
    DEVICE void operator()(const Params& p, Place place, int end, u32 smem_slot, u32 smem_q, int lane_id, Finish&& finish) const
    {
        GmemIterK gmem_k;
        GmemIterV gmem_v;
        Impl::SetSmem(gmem_k, gmem_v, smem_slot);

        place.begin(p, end);
        typename Place::Ahead ahead = place;  // the tile to load
        PrefetchQ(p, ahead, lane_id);
        CacheIter cache = CacheIterFactory::Create(p, ahead.b, Pack(p, ahead.slot).kv_head);
        cache.SetTile(ahead.first() + ahead.tile, ahead.len);
        typename GmemIterK::Fragment frag_k;
        if (!ahead.done()) {
            Load(gmem_k, cache, frag_k, lane_id, 0);
            Save(gmem_k, cache, frag_k, lane_id);
        }

        State state;
        typename Impl::Query query;
        for (; !place.done(); place.leave(p, end)) {  // no register for what the tile to load knows of the next segment
            if (place.entered()) {
                int heads;
                const T* const q = query_of(p, place, heads);
                const int lane = opaque_id(lane_id);
                Impl::LoadQ(query, smem_q, q, heads, p, lane / 4, lane % 4);
            }
            state.Clear();
            place.enter(p);
            const int first = place.tile;
            do {
                const int lane = Impl::kFewRegisters ? opaque_id(lane_id) : lane_id, g = lane / 4, t = lane % 4;
                typename GmemIterV::Fragment frag_v;
                Load(gmem_v, cache, frag_v, lane, 0);
                if constexpr (kAhead) {
                    DecodeQueries<Impl>::template LookAhead<CacheIterFactory>(p, ahead, cache, end, lane, []() {});
                }
                typename Impl::FragS frag_s;
                typename Impl::FragP frag_p;
                Impl::ComputeQK(frag_s, query, smem_q, smem_slot, 0, g, t);
                __syncwarp();  // V may stand where K stood
                Save(gmem_v, cache, frag_v, lane);
                if constexpr (!kAhead) {
                    DecodeQueries<Impl>::template LookAhead<CacheIterFactory>(p, ahead, cache, end, lane, []() {});
                }
                if (!ahead.done()) {
                    Load(gmem_k, cache, frag_k, lane, 0);
                }
                const int from = place.from(), to = place.to();
                Impl::ComputeP(frag_p, frag_s, state, query, smem_q, smem_slot, 0, p, place, from, to, place.tile == first, g, t);
                Impl::ComputePV(state, frag_p, smem_q, smem_slot, 0, from, to, g, t);
                __syncwarp();  // K may stand where V stood; with no tile left, the slot may become the piece's place
                if (!ahead.done()) {
                    Save(gmem_k, cache, frag_k, lane);
                }
                ++place.tile;
            } while (!place.paused());
            Impl::Finish(state);
            finish(state, place, first);
        }
    }
};
