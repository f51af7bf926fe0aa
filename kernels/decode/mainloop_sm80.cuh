// Decode's main loop, SM80 family: a warp walks its range of the flat list through its own ring of cp.async tiles; warps never wait for
// each other.
#pragma once

#include "core/family_sm80.cuh"
#include "decode/cursor.cuh"
#include "iterator/gmem_sm80.cuh"

template<class Arch, class Impl, class CacheIterFactory, int kStages>
struct DecodeMainloop;

template<class Impl_, class CacheIterFactory, int kStages>
struct DecodeMainloop<arch::Sm80, Impl_, CacheIterFactory, kStages> {
    using Impl = Impl_;
    using T = typename Impl::T;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kSlotBytes = Impl::kSlotBytes;
    static constexpr int kRingBytes = kStages * kSlotBytes;

    using CacheIter = typename CacheIterFactory::Iterator;
    using GmemIterK = typename Impl::template GmemIter<kKeyData>;
    using GmemIterV = typename Impl::template GmemIter<kValueData>;

    using State = typename Impl::Softmax::State;

    template<class Params>
    static DEVICE int query_row(const Params& p, int b)
    {
        return p.cu_seqlens_q ? p.cu_seqlens_q[b] : b;
    }

    // First query of the segment's pack, and how many heads it has.
    template<class Params, class Place>
    static DEVICE const T* query_of(const Params& p, const Place& c, int& heads)
    {
        heads = min(Impl::kHeads, p.group_size - c.slot % p.head_packs * Impl::kHeads);
        return (const T*)p.q + query_row(p, c.b) * p.q_stride + first_head<Impl::kHeads>(p, c.slot) * Impl::kHeadDim;
    }

    // So that the segment's start does not wait for DRAM.
    template<class Params, class Place>
    static DEVICE void PrefetchQ(const Params& p, const Place& c, int lane)
    {
        int heads;
        const char* const q = (const char*)query_of(p, c, heads);
        for (int line = lane; line * kLineBytes < heads * Impl::kHeadDim * (int)sizeof(T); line += kWarpSize) {
            prefetch_l1(q + line * kLineBytes);
        }
    }

    // Walks the units [place, end) and calls finish(state, place, first tile of the piece, whether the segment ends here) where a segment
    // or the range ends.
    template<class Params, class Place, class Finish>
    DEVICE void operator()(const Params& p, Place place, int end, u32 smem_ring, u32 smem_q, int lane_id, Finish&& finish) const
    {
        GmemIterK gmem_k;
        GmemIterV gmem_v;
        Impl::SetSmem(gmem_k, gmem_v, smem_ring);

        Place ahead = place;  // the tile to load
        PrefetchQ(p, ahead, lane_id);
        CacheIter cache = CacheIterFactory::Create(p, ahead.b, ahead.slot / p.head_packs);
        cache.SetTile(ahead.first + ahead.tile, ahead.len);
        bool more = ahead.unit() < end;
        auto prefetch =
            [&](int i) {  // copies tile i into its slot, then looks one tile further, so that the block index is there when it is needed
                if (more) {
                    const int lane = Impl::kFewRegisters ? opaque(lane_id) : lane_id;
                    const u32 slot = i % kStages * kSlotBytes;
                    if (cache.Joined()) {
                        gmem_k.template Prefetch<true>(cache, lane, slot);
                        gmem_v.template Prefetch<true>(cache, lane, slot);
                    }
                    else {
                        gmem_k.template Prefetch<false>(cache, lane, slot);
                        gmem_v.template Prefetch<false>(cache, lane, slot);
                    }
                    ahead.next(p);
                    more = ahead.unit() < end;
                    if (more) {
                        if (ahead.tile == 0) {
                            cache = CacheIterFactory::Create(p, ahead.b, ahead.slot / p.head_packs);
                            PrefetchQ(p, ahead, lane);
                        }
                        cache.SetTile(ahead.first + ahead.tile, ahead.len);
                    }
                }
                cp_async_commit_group();
            };
#pragma unroll 1
        for (int i = 0; i < kStages - 1; ++i) {
            prefetch(i);
        }

        State state;
        typename Impl::Query query;
        bool fresh = true;
        int piece_first = 0;
        for (int i = 0; place.unit() < end; ++i) {
            const int lane = Impl::kFewRegisters ? opaque(lane_id) : lane_id, g = lane / 4, t = lane % 4;
            if (fresh) {
                int heads;
                const T* const q = query_of(p, place, heads);
                Impl::LoadQ(query, smem_q, q, heads, p, g, t);
                state.Clear();
                piece_first = place.tile;
            }
            cp_async_wait_group<kStages - 2>();
            __syncwarp();
            prefetch(i + kStages - 1);

            const int key = place.key();
            const int from = p.window_size ? place.len - p.window_size - key : 0, to = place.len - key;
            const u32 slot = smem_ring + i % kStages * kSlotBytes;
            typename Impl::FragS frag_s;
            typename Impl::FragP frag_p;
            Impl::ComputeQK(frag_s, query, smem_q, slot, g, t);
            Impl::ComputeP(frag_p, frag_s, state, query, slot, p, place.slot, from, to, fresh, g, t);
            Impl::ComputePV(state, frag_p, slot, from, to, g, t);

            fresh = place.tile + 1 == place.tiles;
            if (fresh || place.unit() + 1 >= end) {
                Impl::Finish(state);
                __syncwarp();  // the ring may become the piece's place
                finish(state, place, piece_first, fresh);
            }
            place.next(p);
        }
    }
};
