// Rows of T between contiguous arrays and the blocks of a quantised cache: one CTA a token, eight dims a lane.
#pragma once

#include "copy/quant_row.cuh"
#include "ptx/memory.cuh"
#include "quant/codes.cuh"
#include "query/prepare.cuh"

template<class Layout>
struct QuantRows: QuantRow<Layout> {
    using Config = typename Layout::Config;
    using T = typename Config::T;
    static constexpr int kWarpRows = QuantRow<Layout>::kWarpRows;
    static constexpr int kWarpBytes = kWarpRows * Config::kHeadDim * (int)sizeof(T);

    // The rows first .. first + kWarpRows - 1 through bias and rotation into `smem`, by one warp.
    template<class Params>
    static DEVICE void Prepare(const Params& p, int b, int token, int position, int first, u32 smem, int lane)
    {
        using Part = RowPart<T, Config::kHeadDim>;
        __syncwarp();  // the last rows have been read
#pragma unroll 1
        for (int all = 0; all < kWarpRows * Part::kParts; all += kWarpSize) {  // a uniform loop: barriers' registers are few
            const int i = all + lane, row = i / Part::kParts;
            if (i < kWarpRows * Part::kParts && first + row < QuantRows::count(p)) {
                const Part part(p, i % Part::kParts, first + row < p.num_kv_heads, b, token, position);
                u32 word[2];
                part.Apply(word, QuantRows::contiguous(p, token, first + row), QuantRows::bias(p, first + row));
                st_shared(smem + (row * Config::kHeadDim + part.dim0) * (int)sizeof(T), word[0]);
                st_shared(smem + (row * Config::kHeadDim + part.dim1) * (int)sizeof(T), word[1]);
            }
        }
        __syncwarp();
    }
};

// `smem`: kWarpBytes a warp, for rows that change on their way in.
template<class Layout, class Params>
DEVICE void quantise_token(const Params& p, int b, int token, int position, const TokenPlace& at, char* smem, int thread, int threads)
{
    using Rows = QuantRows<Layout>;
    const Layout layout = Layout::of(p);
    const int lane = thread % Rows::kLanes, count = Rows::count(p);
    for (int first = 0; first < count; first += threads / Rows::kLanes) {  // every lane takes part in the shuffles
        const int row = first + thread / Rows::kLanes;
        const bool active = row < count && lane < Rows::kUsedLanes;
        const typename Rows::T* source = active ? Rows::contiguous(p, token, row) : nullptr;
        if (p.extras.prepare) {
            char* const own = smem + thread / kWarpSize * Rows::kWarpBytes;
            const int first_row = first + thread / kWarpSize * Rows::kWarpRows;
            Rows::Prepare(p, b, token, position, first_row, shared_address(own), thread % kWarpSize);
            source = (const typename Rows::T*)own + (row - first_row) * Rows::Config::kHeadDim;
        }
        const uint4 dims = active ? ((const uint4*)source)[lane] : make_uint4(0, 0, 0, 0);
        Rows::Store(Rows::data(p, layout, at, row), Rows::param(p, layout, at, row), dims, active, lane);
    }
}

template<class Layout, class Params>
DEVICE void dequantise_token(const Params& p, int token, const TokenPlace& at, int thread, int threads)
{
    using Rows = QuantRows<Layout>;
    const Layout layout = Layout::of(p);
    for (int i = thread; i < Rows::count(p) * Rows::kUsedLanes; i += threads) {
        const int row = i / Rows::kUsedLanes, lane = i % Rows::kUsedLanes;
        u32 codes[Rows::kCodeWords], d[4];
#pragma unroll
        for (int k = 0; k < Rows::kCodeWords; ++k) {
            codes[k] = ((const u32*)Rows::data(p, layout, at, row))[lane * Rows::kCodeWords + k];
        }
        dequantise<typename Rows::T, Rows::kBits>(d, codes, *Rows::param(p, layout, at, row));
        ((uint4*)Rows::contiguous(p, token, row))[lane] = make_uint4(d[0], d[1], d[2], d[3]);
    }
}
