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
    static constexpr int kPortions = (Map::kIterS + Map::kWaiting - 1) / Map::kWaiting;
    static constexpr int kPortionIters = (Map::kIterS + kPortions - 1) / kPortions;

    using Fragment = u32[kPortionIters][4];

    static DEVICE constexpr int portions() { return kPortions; }

    // `joined`: cache.Joined(), asked once for all that a tile consists of.
    template<bool joined, class CacheIter>
    DEVICE void Load(const CacheIter& cache, Fragment& frag, int lane, int portion) const
    {
        static_assert(CacheIter::kParts <= 2, "a tile has one part or two");
        constexpr int kPartChunks = Map::kChunks / CacheIter::kParts;
        const char* const first = cache.template OffsetPtr<Index>(0, lane * kChunkBytes);
        const char* second = first;  // counted from the tile's first chunk, like `first`
        if constexpr (!joined) {
            second = cache.template OffsetPtr<Index>(CacheIter::kPartRows * (CacheIter::kParts - 1), lane * kChunkBytes) -
                     kPartChunks * kChunkBytes;
        }
        Each(lane, portion, [&](int i, int n) {
            ld_global_once(frag[i], (Map::among(lane, n, kPartChunks) ? first : second) + n * kWarpSize * kChunkBytes);
        });
    }

    DEVICE void Save(const Fragment& frag, int lane, int portion) const
    {
        const u32 dst = this->smem_ + SmemLayout::offset(lane);
        Each(lane, portion, [&](int i, int n) { st_shared_v4(SmemLayout::copy_step(this->smem_, dst, lane, n), frag[i]); });
    }

private:
    // f(i, n): the fragment's piece i is the lane's n-th of the tile.
    template<class F>
    static DEVICE void Each(int lane, int portion, F&& f)
    {
#pragma unroll
        for (int i = 0; i < kPortionIters; ++i) {
            const int n = portion * kPortionIters + i;
            if (n < Map::kIterS && Map::active(Map::index(lane, n))) {
                f(i, n);
            }
        }
    }
};

// The parameters of a tile's rows, K's and then V's, with the first portion.
template<class T, int kRows>
struct Sm70WarpParamIterator {
    static constexpr int kLanes = kRows * 2 * (int)sizeof(T) / kChunkBytes;  // for K, and as many for V
    static_assert(2 * kLanes <= kWarpSize && (kLanes & (kLanes - 1)) == 0);

    using Fragment = u32[4];

    u32 smem_;

    DEVICE void SetSmem(u32 smem) { smem_ = smem; }

    template<bool joined, class CacheIter>
    DEVICE void Load(const CacheIter& cache, Fragment& frag, int lane, int portion) const
    {
        constexpr int kPartLanes = kLanes / CacheIter::kParts, kLast = CacheIter::kParts - 1;
        if (portion == 0 && lane < 2 * kLanes) {
            const int mine = lane % kLanes;
            const char* k = cache.template OffsetPtr<kKeyParam>(0, mine * kChunkBytes);
            if (!joined && mine >= kPartLanes) {
                k = cache.template OffsetPtr<kKeyParam>(CacheIter::kPartRows * kLast, (mine - kPartLanes) * kChunkBytes);
            }
            ld_global_once(frag, k + (lane < kLanes ? 0 : cache.block_head_.layout.v_param_offset));
        }
    }

    DEVICE void Save(const Fragment& frag, int lane, int portion) const
    {
        if (portion == 0 && lane < 2 * kLanes) {
            st_shared_v4(smem_ + lane * kChunkBytes, frag);
        }
    }
};

// What decode's tiles are made of here.
struct Sm70WarpIterators {
    template<class T, class Map, class SmemLayout, int Index>
    using Data = Sm70WarpGmemIterator<T, Map, SmemLayout, Index>;
    template<class T, int kRows>
    using Params = Sm70WarpParamIterator<T, kRows>;
};
