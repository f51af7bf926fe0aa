// How a warp's four quad pairs lie over a tile of 32 keys for m8n8k4. Lane l is in pair p = l%16/4, half u = l/16.
// S^T = K Q^T: a lane owns one key, four dims a step. O = P V: a step is four keys, of which a lane owns one; the pairs share out the dims.
#pragma once

#include "ptx/memory.cuh"
#include "smem/swizzle.cuh"

template<int kHeadDim, int kBits>
struct QuadPairTile {
    static constexpr int kKeys = 32;
    static constexpr int kRowBytes = kHeadDim * kBits / 8;
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kBytes = kKeys * kRowBytes;
    using Layout = RowSwizzle<kRowChunks>;

    // V: a lane's share of a row comes in kUnits reads of kUnitWords words. Where it is no whole words, two halves read the same.
    static constexpr bool kHalfWords = kRowBytes % 32 != 0;
    static constexpr int kLaneBytes = kHalfWords ? kRowBytes / 4 : kRowBytes / 8;
    static constexpr int kUnitWords = kHalfWords ? 1 : kLaneBytes % 16 == 0 ? 4 : kLaneBytes % 8 == 0 ? 2 : 1;
    static constexpr int kUnits = kLaneBytes / 4 / kUnitWords;
    static constexpr int kDimTiles = kHeadDim / 32;  // of a pair: eight dims, four of each half
    static constexpr int kUnitTiles = kDimTiles / kUnits;

    // The pairs and halves lie so that the lanes that read together meet every bank once: four rows take two bits of a line, so their shares
    // of a row differ in the third.
    static DEVICE int unit_byte(int p, int u)
    {
        return kHalfWords        ? 4 * p
               : kUnitWords == 4 ? 16 * (4 * (p % 2) + 2 * (p / 2) + u)
               : kUnitWords == 2 ? 16 * (2 * (p / 2) + u) + 8 * (p % 2)
                                 : 16 * (p / 2) + 4 * (2 * u + p % 2);
    }

    // The first of the four dims that half u of pair p has in dim tile i.
    static DEVICE int dim(int i, int p, int u)
    {
        constexpr int kStride = (kHalfWords ? 4 : 8) * kUnitWords * 4;  // bytes from a lane's unit to its next
        return (i / kUnitTiles * kStride + unit_byte(p, u)) * 8 / kBits + i % kUnitTiles * 4 + (kHalfWords ? 4 * u : 0);
    }

    // Rows of K, or of Q, 16 bytes at a time. Eight lanes together read eight rows.
    struct RowReader {
        u32 base, flip;

        DEVICE RowReader(u32 tile, int row): base(tile + row * kRowBytes), flip(Layout::flip_of_row(row)) {}

        DEVICE void Load(u32 (&d)[4], int chunk) const
        {
            ld_shared(d, kRowChunks % 8 == 0 ? line_step(base ^ flip, chunk * kChunkBytes) : (base + chunk * kChunkBytes) ^ flip);
        }
    };

    // The key that a lane owns in K: its scores are then those of two neighbouring keys.
    static DEVICE int key_of(int lane) { return (lane & ~3) | (lane & 1) << 1 | (lane >> 1 & 1); }

    struct ValueReader {
        u32 base, flip;

        DEVICE ValueReader(u32 tile, int lane)
            : base(tile + lane % 4 * kRowBytes + unit_byte(lane / 4 % 4, lane / 16)), flip(Layout::flip_of_row(lane % 4))
        {}

        // Unit `unit` of key 4 step + lane % 4.
        DEVICE void Load(u32 (&d)[kUnitWords], int step, int unit) const
        {
            constexpr int kStride = (kHalfWords ? 4 : 8) * kUnitWords * 4;
            const u32 flipped = flip ^ (u32)Layout::flip_of_row(4 * (step % 2));
            ld_shared(d, (base + (step * 4 * kRowBytes + unit * kStride)) ^ flipped);
        }
    };
};
