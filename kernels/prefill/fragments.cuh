// What a warp's lanes hold of S and O, and what the softmax does to it; the same for every mma. A lane holds two rows of a slab of 16 and
// pairs of neighbouring columns: element e of a pair array is row e/2, column e%2. The mma's Map says which rows and columns those are.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"

// Map: row(lane) + kRowStep h are the lane's rows; 8 j + key(lane) its first key of pair array j; kRowLanes[] what to exchange with to meet
// every lane of a row.
template<class T, class Map_, int kSlabs, int kKeySteps, int kDimSteps>
struct PrefillFragments {
    using Map = Map_;
    using FragS = float[kSlabs][2 * kKeySteps][4];
    using FragO = float[kSlabs][2 * kDimSteps][4];
    using FragRow = float[kSlabs][2];  // one value for each of a lane's rows

    static DEVICE void Clear(FragO& frag_o, FragRow& frag_m, FragRow& frag_l)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kDimSteps; ++j) {
                frag_o[i][j][0] = frag_o[i][j][1] = frag_o[i][j][2] = frag_o[i][j][3] = 0.f;
            }
            frag_m[i][0] = frag_m[i][1] = negative_infinity();
            frag_l[i][0] = frag_l[i][1] = 0.f;
        }
    }

    // Row r of slab i stands d = i * slab_step + r positions after the warp's first row; it keeps the positions [from + d, to + d * step_to),
    // counted from that of the tile's first key. A key stands key_step positions after the one before it.
    struct Bounds {
        int from, to, step_to, slab_step, key_step;
    };

    static DEVICE void Mask(FragS& frag_s, const Bounds& bounds, int lane)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int down = i * bounds.slab_step + Map::row(lane) + Map::kRowStep * h, first = Map::key(lane);
                int from = bounds.from + down, to = bounds.to + down * bounds.step_to;
                if (bounds.key_step > 1) {
                    const int step = opaque(bounds.key_step);  // nothing of the division is worth a register of the main loop
                    from = (max(from, 0) + step - 1) / step;
                    to = (max(to, 0) + step - 1) / step;
                }
                from -= first, to -= first;
#pragma unroll
                for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        const int key = j * 8 + e;
                        if (key < from || key >= to) {
                            frag_s[i][j][2 * h + e] = negative_infinity();
                        }
                    }
                }
            }
        }
    }

    // Moves the running maximum of the rows (unscaled) where a score outgrew it, and O and l with it.
    static DEVICE void MoveReference(FragS& frag_s, FragO& frag_o, FragRow& frag_m, FragRow& frag_l, float qk_scale)
    {
        FragRow top;
        bool outgrown = false;
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float v = fmaxf(frag_s[i][0][2 * h], frag_s[i][0][2 * h + 1]);
#pragma unroll
                for (int j = 1; j < 2 * kKeySteps; ++j) {
                    v = fmaxf(v, fmaxf(frag_s[i][j][2 * h], frag_s[i][j][2 * h + 1]));
                }
                top[i][h] = v;
                outgrown |= (v - frag_m[i][h]) * qk_scale > kLazyLimit;
            }
        }
        if (__any_sync(kFullWarp, outgrown)) {  // rare
            Rescale(top, frag_o, frag_m, frag_l, qk_scale);
        }
    }

    // What the exponents of the rows are counted from: 0 where no key has been seen.
    static DEVICE void Reference(FragRow& reference, const FragRow& frag_m, float qk_scale)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                reference[i][h] = frag_m[i][h] == negative_infinity() ? 0.f : frag_m[i][h] * qk_scale;
            }
        }
    }

    // Row h of a pair array as probabilities, which join l.
    static DEVICE u32 Exponentials(const float (&s)[4], int h, float& l, float qk_scale, float reference)
    {
        const float x = ex2(fmaf(s[2 * h], qk_scale, -reference)), y = ex2(fmaf(s[2 * h + 1], qk_scale, -reference));
        l += x;
        l += y;
        return Pair<T>::pack(x, y);
    }

private:
    static DEVICE void Rescale(const FragRow& top, FragO& frag_o, FragRow& frag_m, FragRow& frag_l, float qk_scale)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float v = top[i][h];
                v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, Map::kRowLanes[0]));
                v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, Map::kRowLanes[1]));
                v = fmaxf(v, frag_m[i][h]);
                const float down = v == negative_infinity() ? 1.f : ex2((frag_m[i][h] - v) * qk_scale);
                frag_m[i][h] = v;
                frag_l[i][h] *= down;
#pragma unroll
                for (int j = 0; j < 2 * kDimSteps; ++j) {
                    frag_o[i][j][2 * h] *= down;
                    frag_o[i][j][2 * h + 1] *= down;
                }
            }
        }
    }
};
