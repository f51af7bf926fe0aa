// TileSource for quantised caches: each warp turns the codes that it copied into rows of tiles of T, for all warps of the CTA, while others
// compute.
#pragma once

#include "core/family_sm80.cuh"
#include "prefill/code_rows.cuh"
#include "prefill/tile_barriers.cuh"

// kSlots: places for tiles of T. With two, a warp makes its rows of the next K when it has used up this one, and half a tile later waits until
// all have done so; the same for V. So one of two warps that share a scheduler makes rows while the other one keeps the tensor cores busy. With
// one, all warps make the next tile at once.
template<class Impl, class CacheIterFactory, int kWarps, int kSlots>
struct QuantTileSource {
    using CacheIter = typename CacheIterFactory::Iterator;
    using Rows = CodeRows<Impl, CacheIter, kWarps>;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kSlotBytes = 2 * kTileBytes;  // K, V
    static constexpr int kBytes = kSlots * kSlotBytes + 2 * Rows::kBytes;
    static constexpr bool kApart = kSlots > 1;
    using Barriers = TileBarriers<kWarps * kWarpSize, kApart>;
    static_assert(kSlots == 1 || kSlots == 2);
    static_assert(kKeyData == 0 && kValueData == 1);  // V lies behind K

    CacheIter cache_;
    Rows rows_;
    u32 smem_, slot_;  // of the tile that is made next

    template<class Params>
    DEVICE QuantTileSource(const Params& p, int b, int kv_head, u32 smem, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), rows_(thread), smem_(smem), slot_(0)
    {}

    // One thread calls this; a barrier must follow.
    static DEVICE void InitBarriers() { Barriers::Init(); }

    // Looks up tile `tile` of a sequence of `len` keys.
    DEVICE void Find(int tile, int len)
    {
        cache_.SetTile(tile, len);
        rows_.gmem_.Find(cache_, len - tile * CTA_S);
    }

    // Begins at that tile, the first of `tiles` and the only one that may have rows past the end.
    DEVICE void Start(int tiles, int len)
    {
        const int rows = len - cache_.tile_ * CTA_S;
        rows_.template Send<true, kKeyData>(cache_, Codes<kKeyData>(), rows);
        rows_.template Send<true, kValueData>(cache_, Codes<kValueData>(), rows);
        FindNext();
        cp_async_commit_group();
        cp_async_wait_group<0>();
        __syncwarp();
        Make<true, kKeyData>(rows);
        Pass<kKeyData>(tiles - 1);
        Make<true, kValueData>(rows);
        Pass<kValueData>(tiles - 1);
        Turn();
    }

    // The address of the next tile, K before V, when its K is there.
    DEVICE u32 Next(int) const
    {
        Barriers::template Wait<kKeyData>(slot_ == 0);
        if (!kApart) {
            __syncthreads();  // waits for V, too
        }
        return smem_ + (kSlots - 1) * kSlotBytes - slot_;
    }

    // This warp has used up the tile's K; `left`: tiles behind this one.
    DEVICE void EndK(int left)
    {
        if (kSlots > 1) {
            End<kKeyData>(left);
        }
    }

    // When this returns, the tile's V is there.
    DEVICE void BeginV(int) const { Barriers::template Wait<kValueData>(slot_ == 0); }

    // This warp has used up the tile's V.
    DEVICE void EndV(int left)
    {
        if (kSlots == 1 && left > 0) {
            __syncthreads();
            End<kKeyData>(left);
        }
        End<kValueData>(left);
        Turn();
    }

private:
    template<int Index>
    DEVICE u32 Codes() const
    {
        return smem_ + kSlots * kSlotBytes + Index * Rows::kBytes;
    }

    template<bool is_residue, int Index>
    DEVICE void Make(int rows) const
    {
        rows_.template Convert<is_residue>(smem_ + slot_ + Index * kTileBytes, Codes<Index>(), rows);
    }

    // The warp's rows of the next tile's K or V, of `left`.
    template<int Index>
    DEVICE void End(int left)
    {
        if (left > 0) {
            cp_async_wait_group<1>();
            __syncwarp();
            Make<false, Index>(CTA_S);
        }
        Pass<Index>(left - 1);
    }

    // What the warp made is there, and if there are `more` tiles, the next codes are sent for.
    template<int Index>
    DEVICE void Pass(int more)
    {
        Barriers::template Arrive<Index>();
        if (more > 0) {
            rows_.template Send<false, Index>(cache_, Codes<Index>(), CTA_S);
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
            rows_.gmem_.Find(cache_, CTA_S);
        }
    }

    DEVICE void Turn() { slot_ = (kSlots - 1) * kSlotBytes - slot_; }
};
