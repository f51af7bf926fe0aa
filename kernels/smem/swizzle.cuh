// Where a 16-byte chunk of a row lies in shared memory. All swizzles permute chunks inside lines of 128 bytes (8 chunks, all banks once),
// so that a tile that is contiguous in global memory stays contiguous line by line, and the lanes that read together meet every bank once.
#pragma once

#include "core/types.cuh"

constexpr int kLineBytes = 128;

// For ldmatrix: 8 lanes read one chunk column c of 8 consecutive rows.
// Rows that fill whole lines: c ^ (row % 8). Rows of one and a half lines (12 chunks): two rows share three lines and already differ in bit
// 2.
template<int kRowChunks>
struct LdmatrixSwizzle {
    static constexpr bool kWholeLines = kRowChunks % 8 == 0;
    static constexpr int kSteps = kWholeLines ? 4 : 2;  // 32-byte steps along a row that stay in the XORed bits
    static_assert(kWholeLines || kRowChunks == 12, "a row is whole lines, or 192 bytes");

    static DEVICE constexpr int flip(int row) { return kWholeLines ? row & 7 : (row >> 1) & 3; }
    static DEVICE int offset(int row, int chunk) { return ((row * kRowChunks + chunk) ^ flip(row)) * kChunkBytes; }

    // The offset of chunk + 2*step, from `base` = the offset of an even or odd first chunk (0 or 1).
    static DEVICE u32 step(u32 base, int step) { return (base ^ (u32)(step % kSteps << 5)) + step / kSteps * (kSteps << 5); }

    // The offset of row + `rows` and chunk + `chunks`, from that of a row and a chunk whose bits these do not touch.
    static DEVICE u32 step(u32 base, int rows, int chunks)
    {
        const int flipped = flip(rows) ^ chunks % (2 * kSteps);
        return (base ^ (u32)(flipped * kChunkBytes)) + (rows * kRowChunks + chunks / (2 * kSteps) * 2 * kSteps) * kChunkBytes;
    }

    // The offset of the same chunk `rows` further down, from a row that has none of the bits of `rows`.
    static DEVICE u32 down(u32 base, int rows) { return step(base, rows, 0); }
};

// An address `base` moved by `bytes`, known when compiling: its bits within a line are XORed, so those of `base` and of `bytes` must differ.
DEVICE u32 line_step(u32 base, int bytes)
{
    constexpr int kIn = kLineBytes - 1;
    return (base ^ (u32)(bytes & kIn)) + (bytes & ~kIn);
}

// Decode's tiles: groups of kGroupChunks chunks, whole lines; in group g, chunk c lies at c ^ (g << kShift & kMask). Groups of half lines more:
// two of them, which share a line, flip alike, and within its halves.
template<int kGroupChunks_, int kShift, int kMask>
struct GroupSwizzle {
    static constexpr int kGroupChunks = kGroupChunks_;
    static constexpr int kGroupBytes = kGroupChunks * kChunkBytes;
    static constexpr bool kWholeLines = kGroupChunks % 8 == 0;
    static_assert(kWholeLines || kMask == 0 || (kGroupChunks % 8 == 4 && kShift == -1 && kMask == 3), "a flip stays in its line");

    static DEVICE int flip(int g) { return ((kShift < 0 ? g >> 1 : g << kShift) & kMask) * kChunkBytes; }

    static DEVICE int offset(int index)  // chunk index in the tile
    {
        return index * kChunkBytes ^ flip(index / kGroupChunks);
    }

    // A warp writes chunks 32 i + lane, tile at `tile`, a multiple of a line; `lane_base` is tile + offset(lane).
    static DEVICE u32 copy_step(u32 tile, u32 lane_base, int lane, int i)
    {
        constexpr bool kEven = kWarpSize % kGroupChunks == 0 || kGroupChunks % kWarpSize == 0;
        return kEven ? (lane_base ^ (u32)flip(i * kWarpSize / kGroupChunks)) + i * kWarpSize * kChunkBytes
                     : tile + offset(i * kWarpSize + lane);
    }

    // Byte `byte` of group g. From byte < kSpan, a power of two, line_step moves it by any multiple of kSpan.
    static DEVICE int group_offset(int g, int byte) { return g * kGroupBytes + (byte ^ flip(g)); }
};

// For 16-byte reads of decode's K: lanes (g, t) read rows 2g and 2g + 1, four neighbouring chunks for t = 0..3; eight lanes at a time are
// two g.
template<int kRowChunks>
using PairRowSwizzle = GroupSwizzle<2 * kRowChunks, 2, 4>;

// For reads of decode's V: lanes (g, t) read rows 4t .. 4t + 3, neighbouring chunks (or half chunks) for g = 0..7.
template<int kRowChunks>
using QuadRowSwizzle = GroupSwizzle<4 * kRowChunks, 1, 6>;

// Tiles of codes, whose rows may be shorter than a line: lanes (g, t) read kWords words at a time. K: rows kLaneRows g + n, neighbouring
// pieces for t = 0..3, and as many bits of g flip as t leaves free in a line; where a group is not whole lines (48-byte rows), none, and
// reads meet some banks four times.
template<int kRowChunks, int kLaneRows, int kWords>
using CodeKeySwizzle = GroupSwizzle<kLaneRows * kRowChunks,
                                    kWords == 4   ? 2
                                    : kWords == 2 ? 1
                                                  : 0,
                                    kLaneRows * kRowChunks % 8 ? 0 : 7>;

// V, for ldmatrix: eight lanes read one chunk column of every kLaneRows-th row. Groups of kLaneRows rows flip all three bits of a line or, of
// one and a half lines, which differ in one already, the other two.
template<int kRowChunks, int kLaneRows>
using CodeValueSwizzle = GroupSwizzle<kLaneRows * kRowChunks, kLaneRows * kRowChunks % 8 ? -1 : 0, kLaneRows * kRowChunks % 8 ? 3 : 7>;

// For tiles that m8n8k4 reads: eight lanes read one chunk column of eight neighbouring rows, or two of four. Rows that share lines differ in
// some of the three bits already; the others flip.
template<int kRowChunks, int kFlips = kRowChunks % 8 == 0   ? 8
                                      : kRowChunks % 4 == 0 ? 4
                                      : kRowChunks % 2 == 0 ? 2
                                                            : 1>
struct RowSwizzle: GroupSwizzle<kRowChunks * 8 / kFlips, 0, kFlips - 1> {
    static DEVICE int flip_of_row(int row) { return RowSwizzle::flip(row / (8 / kFlips)); }
};
