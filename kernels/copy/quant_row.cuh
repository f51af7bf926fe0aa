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

    // `source` into row `row` of the token, by kLanes lanes; `lane` is one of them. Every lane of the warp takes part; those that are not
    // active have no source.
    template<class Params>
    static DEVICE void Store(const Params& p, const Layout& layout, const TokenPlace& at, int row, const T* source, bool active, int lane)
    {
        u32 x[4] = {};
        if (active) {
            const uint4 v = ((const uint4*)source)[lane];
            x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
        }
        const RowQuantiser<T, kBits, kLanes> quantiser(x, active);
        if (active) {
            u32 codes[kCodeWords];
            quantiser.Codes(codes, x);
#pragma unroll
            for (int i = 0; i < kCodeWords; ++i) {
                ((u32*)QuantRow::data(p, layout, at, row))[lane * kCodeWords + i] = codes[i];
            }
            if (lane == 0) {
                *QuantRow::param(p, layout, at, row) = quantiser.param;
            }
        }
    }
};
