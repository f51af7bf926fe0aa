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
    static constexpr int kCodeBytes = CTA_S * Config::kRowBytes;
    static constexpr int kBytes =
        kCodeBytes + CTA_S * Config::kParamBytes;  // of K or of V: the codes of a tile, and behind them their parameters

    using Map = WarpRowsMap<Config::kRowChunks, CTA_S, kWarps>;
    using GmemIter = Sm80GmemIterator<Map, CodeTileLayout<Config::kRowChunks>>;
    static constexpr int kParamLanes = Map::kPartRows * Config::kParamBytes / kChunkBytes;  // of a part
    static_assert(Map::kPartRows % 4 == 0, "a chunk of parameters is one warp's");

    GmemIter gmem_;

    explicit DEVICE CodeRows(int thread): gmem_(thread) {}

    // Sends for K's or V's rows of the tile that `cache` stands on, whose blocks were found; `is_residue`: those from `rows` on are past the end.
    template<bool is_residue, int Index>
    DEVICE void Send(const CacheIter& cache, u32 codes, int rows) const
    {
        gmem_.template Copy<is_residue, Index>(cache, codes, rows);
        if (gmem_.lane_ >= kParamLanes) {
            return;
        }
        const int byte = opaque(gmem_.lane_) * kChunkBytes;  // what follows from it is not worth a register of the main loop
#pragma unroll
        for (int part = 0; part < Map::kParts; ++part) {  // (scale, zero): a chunk holds those of four rows
            const int row = gmem_.first_row_ + part * Map::kPartRows;
            const char* const src = cache.template PtrIn<Index == kKeyData ? kKeyParam : kValueParam>(gmem_.block_[part], row, byte);
            const u32 dst = codes + kCodeBytes + row * Config::kParamBytes + byte;
            if (is_residue) {
                cp_async_16_zfill(dst, src, row + 4 * gmem_.lane_ < rows);
            }
            else {
                cp_async_16(dst, src);
            }
        }
    }

    // What arrived becomes the warp's rows in `tile`, of K or of V.
    template<bool is_residue>
    DEVICE void Convert(u32 tile, u32 codes, int rows) const
    {
        u32 word[Map::kParts * Map::kIterS][kTimes][kBits / 4], param[Map::kParts * Map::kIterS][1];
#pragma unroll
        for (int n = 0; n < Map::kParts * Map::kIterS; ++n) {
            if (Map::active(gmem_.lane_, n % Map::kIterS)) {
                Load(word[n], param[n], codes, n / Map::kIterS, n % Map::kIterS);
            }
        }
#pragma unroll
        for (int n = 0; n < Map::kParts * Map::kIterS; ++n) {
            if (Map::active(gmem_.lane_, n % Map::kIterS)) {
                if (is_residue && Row(n / Map::kIterS, n % Map::kIterS) >= rows) {
                    param[n][0] = 0;
                }
                Store(tile, word[n], param[n][0], n / Map::kIterS, n % Map::kIterS);
            }
        }
    }

private:
    // A chunk of codes becomes kTimes chunks of elements, in an order that lets eight lanes that write together meet every bank once where a row
    // is a power of two.
    static constexpr int kTimes = 16 / kBits;
    static constexpr int kTogether = Config::kRowChunks < 8 ? 8 / Config::kRowChunks : 1;  // rows that are written together

    static DEVICE constexpr int Down(int part, int i) { return part * Map::kPartRows + i / Map::kPeriod * Map::kPeriodRows; }
    DEVICE int First(int i) const { return gmem_.first_row_ + Map::row(gmem_.lane_, i % Map::kPeriod); }
    DEVICE int Row(int part, int i) const { return First(i) + Down(part, i); }
    DEVICE int Chunk(int i) const { return Map::chunk(gmem_.lane_, i % Map::kPeriod) * kTimes; }
    DEVICE int Turn(int i) const { return Chunk(i) / 8 * kTogether % kTimes; }

    DEVICE void Load(u32 (&word)[kTimes][kBits / 4], u32 (&param)[1], u32 codes, int part, int i) const
    {
        const u32 src = codes + gmem_.dst_[i % Map::kPeriod] + Down(part, i) * Config::kRowBytes + Turn(i) * kBits;
#pragma unroll
        for (int j = 0; j < kTimes; ++j) {
            ld_shared(word[j], src ^ (u32)(j * kBits));
        }
        ld_shared(param, codes + kCodeBytes + Row(part, i) * Config::kParamBytes);
    }

    // Rows past the end become zeros, whatever their parameters hold.
    DEVICE void Store(u32 tile, const u32 (&word)[kTimes][kBits / 4], u32 param, int part, int i) const
    {
        const u32 dst = Impl::SmemLayout::down(tile + Impl::SmemLayout::offset(First(i), Chunk(i) ^ Turn(i)), Down(part, i));
#pragma unroll
        for (int j = 0; j < kTimes; ++j) {
            u32 d[4];
            dequantise<T, kBits>(d, word[j], param);
            st_shared_v4(dst ^ (u32)(j * kChunkBytes), d);
        }
    }
};
