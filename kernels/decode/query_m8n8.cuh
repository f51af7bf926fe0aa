// Decode's queries for m8n8k4: in shared memory, read by every quad pair; for codes, sums of a head's dims in registers.
#pragma once

#include "decode/tile_m8n8.cuh"
#include "quant/codes.cuh"

template<class T, int kBits, int kHeadDim, int kHeadTiles>
struct QuadPairQuery {
    static constexpr bool kQuantised = kBits < 16;
    using Tile = QuadPairTile<kHeadDim, 16>;

    // Of heads 8n + 4 (e/2) + (l&2) + e%2: minus what the magic numbers add to their scores, and their dims' plain sums.
    float bias[kHeadTiles][4], sum[kHeadTiles][4];

    // Q rows of `heads` heads; the others are zero. Lanes t = 0..3 bring a row.
    DEVICE void Load(u32 smem_q, const T* q, int heads, int g, int t)
    {
        __syncwarp();  // the previous segment's readers are done
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            const int head = 8 * n + g;
            const uint4* const row = (const uint4*)(q + min(head, heads - 1) * kHeadDim);
            float plain = 0.f, biased = 0.f;
#pragma unroll
            for (int c = 0; c < Tile::kRowChunks; c += 4) {
                // neighbouring rows of whole lines take different halves of a line
                const int chunk = (Tile::kRowChunks % 8 == 0 ? c ^ g % 2 * 4 : c) + t;
                const uint4 w = head < heads ? row[chunk] : make_uint4(0, 0, 0, 0);
                st_shared_v4(smem_q + Tile::Layout::offset(head * Tile::kRowChunks + chunk), {w.x, w.y, w.z, w.w});
                if constexpr (kQuantised) {
                    const float first = both(w.x) + both(w.z), second = both(w.y) + both(w.w);
                    plain += first + second;
                    biased -= Codes<T, kBits>::kBias[0] * first + Codes<T, kBits>::kBias[1] * second;
                }
            }
            if constexpr (kQuantised) {
                OfHeads(sum[n], plain, t);
                OfHeads(bias[n], biased, t);
            }
        }
        __syncwarp();
    }

private:
    static DEVICE float both(u32 x) { return low_to_float<T>(x) + high_to_float<T>(x); }

    // Lanes 4 g + t bring parts of head g's value; a lane gets those of its own four heads.
    static DEVICE void OfHeads(float (&d)[4], float x, int t)
    {
        x += __shfl_xor_sync(kFullWarp, x, 1);
        x += __shfl_xor_sync(kFullWarp, x, 2);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            d[e] = __shfl_sync(kFullWarp, x, 4 * (e / 2 * 4 + (t & 2) + e % 2));
        }
    }
};
