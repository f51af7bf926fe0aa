// Partial results of the same queries over different keys, merged by log-sum-exp: one warp a (token, head).
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"

template<class T, int kHeadDim, class Params>
DEVICE void merge_row(const Params& p, i64 row, int lane)
{
    float top = negative_infinity();
    for (int i = 0; i < p.num_splits; ++i) {
        top = fmaxf(top, p.merge_lses[i][row]);
    }
    float sum = 0.f;
    float o[kHeadDim / kWarpSize] = {};
    for (int i = 0; i < p.num_splits; ++i) {
        const float lse = p.merge_lses[i][row];
        if (lse == negative_infinity()) {  // a part without keys weighs nothing
            continue;
        }
        const float weight = ex2((lse - top) * kLog2e);
        const T* const part = (const T*)p.merge_outs[i] + row * kHeadDim;
        sum += weight;
#pragma unroll
        for (int k = 0; k < kHeadDim / kWarpSize; ++k) {
            o[k] += weight * to_float(part[k * kWarpSize + lane]);
        }
    }
    const float scale = sum > 0.f ? 1.f / sum : 0.f;
#pragma unroll
    for (int k = 0; k < kHeadDim / kWarpSize; ++k) {
        ((u16*)p.out)[row * kHeadDim + k * kWarpSize + lane] = (u16)Pair<T>::pack(o[k] * scale, 0.f);
    }
    if (lane == 0) {
        p.lse[row] = sum > 0.f ? top + lg2(sum) * kLn2 : top;
    }
}
