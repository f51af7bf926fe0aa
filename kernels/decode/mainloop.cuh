// What decode's main loops share: where the queries of a segment are, and how the tile to load moves on.
#pragma once

#include "decode/cursor.cuh"
#include "ptx/memory.cuh"
#include "smem/swizzle.cuh"

template<class Arch, class Impl, class CacheIterFactory, int kStages, int kWarps>
struct DecodeMainloop;

template<class Impl>
struct DecodeQueries {
    using T = typename Impl::T;

    template<class Params>
    static DEVICE int query_row(const Params& p, int b)
    {
        return p.cu_seqlens_q ? p.cu_seqlens_q[b] : b;
    }

    // First query of the segment's pack, and how many heads it has.
    template<class Params, class Place>
    static DEVICE const T* query_of(const Params& p, const Place& c, int& heads)
    {
        const Pack pack(p, c.slot);
        heads = pack.heads<Impl::kHeads>(p);
        return (const T*)p.q + query_row(p, c.b) * p.q_stride + pack.first_head<Impl::kHeads>(p) * Impl::kHeadDim;
    }

    // So that the segment's start does not wait for DRAM.
    template<class Params, class Place>
    static DEVICE void PrefetchQ(const Params& p, const Place& c, int lane)
    {
        int heads;
        const char* const q = (const char*)query_of(p, c, heads);
#pragma unroll 1
        for (int line = lane; line * kLineBytes < heads * Impl::kHeadDim * (int)sizeof(T); line += kWarpSize) {
            prefetch_l1(q + line * kLineBytes);
        }
    }

    // One tile further, into the next segment behind the last one: its block is looked up before it is loaded, its queries are sent for, and
    // `left` is called.
    template<class CacheIterFactory, class Params, class Place, class Left>
    static DEVICE void LookAhead(const Params& p, Place& ahead, typename CacheIterFactory::Iterator& cache, int end, int lane, Left&& left)
    {
        ++ahead.tile;
        if (ahead.done()) {
            ahead.leave(p, end);
            left();
            if (!ahead.done()) {
                cache = CacheIterFactory::Create(p, ahead.b, Pack(p, ahead.slot).kv_head);
                PrefetchQ(p, ahead, lane);
            }
        }
        cache.SetTile(ahead.first() + ahead.tile, ahead.len);
    }
};
