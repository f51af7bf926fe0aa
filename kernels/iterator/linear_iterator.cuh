// LinearIterator: contiguous K and V of one (sequence, KV head) as a row of tiles; the interface of BlockIterator, for CTAs.
#pragma once

#include "iterator/block_iterator.cuh"

template<class BlockHead_, int CTA_S>
struct LinearIterator {
    using BlockHead = BlockHead_;
    static constexpr bool kContiguous = false;
    const char *k_, *v_;             // the sequence's first rows
    int k_row_bytes_, v_row_bytes_;  // from one token to the next
    int tile_;

    DEVICE void SetTile(int tile, int) { tile_ = tile; }

    // Tiles are visited from the last to the first.
    DEVICE void Advance(int len)
    {
        if (tile_ > 0) {
            SetTile(tile_ - 1, len);
        }
    }

    DEVICE bool OneBlock() const { return true; }

    template<int Index>
    DEVICE int RowBytes() const
    {
        return Index == kKeyData ? k_row_bytes_ : v_row_bytes_;
    }

    // The address of row `row` of the tile, `bytes` further on.
    template<int Index>
    DEVICE const char* OffsetPtr(int row, int bytes = 0) const
    {
        return (Index == kKeyData ? k_ : v_) + (i64)(tile_ * CTA_S + row) * RowBytes<Index>() + bytes;
    }

    // Never asked, for there is one block.
    DEVICE int Find(int) const { return 0; }

    template<int Index>
    DEVICE const char* PtrIn(int, int row, int bytes) const
    {
        return OffsetPtr<Index>(row, bytes);
    }
};

template<class T, class Head, int CTA_S>
struct LinearIteratorFactory {
    using Iterator = LinearIterator<Head, CTA_S>;

    template<class Params>
    static DEVICE Iterator Create(const Params& p, int batch_idx, int head_idx)
    {
        const i64 first = p.cu_seqlens_k[batch_idx], offset = head_idx * Head::Config::kHeadDim;
        return {(const char*)((const T*)p.k + first * p.k_stride + offset), (const char*)((const T*)p.v + first * p.v_stride + offset),
                (int)(p.k_stride * sizeof(T)), (int)(p.v_stride * sizeof(T)), 0};
    }
};

template<class T, class Tkv, int CTA_S, int kHeadDim>
using GetLinearIterFactory = LinearIteratorFactory<T, block::Head<block::Layout<block::Config<T, Tkv, kHeadDim>>>, CTA_S>;
