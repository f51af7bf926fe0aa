// What decode's m8n8k4 multiplies, out of the words that a lane has read: K's dims as A, V's as B.
#pragma once

#include "decode/tile_m8n8.cuh"
#include "quant/codes.cuh"

template<class T, int kBits, int kHeadDim>
struct QuadPairOperands {
    using Tile = QuadPairTile<kHeadDim, kBits>;

    // Two steps of A: the eight dims of a chunk of K that meet its chunk `j` of Q. Codes carry their bias.
    static DEVICE void Keys(u32 (&a)[2][2], const u32 (&k)[4], int j)
    {
        if constexpr (kBits == 16) {
            a[0][0] = k[0], a[0][1] = k[1], a[1][0] = k[2], a[1][1] = k[3];
        }
        else {
#pragma unroll
            for (int s = 0; s < 2; ++s) {
                Codes<T, kBits>::key_pairs(a[s], k[kBits == 8 ? 2 * j + s : j], kBits == 8 ? 0 : s);
            }
        }
    }

    // B of a dim tile: four dims of a unit, centred codes or elements.
    static DEVICE void Values(u32 (&b)[2], const u32 (&v)[Tile::kUnitWords], int tile, int half)
    {
        if constexpr (kBits == 16) {
            b[0] = v[2 * tile], b[1] = v[2 * tile + 1];
        }
        else {
            using Code = Codes<T, kBits>;
            const int word = kBits == 8 || Tile::kHalfWords ? tile : tile / 2, step = kBits == 8 ? 0 : Tile::kHalfWords ? half : tile % 2;
            u32 pairs[2];
            Code::key_pairs(pairs, v[word], step);
            b[0] = add_rn_x2<T>(pairs[0], Code::kCentre[0]);
            b[1] = add_rn_x2<T>(pairs[1], Code::kCentre[1]);
        }
    }
};
