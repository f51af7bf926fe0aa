// Decode's main loop, SM80 family: a warp walks its range of the flat list through its own ring of cp.async tiles; warps never wait for
// each other. Eager ones send for a tile before they wait for the one before it: twice the bytes on their way, from which int8 did not gain.
#pragma once

#include "core/family_sm80.cuh"
#include "decode/mainloop.cuh"
#include "iterator/gmem_sm80.cuh"

template<class Impl_, class CacheIterFactory, int kStages, int kWarps, bool kCompact>
struct DecodeMainloop<arch::Sm80, Impl_, CacheIterFactory, kStages, kWarps, kCompact>: DecodeQueries<Impl_> {
    using Impl = Impl_;
    using T = typename Impl::T;
    using DecodeQueries<Impl>::query_of;
    using DecodeQueries<Impl>::PrefetchQ;
    static constexpr int CTA_S = Impl::CTA_S, kStepKeys = Impl::kStepKeys, kSteps = CTA_S / kStepKeys;
    static constexpr int kSlotBytes = Impl::kSlotBytes;

    using CacheIter = typename CacheIterFactory::Iterator;
    using GmemIterK = typename Impl::template GmemIterK<Sm80WarpIterators>;
    using GmemIterV = typename Impl::template GmemIterV<Sm80WarpIterators>;

    using State = typename Impl::Softmax::State;

    // Of the warp, in shared memory: the segment that begins with the warp's tile i, as the tile to load found it. The tile to compute comes there
    // a few tiles later, behind a __syncwarp, and does not look for it again; LoadQ's __syncwarps then stand before the place is written anew.
    template<class Place>
    static DEVICE typename Place::Segment& segment_of(u32 i)
    {
        __shared__ typename Place::Segment segments[kWarps][kStages];
        return segments[opaque_id((int)threadIdx.x) / kWarpSize][i % kStages];
    }

    template<bool joined>
    static DEVICE void Copy(const GmemIterK& gmem_k, const GmemIterV& gmem_v, const CacheIter& cache, int lane, u32 slot, u64 policy)
    {
        gmem_k.template Prefetch<joined>(cache, lane, slot, policy);
        gmem_v.template Prefetch<joined>(cache, lane, slot, policy);
    }

    // Walks the units [place, end) and calls finish(state, place, first tile of the piece) where a piece, a segment or the range ends; place.tile
    // is then the end of the piece.
    template<class Params, class Place, class Finish>
    DEVICE void operator()(const Params& p, Place place, int end, u32 smem_ring, u32 smem_q, int lane_id, Finish&& finish) const
    {
        GmemIterK gmem_k;
        GmemIterV gmem_v;
        Impl::SetSmem(gmem_k, gmem_v, smem_ring);

        // Of tiles, to count from. Known to be the same in every lane, it would make the assembler of NVRTC 13.0 put a tile's place into the
        // uniform register that cp.async needs for its policy.
        const u32 zero = smem_ring >> 31;
        place.begin(p, end);
        place.unify();
        typename Place::Ahead ahead = place;  // the tile to load
        CacheIter cache = CacheIterFactory::Create(p, ahead.b, Pack(p, ahead.slot).kv_head);
        cache.SetTile(ahead.first() + ahead.tile, ahead.len);
        // Copies tile i into its slot, then looks one tile further, so that the block index is there when it is needed.
        auto prefetch = [&](u32 i, bool joins) {
            const int lane = Impl::kFewRegisters ? opaque_id(lane_id) : lane_id;
            const u32 slot = i % kStages * kSlotBytes;
            if (CacheIter::kParts > 1 && joins && cache.Joined() && !ahead.last()) {  // most tiles: few branches
                Copy<true>(gmem_k, gmem_v, cache, lane, slot, p.l2_policy);
                ++ahead.tile;
                cache.SetTile(ahead.first() + ahead.tile, ahead.len);
            }
            else if (!ahead.done()) {
                if (joins) {
                    cache.Part();
                }
                Copy<false>(gmem_k, gmem_v, cache, lane, slot, p.l2_policy);
                DecodeQueries<Impl>::template LookAhead<CacheIterFactory>(p, ahead, cache, end, lane, [&]() {
                    if (lane == 0) {
                        segment_of<Place>(i + 1) = ahead.entered_segment();
                    }
                });
            }
            cp_async_commit_group();
        };
        u32 sent = zero;  // tiles; the ring is filled here or, compact, by the first turn of the loop, which has read the queries then
        if constexpr (!kCompact) {
#pragma unroll 1
            for (; sent < kStages - 1; ++sent) {
                cache.Part();  // one copy of the code less: what copies tiles of two parts copies joined ones, too
                prefetch(sent, false);
            }
        }
        PrefetchQ(p, place, lane_id);

        State state;
        typename Impl::Query query;
        for (u32 i = zero; !place.done(); place.leave(segment_of<Place>(i)), place.unify()) {
            if (place.entered()) {
                int heads;
                const T* const q = query_of(p, place, heads);
                Impl::LoadQ(query, smem_q, q, heads, p, lane_id / 4, lane_id % 4);
            }
            state.Clear();
            place.enter(p);
            const int first = place.tile;
            do {
                const int lane = Impl::kFewRegisters ? opaque_id(lane_id) : lane_id, g = lane / 4, t = lane % 4;
                do {
                    if (Impl::kEager) {
                        prefetch(sent, true);
                    }
                    cp_async_wait_group<kStages - (Impl::kEager ? 1 : 2)>();
                    __syncwarp();
                    if (!Impl::kEager) {
                        prefetch(sent, true);
                    }
                } while (++sent < kStages && kCompact);

                const int from = place.from(), to = place.to();
                const u32 slot = smem_ring + i % kStages * kSlotBytes;
                bool fresh = place.tile == first;
                // a tile is computed in steps, from the first to the last that has keys: one without any would have no largest score
                int key = kSteps > 1 ? (u32)max(from, 0) / kStepKeys * kStepKeys : 0;
#pragma unroll 1
                do {
                    typename Impl::FragS frag_s;
                    typename Impl::FragP frag_p;
                    Impl::ComputeQK(frag_s, query, smem_q, slot, key, g, t);
                    Impl::ComputeP(frag_p, frag_s, state, query, smem_q, slot, key, p, place, from - key, to - key, fresh, g, t);
                    Impl::ComputePV(state, frag_p, smem_q, slot, key, from - key, to - key, g, t);
                    fresh = false;
                    key += kStepKeys;
                } while (key < CTA_S && key < to);
                ++i, ++place.tile;
                if (Impl::kEager) {
                    __syncwarp();  // the tile is used up; with none left, the ring may become the piece's place
                }
            } while (!place.paused());
            Impl::Finish(state);
            if (!Impl::kEager) {
                __syncwarp();  // the ring may become the piece's place
            }
            finish(state, place, first);
        }
    }
};
