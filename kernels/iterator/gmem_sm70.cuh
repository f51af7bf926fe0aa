// Sm70GmemIterator: tiles to shared memory by way of a CTA's registers, where the next one waits while this one is computed.
#pragma once

#include "core/family_sm70.cuh"
#include "iterator/block_iterator.cuh"
#include "iterator/iterator.cuh"
#include "iterator/thread_map.cuh"
#include "ptx/memory.cuh"

// A thread's part of a tile: of each of Map's rows, the kWords words that lie kColumnBytes times its column from the row's begin.
template<class Map, int Index, int kWords, int kColumnBytes>
struct Sm70RowLoader {
    using Fragment = u32[Map::kIterS][kWords];

    int row_, column_;  // this thread's first row of a tile; bytes

    explicit DEVICE Sm70RowLoader(int thread): row_(Map::offset_s(thread)), column_(Map::offset_c(thread) * kColumnBytes) {}

    // Rows from max_s on become zeros and are not read; without is_residue every row is there.
    template<bool is_residue, class CacheIter>
    DEVICE void Load(const CacheIter& cache, Fragment& frag, int max_s) const
    {
        const int row_bytes = cache.template RowBytes<Index>();
        if (!Map::active(row_)) {
            return;
        }
        if (cache.OneBlock()) {
            const char* const first = cache.template OffsetPtr<Index>(0, row_ * row_bytes + column_);
            Each<is_residue>(frag, max_s, [&](int i) { return first + i * Map::kRowsPerIter * row_bytes; });
            return;
        }
        constexpr int kTogether = Map::kRowsPerIter < kMinBlockLen ? kMinBlockLen / Map::kRowsPerIter : 1;  // rows that share a block
        int block[Map::kIterS];
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            const int row = (kTogether > 1 ? 0 : row_) + i * Map::kRowsPerIter;
            block[i] = i % kTogether ? block[i - 1] : cache.Find(is_residue ? min(row, max_s - 1) : row);
        }
        Each<is_residue>(frag, max_s, [&](int i) { return cache.template PtrIn<Index>(block[i], row_ + i * Map::kRowsPerIter, column_); });
    }

private:
    template<bool is_residue, class Place>
    DEVICE void Each(Fragment& frag, int max_s, Place&& place) const
    {
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            const int row = row_ + i * Map::kRowsPerIter;
            if (is_residue) {
#pragma unroll
                for (int w = 0; w < kWords; ++w) {
                    frag[i][w] = 0;
                }
            }
            if (!is_residue || row < max_s) {
                ld_global(frag[i], place(i));
            }
        }
    }
};

// Caches that store T.
template<class T, class Map, class SmemLayout, int Index>
struct Sm70GmemIterator: BaseGmemIterator<T, Map, SmemLayout>, Sm70RowLoader<Map, Index, kChunkBytes / 4, kChunkBytes> {
    using Loader = Sm70RowLoader<Map, Index, kChunkBytes / 4, kChunkBytes>;
    using typename Loader::Fragment;

    explicit DEVICE Sm70GmemIterator(int thread): Loader(thread) {}

    DEVICE void SetSmem(u32 tile, int thread) { this->smem_ = tile + SmemLayout::offset(Map::offset_s(thread), Map::offset_c(thread)); }

    DEVICE void Save(const Fragment& frag) const
    {
        if (!Map::active(this->row_)) {
            return;
        }
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            st_shared_v4(SmemLayout::down(this->smem_, i * Map::kRowsPerIter), frag[i]);
        }
    }
};
