// Sm80GmemIterator: tiles to shared memory by cp.async, for a CTA (prefill) and for one warp (decode).
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/block_iterator.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/cp_async.cuh"

template<class T, class Map, class SmemLayout, int Index>
struct Sm80GmemIterator: BaseGmemIterator<T, Map, SmemLayout> {
    int row_, chunk_;  // this thread's first row of a tile, and its chunk of every row
    u32 dst_;          // where that row's chunk goes, in slot 0

    DEVICE Sm80GmemIterator(u32 smem, int thread): row_(Map::offset_s(thread)), chunk_(Map::offset_c(thread))
    {
        this->SetSmem(smem);
        dst_ = smem + SmemLayout::offset(row_, chunk_);
    }

    // Copies the tile that `cache` stands on into the slot at `slot` bytes; rows from max_s on become zeros and are not read.
    template<class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, u32 slot, int max_s) const
    {
        if (!Map::active(row_)) {
            return;
        }
        if (!cache.OneBlock()) {
            CopySpread(cache, slot, max_s);
        }
        else if (max_s < Map::kRowsPerIter * Map::kIterS) {
            Copy<true>(cache, slot, max_s);
        }
        else {
            Copy<false>(cache, slot, max_s);
        }
    }

private:
    template<bool is_residue, class CacheIter>
    DEVICE void Copy(const CacheIter& cache, u32 slot, int max_s) const
    {
        const int row_bytes = cache.template RowBytes<Index>();
        const char* const src = cache.template OffsetPtr<Index>(0) + row_ * row_bytes + chunk_ * kChunkBytes;
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            const u32 dst = SmemLayout::down(dst_ + slot, i * Map::kRowsPerIter);
            if (is_residue) {
                cp_async_16_zfill(dst, src + i * Map::kRowsPerIter * row_bytes, row_ + i * Map::kRowsPerIter < max_s);
            }
            else {
                cp_async_16(dst, src + i * Map::kRowsPerIter * row_bytes);
            }
        }
    }

    template<class CacheIter>
    DEVICE void CopySpread(const CacheIter& cache, u32 slot, int max_s) const
    {
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            const int row = row_ + i * Map::kRowsPerIter;
            const char* const src = cache.template SearchPtr<Index>(min(row, max_s - 1)) + chunk_ * kChunkBytes;
            cp_async_16_zfill(SmemLayout::down(dst_ + slot, i * Map::kRowsPerIter), src, row < max_s);
        }
    }
};

// One warp copies a tile of one part or two that lie whole in one block each, every row of it: what lies past the end of the sequence is
// masked when it is used.
template<class T, class Map, class SmemLayout, int Index>
struct Sm80WarpGmemIterator: BaseGmemIterator<T, Map, SmemLayout> {
    // `joined`: cache.Joined(), asked once for all that a tile consists of.
    template<bool joined, class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, int lane, u32 slot) const
    {
        static_assert(CacheIter::kParts <= 2, "a tile has one part or two");
        const char* const first = cache.template OffsetPtr<Index>(0);
        if constexpr (joined) {
#pragma unroll
            for (int i = 0; i < Map::kIterS; ++i) {
                Copy(slot, Map::index(lane, i), first + Map::index(lane, i) * kChunkBytes);
            }
        }
        else {
            constexpr int kPartChunks = Map::kChunks / CacheIter::kParts;
            // counted from the tile's first chunk, like `first`
            const char* const second =
                cache.template OffsetPtr<Index>(CacheIter::kPartRows * (CacheIter::kParts - 1)) - kPartChunks * kChunkBytes;
#pragma unroll
            for (int i = 0; i < Map::kIterS; ++i) {
                const int index = Map::index(lane, i);
                Copy(slot, index, (index < kPartChunks ? first : second) + index * kChunkBytes);
            }
        }
    }

private:
    DEVICE void Copy(u32 slot, int index, const char* src) const
    {
        if (Map::active(index)) {
            cp_async_16(this->smem_ + slot + SmemLayout::offset(index), src);
        }
    }
};
