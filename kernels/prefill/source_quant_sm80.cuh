// TileSource for quantised caches: each warp turns the codes that it copied into rows of tiles of T, for all warps of the CTA, while others
// compute.
#pragma once

#include "core/family_sm80.cuh"
#include "prefill/code_rows.cuh"

// kSlots: places for tiles of T. With one, all warps make a tile at once; with two, of two warps that share a scheduler one makes the next tile
// before it computes this one, the other one after that.
template<class Impl, class CacheIterFactory, int kWarps, int kSlots>
struct QuantTileSource {
    using CacheIter = typename CacheIterFactory::Iterator;
    using Rows = CodeRows<Impl, CacheIter, kWarps>;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kSlotBytes = 2 * CTA_S * Impl::kRowBytes;  // K, V
    static constexpr int kBytes = kSlots * kSlotBytes + Rows::kBytes;
    static_assert(kSlots == 1 || kSlots == 2);

    CacheIter cache_;
    Rows rows_;
    u32 smem_, slot_;
    int left_;  // tiles that were not yet sent for
    bool late_, first_;

    template<class Params>
    DEVICE QuantTileSource(const Params& p, int b, int kv_head, u32 smem, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), rows_(smem + kSlots * kSlotBytes, thread), smem_(smem), slot_(0),
          late_(kWarps >= 8 && (thread / kWarpSize & 4)), first_(true)
    {}

    static DEVICE void InitBarriers() {}

    // Looks up tile `tile` of a sequence of `len` keys.
    DEVICE void Find(int tile, int len)
    {
        cache_.SetTile(tile, len);
        rows_.gmem_.Find(cache_, len - tile * CTA_S);
    }

    // Begins at that tile, the first of `tiles`.
    DEVICE void Start(int tiles, int len)
    {
        left_ = tiles;
        Prefetch(len);
    }

    // The address of the tile that was started last, K before V.
    DEVICE u32 Next(bool more, int len)
    {
        const u32 tile = smem_ + slot_;
        if (kSlots == 1 && !first_) {
            __syncthreads();  // the last tile is used up
        }
        if (kSlots == 1 || late_ || first_) {
            Convert(tile, len);
        }
        __syncthreads();  // the tile is there, and the last one is used up
        first_ = false;
        slot_ = (kSlots - 1) * kSlotBytes - slot_;
        if (kSlots > 1 && !late_ && more) {
            Convert(smem_ + slot_, len);
        }
        return tile;
    }

    // What Next waits for is K and V.
    DEVICE void EndK() const {}
    DEVICE void BeginV(bool) const {}
    DEVICE void EndV() const {}

private:
    DEVICE void Prefetch(int len)
    {
        if (left_-- > 0) {
            rows_.Prefetch(cache_, len - cache_.tile_ * CTA_S);
            if (cache_.tile_ > 0) {
                cache_.Advance(len);
                rows_.gmem_.Find(cache_, CTA_S);
            }
        }
        cp_async_commit_group();
    }

    // The codes that were sent for last become the warp's rows of `tile`; then sends for the next ones.
    DEVICE void Convert(u32 tile, int len)
    {
        cp_async_wait_group<0>();
        __syncwarp();
        rows_.Convert(tile);
        __syncwarp();
        Prefetch(len);
    }
};
