// Which chunks of a tile a thread moves.
#pragma once

#include "core/types.cuh"

constexpr int kMinBlockLen = 16;

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
    // Whether it is one of the first `chunks`; known when compiling where these are whole iterations.
    static DEVICE bool among(int lane, int i, int chunks) { return chunks % kWarpSize ? index(lane, i) < chunks : i * kWarpSize < chunks; }
};

// Every warp moves rows of its own, a part of at most kMinBlockLen at a time: whatever the blocks' length, a part lies in one block, where its
// chunks follow each other.
template<int kRowChunks_, int kRows_, int kWarps>
struct WarpRowsMap {
    static constexpr int kRows = kRows_;
    static constexpr int kRowChunks = kRowChunks_;
    static constexpr int kWarpRows = kRows / kWarps;
    static constexpr int kPartRows = kWarpRows < kMinBlockLen ? kWarpRows : kMinBlockLen;
    static constexpr int kParts = kWarpRows / kPartRows;
    static constexpr int kPartChunks = kPartRows * kRowChunks;
    static constexpr int kIterS = (kPartChunks + kWarpSize - 1) / kWarpSize;  // of a part
    // After so many iterations a lane is at the same chunk of a row again.
    static constexpr int kPeriod = (kRowChunks & (kRowChunks - 1)) == 0 ? 1 : 3;
    static constexpr int kPeriodRows = kPeriod * kWarpSize / kRowChunks;
    static_assert(kRows % kWarps == 0 && kPeriod * kWarpSize % kRowChunks == 0);

    static DEVICE int first_row(int thread) { return thread / kWarpSize * kWarpRows; }
    static DEVICE int row(int lane, int i) { return (i * kWarpSize + lane) / kRowChunks; }  // of the part
    static DEVICE int chunk(int lane, int i) { return (i * kWarpSize + lane) % kRowChunks; }
    static DEVICE bool active(int lane, int i) { return kPartChunks % kWarpSize == 0 || i * kWarpSize + lane < kPartChunks; }
};
