// Where prefill's tiles of K and V come from, SM70 family: one tile at a time waits in the CTA's registers, as elements or as codes, until
// its place in shared memory is free.
#pragma once

#include "core/family_sm70.cuh"
#include "iterator/gmem_quant_sm70.cuh"
#include "iterator/gmem_sm70.cuh"

template<class Impl, class CacheIterFactory, int kWarps, int kPlaces>
struct TileSource {
    static_assert(kPlaces == 1 || kPlaces == 2, "V stands where K stood, or beside it");
    using T = typename Impl::T;
    using SmemLayout = typename Impl::SmemLayout;
    using CacheIter = typename CacheIterFactory::Iterator;
    using Config = typename CacheIter::BlockHead::Config;
    static constexpr bool kTurns = kPlaces == 1;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kBytes = kPlaces * kTileBytes;

    using Map = RakedThreadMap<Impl::kRowChunks, CTA_S, kWarps * kWarpSize>;
    template<int Index>
    using GmemIter = if_else<Config::kQuantised, Sm70QuantGmemIterator<T, Config::kBits, Map, SmemLayout, Index>,
                             Sm70GmemIterator<T, Map, SmemLayout, Index>>;
    using GmemIterK = GmemIter<kKeyData>;
    using GmemIterV = GmemIter<kValueData>;

    CacheIter cache_;
    GmemIterK gmem_k_;
    GmemIterV gmem_v_;
    typename GmemIterK::Fragment frag_k_;  // one of the two waits at a time
    typename GmemIterV::Fragment frag_v_;
    u32 smem_k_, smem_v_;

    template<class Params>
    DEVICE TileSource(const Params& p, int b, int kv_head, u32 smem, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), gmem_k_(thread), gmem_v_(thread), smem_k_(smem),
          smem_v_(smem + kBytes - kTileBytes)
    {
        gmem_k_.SetSmem(smem_k_, thread);
        gmem_v_.SetSmem(smem_v_, thread);
    }

    // Begins at tile `tile` of a sequence of `len` keys: its K is in shared memory after the next barrier.
    DEVICE void Start(int tile, int len)
    {
        cache_.SetTile(tile, len);
        gmem_k_.template Load<true>(cache_, frag_k_, len - tile * CTA_S);
        SaveK();
    }

    // V of this tile; then stands on the tile before it.
    template<bool is_residue>
    DEVICE void LoadV(int len)
    {
        gmem_v_.template Load<is_residue>(cache_, frag_v_, len - cache_.tile_ * CTA_S);
        cache_.Advance(len);
    }

    DEVICE void SaveV() const { gmem_v_.Save(frag_v_); }

    // K of a tile that is not the last: all of its rows are there.
    DEVICE void LoadK() { gmem_k_.template Load<false>(cache_, frag_k_, CTA_S); }

    DEVICE void SaveK() const { gmem_k_.Save(frag_k_); }
};
