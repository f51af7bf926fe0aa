// TileSource for quantised caches: codes and parameters arrive in shared memory, and the CTA turns them into tiles of T once for all its
// warps.
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/gmem_sm80.cuh"
#include "ptx/memory.cuh"
#include "quant/codes.cuh"

template<int kRowChunks>
struct CodeTileLayout {
    static DEVICE int offset(int row, int chunk) { return (row * kRowChunks + chunk) * kChunkBytes; }
    static DEVICE u32 down(u32 base, int rows) { return base + rows * kRowChunks * kChunkBytes; }
};

// (scale, zero) of a tile's rows: a chunk holds those of four, which always lie in one block.
template<int CTA_S, int Index>
struct ParamGmemIterator {
    static constexpr int kChunks = CTA_S / 4;

    template<class CacheIter>
    static DEVICE void Prefetch(const CacheIter& cache, u32 smem, int chunk, int max_s)
    {
        const int row = 4 * chunk < max_s ? 4 * chunk : 0;
        cp_async_16_zfill(smem + chunk * kChunkBytes, cache.template PtrIn<Index>(cache.Find(row), row, 0), 4 * chunk < max_s);
    }
};

template<class Impl, class CacheIterFactory, int kWarps>
struct QuantTileSource {
    using T = typename Impl::T;
    using CacheIter = typename CacheIterFactory::Iterator;
    using Config = typename CacheIter::BlockHead::Config;
    static constexpr int kBits = Config::kBits;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kCodeBytes = CTA_S * Config::kRowBytes;
    static constexpr int kParamBytes = CTA_S * Config::kParamBytes;
    static constexpr int kCodes = 2 * kTileBytes,
                         kParams = kCodes + 2 * kCodeBytes;  // offsets behind the tiles of T: codes of K, V; parameters of K, V
    static constexpr int kBytes = kParams + 2 * kParamBytes;

    using CodeLayout = CodeTileLayout<Config::kRowChunks>;
    using Map = RakedThreadMap<Config::kRowChunks, CTA_S, kThreads>;
    using GmemIterK = Sm80GmemIterator<u8, Map, CodeLayout, kKeyData>;
    using GmemIterV = Sm80GmemIterator<u8, Map, CodeLayout, kValueData>;

    CacheIter cache_;
    GmemIterK gmem_k_;
    GmemIterV gmem_v_;
    u32 smem_;
    int thread_, rows_;  // rows of the tile that was started last

    template<class Params>
    DEVICE QuantTileSource(const Params& p, int b, int kv_head, u32 smem, int thread)
        : cache_(CacheIterFactory::Create(p, b, kv_head)), gmem_k_(smem + kCodes, thread), gmem_v_(smem + kCodes + kCodeBytes, thread),
          smem_(smem), thread_(thread)
    {}

    DEVICE void Start(int tile, int len)
    {
        cache_.SetTile(tile, len);
        Prefetch(len);
    }

    DEVICE u32 Next(bool more, int len)
    {
        cp_async_wait_group<0>();
        __syncthreads();  // codes have arrived, and the last tile of T is used up
        Dequantise<0>();
        Dequantise<1>();
        __syncthreads();  // the tile is there, and its codes are used up
        if (more) {
            Prefetch(len);
        }
        cp_async_commit_group();
        return smem_;
    }

private:
    DEVICE void Prefetch(int len)
    {
        rows_ = len - cache_.tile_ * CTA_S;
        gmem_k_.Prefetch(cache_, 0, rows_);
        gmem_v_.Prefetch(cache_, 0, rows_);
        constexpr int kChunks = CTA_S / 4;
        if (thread_ < kChunks) {
            ParamGmemIterator<CTA_S, kKeyParam>::Prefetch(cache_, smem_ + kParams, thread_, rows_);
        }
        else if (thread_ < 2 * kChunks) {
            ParamGmemIterator<CTA_S, kValueParam>::Prefetch(cache_, smem_ + kParams + kParamBytes, thread_ - kChunks, rows_);
        }
        cache_.Advance(len);
    }

    // A thread makes chunks of eight elements; rows past the end become zeros, whatever their parameters hold.
    template<int kValue>
    DEVICE void Dequantise() const
    {
        constexpr int kChunks = CTA_S * Impl::kRowChunks;
        static_assert(kChunks % kThreads == 0);
#pragma unroll
        for (int i = 0; i < kChunks / kThreads; ++i) {
            const int index = i * kThreads + thread_, row = index / Impl::kRowChunks, chunk = index % Impl::kRowChunks;
            u32 codes[kBits / 4], param[1], d[4] = {0, 0, 0, 0};
            ld_shared(codes, smem_ + kCodes + kValue * kCodeBytes + index * kBits);
            ld_shared(param, smem_ + kParams + kValue * kParamBytes + row * 4);
            if (row < rows_) {
                dequantise<T, kBits>(d, codes, param[0]);
            }
            st_shared_v4(smem_ + kValue * kTileBytes + Impl::SmemLayout::offset(row, chunk), d);
        }
    }
};
