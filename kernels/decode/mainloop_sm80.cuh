// Decode's main loop, SM80 family: a warp walks its range of the flat list through its own ring of cp.async tiles; warps never wait for
// each other. Eager ones send for a tile before they wait for the one before it: twice the bytes on their way, from which int8 did not gain.
#pragma once

#include "core/family_sm80.cuh"
#include "decode/mainloop.cuh"
#include "iterator/gmem_sm80.cuh"
#include "ptx/launch.cuh"

template<class Impl_, class CacheIterFactory, int kStages, int kWarps>
struct DecodeMainloop<arch::Sm80, Impl_, CacheIterFactory, kStages, kWarps>: DecodeQueries<Impl_> {
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

    // Tiles lie in places one after the other, and around. Places are addresses, which differ from warp to warp: from the number of a place, which
    // every lane has alike, the assembler would make a uniform register, and cp.async cannot take one beside that of its policy (NVRTC 12.9 to
    // 13.5 emit what a GPU calls an illegal instruction; tests/compile looks for it).
    static DEVICE u32 after(u32 place, u32 ring) { return place == ring + (kStages - 1) * kSlotBytes ? ring : place + kSlotBytes; }

    // Of the warp, in shared memory: the segment that begins with a place's tile, as the tile to load found it. The tile to compute comes there
    // a few tiles later, behind a __syncwarp, and does not look for it again; LoadQ's __syncwarps then stand before the place is written anew.
    template<class Place>
    static DEVICE typename Place::Segment& segment_of(u32 place, u32 ring)
    {
        __shared__ typename Place::Segment segments[kWarps][kStages];
        return segments[opaque_id((int)threadIdx.x) / kWarpSize][(place - ring) / kSlotBytes];
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
        // One warp's ring differs from no other's. Lanes do, for all that the assembler knows: see `after`.
        if (kWarps == 1) {
            smem_ring += lanes_below() >> 31;  // 0
        }
        GmemIterK gmem_k;
        GmemIterV gmem_v;
        Impl::SetSmem(gmem_k, gmem_v, 0);

        place.begin(p, end);
        place.unify();
        typename Place::Ahead ahead = place;  // the tile to load
        CacheIter cache = CacheIterFactory::Create(p, ahead.b, Pack(p, ahead.slot).kv_head);
        cache.SetTile(ahead.first() + ahead.tile, ahead.len);  // while its block is looked up, queries are sent for
        PrefetchQ(p, place, lane_id);
        u32 to_fill = smem_ring, slot = smem_ring;  // places of the tile to load and of the one to compute
        // Copies a tile into its place, then looks one tile further, so that the block index is there when it is needed.
        auto prefetch = [&]() {
            const int lane = Impl::kFewRegisters ? opaque_id(lane_id) : lane_id;
            const u32 next = after(to_fill, smem_ring);
            if (CacheIter::kParts > 1 && cache.Joined() && !ahead.last()) {  // most tiles: few branches
                Copy<true>(gmem_k, gmem_v, cache, lane, to_fill, p.l2_policy);
                ++ahead.tile;
                cache.SetTile(ahead.first() + ahead.tile, ahead.len);
            }
            else if (!ahead.done()) {
                cache.Part();  // one copy of the code less: what copies tiles of several parts copies joined ones, too
                Copy<false>(gmem_k, gmem_v, cache, lane, to_fill, p.l2_policy);
                DecodeQueries<Impl>::template LookAhead<CacheIterFactory>(p, ahead, cache, end, lane, [&]() {
                    if (lane == 0) {
                        segment_of<Place>(next, smem_ring) = ahead.entered_segment();
                    }
                });
            }
            to_fill = next;
            cp_async_commit_group();
        };

        // The first tiles are sent for by the loop's own code, which then stands once, and before a query is waited for.
        State state;
        typename Impl::Query query;
        int sent = 0;  // tiles
        while (!place.done()) {
            if (sent >= kStages - 1) {  // a piece begins
                if (place.entered()) {
                    int heads;
                    const T* const q = query_of(p, place, heads);
                    Impl::LoadQ(query, smem_q, q, heads, p, lane_id / 4, lane_id % 4);
                }
                state.Clear();
                place.enter(p);
            }
            const int first = place.tile;
            do {
                const int lane = Impl::kFewRegisters ? opaque_id(lane_id) : lane_id, g = lane / 4, t = lane % 4;
                if (!Impl::kEager) {
                    cp_async_wait_group<kStages - 2>();
                    __syncwarp();
                }
                prefetch();
                if (++sent < kStages) {
                    break;  // the ring has room for more
                }
                if (Impl::kEager) {
                    cp_async_wait_group<kStages - 1>();
                    __syncwarp();
                }

                const int from = place.from(), to = place.to();
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
                ++place.tile;
                slot = after(slot, smem_ring);
                if (Impl::kEager) {
                    __syncwarp();  // the tile is used up; with none left, the ring may become the piece's place
                }
            } while (!place.paused());
            if (sent < kStages) {
                continue;
            }
            Impl::Finish(state);
            if (!Impl::kEager) {
                __syncwarp();  // the ring may become the piece's place
            }
            finish(state, place, first);
            place.leave(segment_of<Place>(slot, smem_ring));
            place.unify();
        }
    }
};
