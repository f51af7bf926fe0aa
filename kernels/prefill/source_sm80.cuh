// Where prefill's tiles of K and V come from: TileSource hands out shared-memory tiles of T, the next one on its way while this one is
// computed.
// This one serves caches that store T: a ring of two tiles, straight from the blocks.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/gmem_sm80.cuh"

template<class Impl, class CacheIterFactory, int kWarps>
struct TileSource {
    using T = typename Impl::T;
    static constexpr int kTileBytes = Impl::CTA_S * Impl::kRowBytes;
    static constexpr int kSlotBytes = 2 * kTileBytes;  // K, V
    static constexpr int kBytes = 2 * kSlotBytes;

    using GmemIter = Sm80GmemIterator<WarpRowsMap<Impl::kRowChunks, Impl::CTA_S, kWarps>, typename Impl::SmemLayout>;
    using CacheIter = typename CacheIterFactory::Iterator;

    CacheIter cache_;
    GmemIter gmem_;
    u32 smem_, slot_;

    template<class Params>
    DEVICE TileSource(const Params& p, int b, int kv_head, u32 smem, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), gmem_(thread), smem_(smem), slot_(0)
    {}

    // Looks up tile `tile` of a sequence of `len` keys.
    DEVICE void Find(int tile, int len)
    {
        cache_.SetTile(tile, len);
        gmem_.Find(cache_, len - tile * Impl::CTA_S);
    }

    // Begins at that tile, the first of `tiles`.
    DEVICE void Start(int, int len)
    {
        Prefetch(0, len);
        cp_async_commit_group();
    }

    // The address of the tile that was started last, K before V; `more`: starts the one before it.
    DEVICE u32 Next(bool more, int len)
    {
        const u32 tile = smem_ + slot_;
        cp_async_wait_group<0>();
        __syncthreads();
        slot_ = kSlotBytes - slot_;
        if (more) {
            Prefetch(slot_, len);
        }
        cp_async_commit_group();
        return tile;
    }

private:
    DEVICE void Prefetch(u32 slot, int len)
    {
        const int rows = len - cache_.tile_ * Impl::CTA_S;
        gmem_.Prefetch(cache_, smem_ + slot, smem_ + slot + kTileBytes, rows);
        if (cache_.tile_ > 0) {
            cache_.Advance(len);
            gmem_.Find(cache_, Impl::CTA_S);
        }
    }
};
