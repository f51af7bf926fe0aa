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
            CopyParts(cache, slot, max_s);
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
        const char* const src = cache.template OffsetPtr<Index>(0, row_ * row_bytes + chunk_ * kChunkBytes);
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

    // Blocks that may be smaller than the tile: each kMinBlockLen rows are looked up once.
    template<class CacheIter>
    DEVICE void CopyParts(const CacheIter& cache, u32 slot, int max_s) const
    {
        constexpr int kRowBytes = CacheIter::BlockHead::Config::kRowBytes, kRows = Map::kRowsPerIter * Map::kIterS;
        if constexpr (Map::kRowsPerIter <= kMinBlockLen) {
            int block[kRows / kMinBlockLen];
#pragma unroll
            for (int part = 0; part < kRows / kMinBlockLen; ++part) {
                block[part] = cache.Find(min(part * kMinBlockLen, max_s - 1));
            }
#pragma unroll
            for (int i = 0; i < Map::kIterS; ++i) {
                const int above = i * Map::kRowsPerIter, part = above / kMinBlockLen;
                const char* const src = cache.template PtrIn<Index>(
                    block[part], part * kMinBlockLen, (row_ + above - part * kMinBlockLen) * kRowBytes + chunk_ * kChunkBytes);
                cp_async_16_zfill(SmemLayout::down(dst_ + slot, above), src, row_ + above < max_s);
            }
        }
        else {
#pragma unroll
            for (int i = 0; i < Map::kIterS; ++i) {
                const int row = row_ + i * Map::kRowsPerIter, found = min(row, max_s - 1);
                const char* const src = cache.template PtrIn<Index>(cache.Find(found), found, chunk_ * kChunkBytes);
                cp_async_16_zfill(SmemLayout::down(dst_ + slot, i * Map::kRowsPerIter), src, row < max_s);
            }
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
        constexpr int kPartChunks = Map::kChunks / CacheIter::kParts;
        const u32 tile = this->smem_ + slot, dst = tile + SmemLayout::offset(lane);
        const char* const first = cache.template OffsetPtr<Index>(0, lane * kChunkBytes);
        const char* second = first;  // counted from the tile's first chunk, like `first`
        if constexpr (!joined) {
            second = cache.template OffsetPtr<Index>(CacheIter::kPartRows * (CacheIter::kParts - 1), lane * kChunkBytes) -
                     kPartChunks * kChunkBytes;
        }
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            if (Map::active(Map::index(lane, i))) {
                const char* const src = Map::index(lane, i) < kPartChunks ? first : second;
                cp_async_16(SmemLayout::copy_step(tile, dst, lane, i), src + i * kWarpSize * kChunkBytes);
            }
        }
    }
};

// The parameters of a tile's rows, K's and then V's, in one copy.
template<class T, int kRows>
struct Sm80WarpParamIterator {
    static constexpr int kLanes = kRows * 2 * (int)sizeof(T) / kChunkBytes;  // for K, and as many for V
    static_assert(2 * kLanes <= kWarpSize && (kLanes & (kLanes - 1)) == 0);

    u32 smem_;

    DEVICE void SetSmem(u32 smem) { smem_ = smem; }

    template<bool joined, class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, int lane, u32 slot) const
    {
        constexpr int kPartLanes = kLanes / CacheIter::kParts, kLast = CacheIter::kParts - 1;
        if (lane < 2 * kLanes) {
            const int mine = lane % kLanes;
            const char* k = cache.template OffsetPtr<kKeyParam>(0, mine * kChunkBytes);
            if (!joined && mine >= kPartLanes) {
                k = cache.template OffsetPtr<kKeyParam>(CacheIter::kPartRows * kLast, (mine - kPartLanes) * kChunkBytes);
            }
            cp_async_16(smem_ + slot + lane * kChunkBytes, k + (lane < kLanes ? 0 : cache.block_head_.layout.v_param_offset));
        }
    }
};

// What decode's tiles are made of here.
struct Sm80WarpIterators {
    template<class T, class Map, class SmemLayout, int Index>
    using Data = Sm80WarpGmemIterator<T, Map, SmemLayout, Index>;
    template<class T, int kRows>
    using Params = Sm80WarpParamIterator<T, kRows>;
};
