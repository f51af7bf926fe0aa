// Where prefill's tiles of K and V come from: TileSource hands out shared-memory tiles of T, the next one on its way while this one is
// computed.
// This one serves caches that store T: two places for K and two for V, straight from the blocks.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/gmem_sm80.cuh"
#include "prefill/tile_barriers.cuh"

// Every warp copies rows of its own. It says that K is used up and that what it copied of the next K is there, and waits half a tile later until
// all have said so; the same for V. So a warp may be ahead of the others, or behind, by half a tile. Where tiles are so short that this costs more
// than it brings, all warps meet once a tile.
template<class Impl, class CacheIterFactory, int kWarps>
struct TileSource {
    using T = typename Impl::T;
    static constexpr int kTileBytes = Impl::CTA_S * Impl::kRowBytes;
    static constexpr int kSlotBytes = 2 * kTileBytes;  // K, V
    static constexpr int kBytes = 2 * kSlotBytes;
    static constexpr bool kApart = Impl::kHeadDim > 64;

    using GmemIter = Sm80GmemIterator<WarpRowsMap<Impl::kRowChunks, Impl::CTA_S, kWarps>, typename Impl::SmemLayout>;
    using CacheIter = typename CacheIterFactory::Iterator;
    using Barriers = TileBarriers<kWarps * kWarpSize, kApart>;

    CacheIter cache_;
    GmemIter gmem_;
    u32 smem_, slot_;  // of the tile that is sent for

    // One thread calls this; a barrier must follow.
    static DEVICE void InitBarriers() { Barriers::Init(); }

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
        gmem_.Prefetch(cache_, smem_, smem_ + kTileBytes, len - cache_.tile_ * Impl::CTA_S);
        FindNext();
        cp_async_commit_group();
        Arrive<kKeyData>();
        Arrive<kValueData>();
        slot_ = kSlotBytes;
    }

    // The address of the next tile, K before V, when its K is there; starts the K of the one before it, all of whose rows are the sequence's.
    // `left`: tiles behind this one.
    DEVICE u32 Next(int left)
    {
        const u32 tile = smem_ + kSlotBytes - slot_;
        if (!kApart) {
            cp_async_wait_group<0>();
            __syncthreads();
        }
        Fetch<kKeyData>(left > 0);
        if (!kApart) {
            Fetch<kValueData>(left > 0);
        }
        return tile;
    }

    // This warp has used up the tile's K.
    DEVICE void EndK(int) { Arrive<kKeyData>(); }

    // When this returns, the tile's V is there.
    DEVICE void BeginV(int left)
    {
        if (kApart) {
            Fetch<kValueData>(left > 0);
        }
    }

    // This warp has used up the tile's V.
    DEVICE void EndV(int)
    {
        Arrive<kValueData>();
        slot_ = kSlotBytes - slot_;
    }

private:
    template<int Index>
    DEVICE void Arrive() const
    {
        if (kApart) {
            cp_async_wait_group<0>();
            Barriers::template Arrive<Index>();
        }
    }

    // Waits for the tile's K or V; `more`: sends for that of the next one.
    template<int Index>
    DEVICE void Fetch(bool more)
    {
        Barriers::template Wait<Index>(slot_ == 0);
        if (more) {
            gmem_.template Copy<false, Index>(cache_, smem_ + slot_ + (Index == kValueData ? kTileBytes : 0), Impl::CTA_S);
            if (Index == kValueData) {
                FindNext();
            }
        }
        cp_async_commit_group();
    }

    DEVICE void FindNext()
    {
        if (cache_.tile_ > 0) {
            cache_.Advance(0);
            gmem_.Find(cache_, Impl::CTA_S);
        }
    }
};
