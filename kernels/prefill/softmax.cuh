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

    // The lane's own row, over all lanes: each step halves the rows that a lane still sums up.
    static DEVICE RowSum Finish(const FragRow& frag_l, const Start& start, int lane)
    {
        const int own = Base::own_row(lane);
        const bool odd = own % 2, second = own / 2;
        float l[kSlabs];
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
            l[i] = (odd ? frag_l[i][1] : frag_l[i][0]) + __shfl_xor_sync(kFullWarp, odd ? frag_l[i][0] : frag_l[i][1], Map::kRowLanes[0]);
        }
        constexpr int kLast = kSlabs - 1;
        const float sum = (second ? l[kLast] : l[0]) + __shfl_xor_sync(kFullWarp, second ? l[0] : l[kLast], Map::kRowLanes[1]);
        const float m = second ? (odd ? start.row[kLast][1] : start.row[kLast][0]) : odd ? start.row[0][1] : start.row[0][0];
        return {sum > 0.f ? -m : negative_infinity(), sum};
    }

private:
    static DEVICE float Sum(float l)
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
                const bool seen = Sum(frag_l[i][h]) > 0.f;  // else any first reference will do, a lower one, too
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
