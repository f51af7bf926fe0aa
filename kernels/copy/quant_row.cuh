// A row of T on its way into a quantised cache, eight dims a lane.
#pragma once

#include "copy/token.cuh"
#include "quant/quantise.cuh"

template<class Layout>
struct QuantRow: TokenRows<Layout> {
    using Config = typename Layout::Config;
    using T = typename Config::T;
    static constexpr int kBits = Config::kBits;
    static constexpr int kUsedLanes = Config::kHeadDim / 8;
    static constexpr int kLanes = kUsedLanes <= 8 ? 8 : kUsedLanes <= 16 ? 16 : 32;  // of a row
    static constexpr int kCodeWords = kBits / 4;                                     // of a lane
    static constexpr int kWarpRows = kWarpSize / kLanes;

    // Eight dims of a row of T as its codes and (scale, zero), by kLanes lanes of which `lane` is one. Every lane of the warp takes part;
    // those that are not active bring nothing.
    static DEVICE void Store(char* codes_of_row, u32* param, uint4 dims, bool active, int lane)
    {
        const u32 x[4] = {dims.x, dims.y, dims.z, dims.w};
        const RowQuantiser<T, kBits, kLanes> quantiser(x, active);
        if (active) {
            u32 codes[kCodeWords];
            quantiser.Codes(codes, x);
#pragma unroll
            for (int i = 0; i < kCodeWords; ++i) {
                ((u32*)codes_of_row)[lane * kCodeWords + i] = codes[i];
            }
            if (lane == 0) {
                *param = quantiser.param;
            }
        }
    }
};
