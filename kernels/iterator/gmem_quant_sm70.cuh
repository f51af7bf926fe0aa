// The same for quantised caches: a row's codes and its parameters wait in registers together, and become elements of T on their way to
// shared memory, once for all warps of the CTA.
#pragma once

#include "iterator/gmem_sm70.cuh"
#include "quant/codes.cuh"

// Codes of what becomes a chunk of T: Save makes it. Rows past the end hold zeros in codes and parameters, and become zeros.
template<class T, int kBits, class Map, class SmemLayout, int Index>
struct Sm70CodeIterator: BaseGmemIterator<T, Map, SmemLayout>, Sm70RowLoader<Map, Index, kBits / 4, kBits> {
    using Loader = Sm70RowLoader<Map, Index, kBits / 4, kBits>;
    using typename Loader::Fragment;

    explicit DEVICE Sm70CodeIterator(int thread): Loader(thread) {}

    DEVICE void Save(const Fragment& codes, const u32 (&params)[Map::kIterS][1]) const
    {
        if (!Map::active(this->row_)) {
            return;
        }
#pragma unroll
        for (int i = 0; i < Map::kIterS; ++i) {
            u32 d[4];
            dequantise<T, kBits>(d, codes[i], params[i][0]);
            st_shared_v4(SmemLayout::down(this->smem_, i * Map::kRowsPerIter), d);
        }
    }
};

template<class T, int kBits, class Map, class SmemLayout, int Index>
struct Sm70QuantGmemIterator
    : CombinedIterator<Sm70CodeIterator<T, kBits, Map, SmemLayout, Index>, Sm70RowLoader<Map, Index + kKeyParam, 1, 0>> {
    using Codes = Sm70CodeIterator<T, kBits, Map, SmemLayout, Index>;
    using Params = Sm70RowLoader<Map, Index + kKeyParam, 1, 0>;
    using Combined = CombinedIterator<Codes, Params>;
    using typename Combined::Fragment;

    explicit DEVICE Sm70QuantGmemIterator(int thread): Combined{Codes(thread), Params(thread)} {}

    DEVICE void SetSmem(u32 tile, int thread)
    {
        this->iterator0_.smem_ = tile + SmemLayout::offset(Map::offset_s(thread), Map::offset_c(thread));
    }

    DEVICE void Save(const Fragment& frag) const { this->iterator0_.Save(frag.frag0, frag.frag1); }
};
