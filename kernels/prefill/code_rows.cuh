// The rows of codes that a warp brings to shared memory, and makes rows of T of, SM80 family.
#pragma once

#include "iterator/gmem_sm80.cuh"
#include "ptx/memory.cuh"
#include "quant/codes.cuh"

template<int kRowChunks>
struct CodeTileLayout {
    static DEVICE int offset(int row, int chunk) { return (row * kRowChunks + chunk) * kChunkBytes; }
    static DEVICE u32 down(u32 base, int rows) { return base + rows * kRowChunks * kChunkBytes; }
};

template<class Impl, class CacheIter, int kWarps>
struct CodeRows {
    using T = typename Impl::T;
    using Config = typename CacheIter::BlockHead::Config;
    static constexpr int kBits = Config::kBits;
    static constexpr int CTA_S = Impl::CTA_S;
    static constexpr int kTileBytes = CTA_S * Impl::kRowBytes;
    static constexpr int kCodeBytes = CTA_S * Config::kRowBytes;
    static constexpr int kParamBytes = CTA_S * Config::kParamBytes;
    static constexpr int kParams = 2 * kCodeBytes;  // behind the codes of K and V: parameters of K, of V
    static constexpr int kBytes = kParams + 2 * kParamBytes;

    using Map = WarpRowsMap<Config::kRowChunks, CTA_S, kWarps>;
    using GmemIter = Sm80GmemIterator<Map, CodeTileLayout<Config::kRowChunks>>;
    static constexpr int kParamLanes = Map::kPartRows * Config::kParamBytes / kChunkBytes;  // of a part of K, and as many of V
    static_assert(Map::kPartRows % 4 == 0, "a chunk of parameters is one warp's");

    GmemIter gmem_;
    u32 smem_;
    int rows_;  // of the tile that was sent for last, from its first row to the sequence's end

    DEVICE CodeRows(u32 smem, int thread): gmem_(thread), smem_(smem) {}

    // Sends for the tile that `cache` stands on, whose blocks were found.
    DEVICE void Prefetch(const CacheIter& cache, int rows)
    {
        rows_ = rows;
        gmem_.Prefetch(cache, smem_, smem_ + kCodeBytes, rows);
        const int of_v = gmem_.lane_ / kParamLanes, mine = gmem_.lane_ % kParamLanes;
        if (of_v > 1) {
            return;
        }
#pragma unroll
        for (int part = 0; part < Map::kParts; ++part) {  // (scale, zero): a chunk holds those of four rows
            const int row = gmem_.first_row_ + part * Map::kPartRows;
            const char* const src = cache.template PtrIn<kKeyParam>(gmem_.block_[part], row, mine * kChunkBytes);
            cp_async_16_zfill(smem_ + kParams + of_v * kParamBytes + row * Config::kParamBytes + mine * kChunkBytes,
                              src + (of_v ? cache.block_head_.layout.v_param_offset : 0), row + 4 * mine < rows);
        }
    }

    // What arrived becomes the warp's rows of K and V in `tile`.
    DEVICE void Convert(u32 tile) const
    {
#pragma unroll
        for (int value = 0; value < 2; ++value) {
#pragma unroll
            for (int part = 0; part < Map::kParts; ++part) {
#pragma unroll
                for (int i = 0; i < Map::kIterS; ++i) {
                    if (Map::active(gmem_.lane_, i)) {
                        ConvertChunk(tile + value * kTileBytes, value, part, i);
                    }
                }
            }
        }
    }

private:
    // A chunk of codes becomes kTimes chunks of elements, in an order that lets eight lanes that write together meet every bank once where a row
    // is a power of two; rows past the end become zeros, whatever their parameters hold.
    DEVICE void ConvertChunk(u32 tile, int value, int part, int i) const
    {
        constexpr int kTimes = 16 / kBits,
                      kTogether = Config::kRowChunks < 8 ? 8 / Config::kRowChunks : 1;  // rows that are written together
        const int lane = gmem_.lane_, n = i % Map::kPeriod, chunk = Map::chunk(lane, n) * kTimes;
        const int first = gmem_.first_row_ + Map::row(lane, n), down = part * Map::kPartRows + i / Map::kPeriod * Map::kPeriodRows;
        const int turn = chunk / 8 * kTogether % kTimes;
        const u32 dst = Impl::SmemLayout::down(tile + Impl::SmemLayout::offset(first, chunk ^ turn), down);
        const u32 src = smem_ + value * kCodeBytes + gmem_.dst_[n] + down * Config::kRowBytes + turn * kBits;
        u32 param[1];
        ld_shared(param, smem_ + kParams + value * kParamBytes + (first + down) * Config::kParamBytes);
        if (first + down >= rows_) {
            param[0] = 0;
        }
#pragma unroll
        for (int j = 0; j < kTimes; ++j) {
            u32 codes[kBits / 4], d[4];
            ld_shared(codes, src ^ (u32)(j * kBits));
            dequantise<T, kBits>(d, codes, param[0]);
            st_shared_v4(dst ^ (u32)(j * kChunkBytes), d);
        }
    }
};
