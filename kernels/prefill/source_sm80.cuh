// Where prefill's tiles of K and V come from: TileSource hands out shared-memory tiles of T, the next one on its way while this one is
// computed.
// This one serves caches that store T: two places for K and two for V, straight from the blocks.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/gmem_sm80.cuh"
#include "ptx/mbarrier.cuh"

// No warp waits for the others at one point: with each half of a tile's work it says that a place of K (of V) is used up and the next K (V) that
// it copied is there, and asks for that of the others half a tile later.
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

    // Two barriers: K's and V's.
    static DEVICE void Init(u32 barriers)
    {
        mbarrier_init(barriers, kWarps);
        mbarrier_init(barriers + 8, kWarps);
    }

    u32 barriers_;

    template<class Params>
    DEVICE TileSource(const Params& p, int b, int kv_head, u32 smem, u32 barriers, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), gmem_(thread), smem_(smem), slot_(0), barriers_(barriers)
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
        Step();
        cp_async_commit_group();
        Arrive(barriers_);
        Arrive(barriers_ + 8);
        slot_ = kSlotBytes;
    }

    // The address of the tile that was started last, K before V, when its K is there; `more`: starts the one before it.
    DEVICE u32 Next(bool more, int len)
    {
        const u32 tile = smem_ + kSlotBytes - slot_;
        mbarrier_wait_parity(barriers_, slot_ == 0);
        if (more) {
            gmem_.template Copy<false, kKeyData>(cache_, smem_ + slot_, 0);
        }
        cp_async_commit_group();
        return tile;
    }

    // K is used up.
    DEVICE void EndK() { Arrive(barriers_); }

    // V is there.
    DEVICE void BeginV(bool more, int len)
    {
        mbarrier_wait_parity(barriers_ + 8, slot_ == 0);
        if (more) {
            gmem_.template Copy<false, kValueData>(cache_, smem_ + slot_ + kTileBytes, 0);
            Step();
        }
        cp_async_commit_group();
    }

    DEVICE void EndV()
    {
        Arrive(barriers_ + 8);
        slot_ = kSlotBytes - slot_;
    }

private:
    DEVICE void Arrive(u32 barrier)
    {
        cp_async_wait_group<0>();
        __syncwarp();
        if (gmem_.lane_ == 0) {
            mbarrier_arrive(barrier);
        }
    }

    DEVICE void Step()
    {
        if (cache_.tile_ > 0) {
            cache_.Advance(0);
            gmem_.Find(cache_, Impl::CTA_S);
        }
    }
};
