// Which chunks of a tile a thread moves.
#pragma once

#include "core/types.cuh"

DEVICE constexpr int floor_pow2(int x)
{
    int p = 1;
    while (2 * p <= x) {
        p *= 2;
    }
    return p;
}

// Every iteration moves a power of two of whole rows, so that a thread keeps its chunk column; threads beyond kCopyThreads rest.
template<int kRowChunks, int kRows, int kThreads>
struct RakedThreadMap {
    static constexpr int kRowsPerIter = floor_pow2(kThreads / kRowChunks) < kRows ? floor_pow2(kThreads / kRowChunks) : kRows;
    static constexpr int kCopyThreads = kRowsPerIter * kRowChunks;
    static constexpr int kIterS = kRows / kRowsPerIter;
    static_assert(kRows % kRowsPerIter == 0);
    static_assert(kRowsPerIter % 4 == 0, "swizzles repeat every 8 rows, and flip after 4");

    static DEVICE int offset_s(int thread) { return thread / kRowChunks; }
    static DEVICE int offset_c(int thread) { return thread % kRowChunks; }
    static DEVICE bool active(int row) { return kCopyThreads == kThreads || row < kRowsPerIter; }
};

// A warp moves a tile of kChunks chunks, whose parts are contiguous in memory: 512 bytes an instruction. Where the tile goes through registers, a
// lane holds kWaiting chunks at once.
template<int kChunks_, int kWaiting_ = 8>
struct WarpLinearMap {
    static constexpr int kChunks = kChunks_;
    static constexpr int kWaiting = kWaiting_;
    static constexpr int kIterS = (kChunks + kWarpSize - 1) / kWarpSize;

    static DEVICE int index(int lane, int i) { return i * kWarpSize + lane; }
    static DEVICE bool active(int index) { return kChunks % kWarpSize == 0 || index < kChunks; }
};
