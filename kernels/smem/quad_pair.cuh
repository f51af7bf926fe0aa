// Where a 16-byte chunk of a row lies in shared memory when m8n8k4 reads the tile; a permutation inside lines of 128 bytes, as in
// smem/swizzle.cuh.
#pragma once

#include "smem/swizzle.cuh"

// Eight lanes read one chunk of rows 0-7 (K) or 0-3 (Q); or chunk c of rows 0, 1, 8 and 9 and chunk c + 2 of rows 4, 5, 12 and 13 (V).
// Each bit of a row flips a bit of the chunk, bits 2 and 3 the same one: K's eight rows never differ in bit 3, and where V's differ in bit
// 2 the chunk does as well. Rows of one and a half lines differ in chunk bit 2 by their bit 0 without a flip.
template<int kRowChunks>
struct QuadPairSwizzle {
    static constexpr bool kWholeLines = kRowChunks % 8 == 0;
    static constexpr int kSteps = kWholeLines ? 8 : 4;  // chunks that stay in the XORed bits
    static_assert(kWholeLines || kRowChunks == 12, "a row is whole lines, or 192 bytes");

    static DEVICE constexpr int flip(int row)
    {
        const int half = (row >> 2 ^ row >> 3) & 1;
        return kWholeLines ? (row & 3) | half << 2 : (row & 2) | half;
    }
    static DEVICE constexpr int offset(int row, int chunk) { return ((row * kRowChunks + chunk) ^ flip(row)) * kChunkBytes; }

    // The offset of row + `rows` and chunk + `chunks`, from that of a row and a chunk whose bits these do not touch; rows is no odd number.
    static DEVICE u32 step(u32 base, int rows, int chunks)
    {
        const int flipped = flip(rows) ^ chunks % kSteps;
        return (base ^ (u32)(flipped * kChunkBytes)) + (rows * kRowChunks + chunks / kSteps * kSteps) * kChunkBytes;
    }

    // The offset of the same chunk `rows` further down: a multiple of 8 from a row below 8, of 4 from a row below 4.
    static DEVICE u32 down(u32 base, int rows) { return step(base, rows, 0); }
};
