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

    static DEVICE int offset(int row, int chunk)
    {
        const int flip = kWholeLines ? row & 7 : (row >> 1) & 3;
        return ((row * kRowChunks + chunk) ^ flip) * kChunkBytes;
    }

    // The offset of chunk + 2*step, from `base` = the offset of an even or odd first chunk (0 or 1).
    static DEVICE u32 step(u32 base, int step) { return (base ^ (u32)(step % kSteps << 5)) + step / kSteps * (kSteps << 5); }

    // The offset of the same chunk `rows` further down: a multiple of 8, or of 4 from a row below 4.
    static DEVICE u32 down(u32 base, int rows)
    {
        return (rows % 8 && kWholeLines ? base ^ (u32)(4 * kChunkBytes) : base) + rows * kRowChunks * kChunkBytes;
    }
};

// Decode's two share this: four neighbouring chunks stay neighbours, so an address is a lane's base and a step of 64 bytes, known when
// compiling.
struct QuadStep {
    // The offset of `base` moved by `quads` times four chunks.
    static DEVICE u32 step(u32 base, int quads) { return (base ^ (u32)(quads % 2 << 6)) + quads / 2 * kLineBytes; }
};

// For 16-byte reads of decode's K: lanes (g, t) read rows 2g and 2g + 1, four neighbouring chunks for t = 0..3; eight lanes at a time are
// two g.
template<int kRowChunks>
struct PairRowSwizzle: QuadStep {
    static DEVICE int offset(int index)  // chunk index in the tile
    {
        return (index ^ (index / (2 * kRowChunks) & 1) << 2) * kChunkBytes;
    }

    // Row 2g, chunk t.
    static DEVICE int lane_base(int g, int t) { return (2 * kRowChunks * g + (t ^ (g & 1) << 2)) * kChunkBytes; }
};

// For reads of decode's V: lanes (g, t) read rows 4t .. 4t + 3, neighbouring chunks (or half chunks) for g = 0..7.
template<int kRowChunks>
struct QuadRowSwizzle: QuadStep {
    static DEVICE int offset(int index) { return (index ^ (index / (4 * kRowChunks) & 3) << 1) * kChunkBytes; }

    // Row 4t, chunk `chunk` < 8.
    static DEVICE int lane_base(int chunk, int t) { return (4 * kRowChunks * t + (chunk ^ t << 1)) * kChunkBytes; }
};

// Tiles of codes, whose rows may be shorter than a line: lanes (g, t) read kWords words at a time. K: rows kLaneRows g + n, neighbouring
// pieces for t = 0..3; V: rows 2 kLaneRows t + n, neighbouring pieces for g = 0..7.
template<int kRowChunks, int kLaneRows, int kWords>
struct CodeKeySwizzle {
    static constexpr int kGroupChunks = kLaneRows * kRowChunks;
    static constexpr bool kWholeLines = kGroupChunks % 8 == 0;  // else (48-byte rows) nothing moves, and reads meet some banks four times
    static constexpr int kShift = kWords == 4 ? 2 : kWords == 2 ? 1 : 0;  // as many bits of g as t leaves free in a line

    static DEVICE int flip(int g) { return kWholeLines ? g << kShift & 7 : 0; }
    static DEVICE int offset(int index) { return (index ^ flip(index / kGroupChunks)) * kChunkBytes; }

    // The address of byte `byte` of the rows of lane row group g.
    static DEVICE int group_offset(int g, int byte) { return g * kGroupChunks * kChunkBytes + (byte ^ flip(g) * kChunkBytes); }
};

template<int kRowChunks, int kLaneRows>
struct CodeValueSwizzle {
    static constexpr int kGroupChunks = 2 * kLaneRows * kRowChunks;

    static DEVICE int offset(int index) { return (index ^ (index / kGroupChunks & 3) << 1) * kChunkBytes; }

    static DEVICE int group_offset(int t, int byte) { return t * kGroupChunks * kChunkBytes + (byte ^ (t << 1) * kChunkBytes); }
};
