// Sm70WarpGmemIterator: one warp moves a tile to shared memory through its registers, for decode: Load, compute something else, Save.
#pragma once

#include "core/family_sm70.cuh"
#include "iterator/block_iterator.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/memory.cuh"

// Every row of the tile is moved: what lies past the end of the sequence is masked when it is used. Tiles that would take too many registers
// move in portions.
template<class T, class Map, class SmemLayout, int Index>
struct Sm70WarpGmemIterator: BaseGmemIterator<T, Map, SmemLayout> {
    static constexpr int kMostChunks = 8;  // of a lane: 32 registers
    static constexpr int kPortions = (Map::kIterS + kMostChunks - 1) / kMostChunks;
    static constexpr int kPortionChunks = (Map::kIterS + kPortions - 1) / kPortions;

    static DEVICE constexpr int portions() { return kPortions; }

    using Fragment = u32[kPortionChunks][4];

    // `joined`: cache.Joined(), asked once for all that a tile consists of.
    template<bool joined, class CacheIter>
    DEVICE void Load(const CacheIter& cache, Fragment& frag, int lane, int portion) const
    {
        static_assert(CacheIter::kParts <= 2, "a tile has one part or two");
        constexpr int kPartChunks = Map::kChunks / CacheIter::kParts;
        const char* const first = cache.template OffsetPtr<Index>(0);
        // counted from the tile's first chunk, like `first`
        const char* const second =
            joined ? first : cache.template OffsetPtr<Index>(CacheIter::kPartRows * (CacheIter::kParts - 1)) - kPartChunks * kChunkBytes;
        Each(lane, portion,
             [&](int i, int index) { ld_global_once(frag[i], (joined || index < kPartChunks ? first : second) + index * kChunkBytes); });
    }

    DEVICE void Save(const Fragment& frag, int lane, int portion) const
    {
        Each(lane, portion, [&](int i, int index) { st_shared_v4(this->smem_ + SmemLayout::offset(index), frag[i]); });
    }

private:
    template<class F>
    static DEVICE void Each(int lane, int portion, F&& f)
    {
#pragma unroll
        for (int i = 0; i < kPortionChunks; ++i) {
            const int n = portion * kPortionChunks + i, index = Map::index(lane, n);
            if (n < Map::kIterS && Map::active(index)) {
                f(i, index);
            }
        }
    }
};
