// Sm80GmemIterator: tiles to shared memory by cp.async, for a CTA (prefill) and for one warp (decode).
#pragma once

#include "core/family_sm80.cuh"
#include "iterator/block_iterator.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/cp_async.cuh"

// A CTA copies a tile, each warp Map's rows; K and V lie alike in their places.
template<class Map, class SmemLayout>
struct Sm80GmemIterator {
    static constexpr int kPlaces = Map::kIterS < Map::kPeriod ? Map::kIterS : Map::kPeriod;

    int first_row_, lane_;
    int block_[Map::kParts];  // of the tile that is copied next: looked up a tile ahead
    u32 dst_[kPlaces];        // where the lane's chunks of the first iterations go, in a tile at 0

    explicit DEVICE Sm80GmemIterator(int thread): first_row_(Map::first_row(thread)), lane_(thread % kWarpSize)
    {
#pragma unroll
        for (int i = 0; i < kPlaces; ++i) {
            dst_[i] = SmemLayout::offset(first_row_ + Map::row(lane_, i), Map::chunk(lane_, i));
        }
    }

    // The blocks of the tile that `cache` stands on; rows from max_s on share the last one.
    template<class CacheIter>
    DEVICE void Find(const CacheIter& cache, int max_s)
    {
#pragma unroll
        for (int part = 0; part < Map::kParts; ++part) {
            block_[part] = cache.Find(min(first_row_ + part * Map::kPartRows, max_s - 1));
        }
    }

    // Copies the tile's rows of K and V; those from max_s on become zeros and are not read.
    template<class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, u32 k, u32 v, int max_s) const
    {
        if (max_s < Map::kRows) {
            Copy<true, kKeyData>(cache, k, max_s);
            Copy<true, kValueData>(cache, v, max_s);
        }
        else {
            Copy<false, kKeyData>(cache, k, max_s);
            Copy<false, kValueData>(cache, v, max_s);
        }
    }

    // The same for K or for V alone; `is_residue`: there may be rows past the end.
    template<bool is_residue, int Index, class CacheIter>
    DEVICE void Copy(const CacheIter& cache, u32 tile, int max_s) const
    {
#pragma unroll
        for (int part = 0; part < Map::kParts; ++part) {
            const int part_row = first_row_ + part * Map::kPartRows;
            const char* const first = cache.template PtrIn<Index>(block_[part], part_row, CacheIter::kContiguous ? lane_ * kChunkBytes : 0);
#pragma unroll
            for (int i = 0; i < Map::kIterS; ++i) {
                if (!Map::active(lane_, i)) {
                    continue;
                }
                const char* const src = first + (CacheIter::kContiguous ? i * kWarpSize * kChunkBytes : Offset<Index>(cache, i));
                const u32 dst =
                    SmemLayout::down(tile + dst_[i % Map::kPeriod], part * Map::kPartRows + i / Map::kPeriod * Map::kPeriodRows);
                if (is_residue) {
                    cp_async_16_zfill(dst, src, part_row + Map::row(lane_, i) < max_s);
                }
                else {
                    cp_async_16(dst, src);
                }
            }
        }
    }

private:
    // From a part's first row to the lane's chunk of iteration i, where rows do not follow each other.
    template<int Index, class CacheIter>
    DEVICE i64 Offset(const CacheIter& cache, int i) const
    {
        const int row_bytes = cache.template RowBytes<Index>(), n = i % Map::kPeriod;
        return (i64)Map::row(lane_, n) * row_bytes + Map::chunk(lane_, n) * kChunkBytes +
               (i64)(i / Map::kPeriod * Map::kPeriodRows) * row_bytes;
    }
};

// One warp copies a tile of parts that lie whole in one block each, every row of it: what lies past the end of the sequence is masked when it is
// used.
template<class T, class Map, class SmemLayout, int Index>
struct Sm80WarpGmemIterator: BaseGmemIterator<T, Map, SmemLayout> {
    // `joined`: cache.Joined(), asked once for all that a tile consists of; `policy`: of L2.
    template<bool joined, class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, int lane, u32 slot, u64 policy) const
    {
        constexpr int kParts = joined ? 1 : CacheIter::kParts, kPartChunks = Map::kChunks / kParts;
        static_assert(kParts <= 2 || kPartChunks % kWarpSize == 0, "a lane's chunks are of one part or two");
        const u32 tile = this->smem_ + slot, dst = tile + SmemLayout::offset(lane);
        const char* part[kParts];  // counted from the tile's first chunk
#pragma unroll
        for (int n = 0; n < kParts; ++n) {
            part[n] = cache.template OffsetPtr<Index>(CacheIter::kPartRows * n, lane * kChunkBytes) - n * kPartChunks * kChunkBytes;
        }
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            if (Map::active(Map::index(lane, i))) {
                const char* src = part[i * kWarpSize / kPartChunks];
                if (kPartChunks % kWarpSize) {
                    src = Map::among(lane, i, kPartChunks) ? part[0] : part[kParts - 1];
                }
                cp_async_16(SmemLayout::copy_step(tile, dst, lane, i), src + i * kWarpSize * kChunkBytes, policy);
            }
        }
    }
};

// The parameters of a tile's rows, K's and then V's, in one copy. A line of memory holds those of several tiles: L2 keeps it.
template<class T, int kRows>
struct Sm80WarpParamIterator {
    static constexpr int kLanes = kRows * 2 * (int)sizeof(T) / kChunkBytes;  // for K, and as many for V
    static_assert(2 * kLanes <= kWarpSize && (kLanes & (kLanes - 1)) == 0);

    u32 smem_;

    DEVICE void SetSmem(u32 smem) { smem_ = smem; }

    template<bool joined, class CacheIter>
    DEVICE void Prefetch(const CacheIter& cache, int lane, u32 slot, u64) const
    {
        constexpr int kParts = joined ? 1 : CacheIter::kParts, kPartLanes = kLanes / kParts;
        if (lane < 2 * kLanes) {
            const int mine = lane % kLanes;
            const char* k = cache.template OffsetPtr<kKeyParam>(0, mine * kChunkBytes);
#pragma unroll
            for (int n = 1; n < kParts; ++n) {
                if (mine >= n * kPartLanes) {
                    k = cache.template OffsetPtr<kKeyParam>(CacheIter::kPartRows * n, (mine - n * kPartLanes) * kChunkBytes);
                }
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
