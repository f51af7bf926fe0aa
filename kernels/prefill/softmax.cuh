// Scores of a tile to probabilities: references of the rows, their sums, and what O does when a reference moves.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "prefill/mask.cuh"

// What is added to a row's scores in units of log2: -m for the row's reference m; 0 until the row has seen a key.
template<int kSlabs>
struct RowStart {
    float row[kSlabs][2];
    bool fresh;  // a row of the lane has seen no key

    DEVICE RowStart(): fresh(true)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
            row[i][0] = row[i][1] = 0.f;
        }
    }
};

template<class T, class Map, int kSlabs, int kKeySteps, int kDimSteps>
struct PrefillSoftmax: PrefillMask<Map, kSlabs, kKeySteps, kDimSteps> {
    using Base = PrefillMask<Map, kSlabs, kKeySteps, kDimSteps>;
    using typename Base::FragO;
    using typename Base::FragRow;
    using typename Base::FragS;
    using Start = RowStart<kSlabs>;

    // Scores become exponents: in units of log2, counted from their rows' references; where one outgrew its reference, that moves, and O and l
    // with it. Exponents that did are positive, and the bits of positive numbers are ordered as they are.
    static DEVICE void MoveReference(FragS& frag_s, FragO& frag_o, Start& start, FragRow& frag_l, float qk_scale)
    {
        int top = 0;
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    frag_s[i][j][e] = fmaf(frag_s[i][j][e], qk_scale, start.row[i][e / 2]);
                }
                top = max(max(top, __float_as_int(frag_s[i][j][0])), __float_as_int(frag_s[i][j][1]));
                top = max(max(top, __float_as_int(frag_s[i][j][2])), __float_as_int(frag_s[i][j][3]));
            }
        }
        if (__any_sync(kFullWarp, top > __float_as_int(kLazyLimit) || start.fresh)) {  // rare
            Rescale(frag_s, frag_o, start, frag_l);
        }
    }

    // Row h of a pair array as probabilities, which join l.
    static DEVICE u32 Exponentials(const float (&s)[4], int h, float& l)
    {
        const float x = ex2(s[2 * h]), y = ex2(s[2 * h + 1]);
        l += x;
        l += y;
        return Pair<T>::pack(x, y);
    }

    // The rows' references, in units of log2 (-inf where no key was seen), and their sums over all lanes.
    static DEVICE void Finish(FragRow& frag_m, FragRow& frag_l, const Start& start)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                frag_l[i][h] = RowSum(frag_l[i][h]);
                frag_m[i][h] = frag_l[i][h] > 0.f ? -start.row[i][h] : negative_infinity();
            }
        }
    }

private:
    static DEVICE float RowSum(float l)
    {
        l += __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[0]);
        return l + __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[1]);
    }

    static DEVICE float RowTop(const float (&s)[2 * kKeySteps][4], int h)
    {
        float v = negative_infinity();
#pragma unroll
        for (int j = 0; j < 2 * kKeySteps; ++j) {
            v = fmaxf(v, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        }
        v = fmaxf(v, __shfl_xor_sync(kFullWarp, v, Map::kRowLanes[0]));
        return fmaxf(v, __shfl_xor_sync(kFullWarp, v, Map::kRowLanes[1]));
    }

    static DEVICE void Shift(FragS& frag_s, const FragRow& up)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    frag_s[i][j][e] += up[i][e / 2];
                }
            }
        }
    }

    static DEVICE void Rescale(FragS& frag_s, FragO& frag_o, Start& start, FragRow& frag_l)
    {
        bool fresh = false;
        FragRow down;
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float top = RowTop(frag_s[i], h);
                const bool seen = RowSum(frag_l[i][h]) > 0.f;  // else any first reference will do, a lower one, too
                const float up = seen ? fmaxf(top, 0.f) : top == negative_infinity() ? 0.f : top;
                const float factor = seen ? ex2(-up) : 1.f;
                fresh |= !seen && top == negative_infinity();
                down[i][h] = -up;
                start.row[i][h] -= up;
                frag_l[i][h] *= factor;
#pragma unroll
                for (int j = 0; j < 2 * kDimSteps; ++j) {
                    frag_o[i][j][2 * h] *= factor;
                    frag_o[i][j][2 * h + 1] *= factor;
                }
            }
        }
        start.fresh = fresh;
        Shift(frag_s, down);
    }
};
