// BlockIterator: the pages of one (sequence, KV head) as a row of tiles; a tile may lie in one block or span several.
#pragma once

#include "block/layout.cuh"
#include "iterator/thread_map.cuh"

// Index of OffsetPtr.
constexpr int kKeyData = 0;
constexpr int kValueData = 1;
constexpr int kKeyParam = 2;
constexpr int kValueParam = 3;

DEVICE constexpr int log2_of(int x)
{
    return x > 1 ? 1 + log2_of(x / 2) : 0;
}

// kHeld: parts of a tile whose blocks are held while the tile is current; with one for every 16 rows no row is ever searched. kJoins: parts that
// follow each other in one block are treated as one, in code of its own.
template<class BlockHead_, int CTA_S, int kHeld = 1, bool kJoins = true>
struct BlockIterator {
    using BlockHead = BlockHead_;
    static constexpr int kParts = kHeld;
    static constexpr int kPartRows = CTA_S / kParts;
    static constexpr bool kContiguous = true;  // rows follow each other in a block
    BlockHead block_head_;
    const int* block_table_;  // of this sequence
    int block_len_log2_;
    int tile_;
    int block_[kHeld];  // indices: looked up when the tile is set, used when it is loaded

    // `len`: keys of the sequence; parts of the tile past its end share the last block.
    DEVICE void SetTile(int tile, int len)
    {
        tile_ = tile;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            if (i == 0 || !Joined()) {
                const int token = tile * CTA_S + i * kPartRows;
                block_[i] = block_table_[(i ? min(token, len - 1) : token) >> block_len_log2_];
            }
        }
    }

    // Tiles are visited from the last to the first.
    DEVICE void Advance(int len)
    {
        if (tile_ > 0) {
            SetTile(tile_ - 1, len);
        }
    }

    // Notes the block of each part even where the parts are joined.
    DEVICE void Part()
    {
#pragma unroll
        for (int i = 1; i < kHeld; ++i) {
            block_[i] = Joined() ? block_[0] : block_[i];
        }
    }

    // Whether every held part lies in one block.
    DEVICE bool OneBlock() const { return kPartRows <= kMinBlockLen || log2_of(kPartRows) <= block_len_log2_; }

    // Whether the parts follow each other in one block.
    DEVICE bool Joined() const { return kParts == 1 || (kJoins && log2_of(CTA_S) <= block_len_log2_); }

    // From one row to the next, in a block.
    template<int Index>
    DEVICE int RowBytes() const
    {
        return Index <= kValueData ? BlockHead::Config::kRowBytes : BlockHead::Config::kParamBytes;
    }

    // The address of row `row` of the tile, `bytes` further on; rows of a part that lies in one block follow each other.
    template<int Index>
    DEVICE const char* OffsetPtr(int row, int bytes = 0) const
    {
        return PtrIn<Index>(block_[row / kPartRows], row, bytes);
    }

    // The block of a row, looked up now.
    DEVICE int Find(int row) const { return block_table_[(tile_ * CTA_S + row) >> block_len_log2_]; }

    // The same in a block that is known.
    template<int Index>
    DEVICE const char* PtrIn(int block, int row, int bytes) const
    {
        const int ti = (tile_ * CTA_S + row) & ((1 << block_len_log2_) - 1);
        switch (Index) {
        case kKeyData:
            return block_head_.k_data(block, ti, bytes);
        case kValueData:
            return block_head_.v_data(block, ti, bytes);
        case kKeyParam:
            return block_head_.k_param(block, ti, bytes);
        default:
            return block_head_.v_param(block, ti, bytes);
        }
    }
};

template<class T, class Tkv, class BlockLayout_, int CTA_S, int kHeld, bool kJoins>
struct BlockIteratorFactory {
    using BlockLayout = BlockLayout_;
    using Head = block::Head<BlockLayout>;
    using Iterator = BlockIterator<Head, CTA_S, kHeld, kJoins>;

    template<class Params>
    static DEVICE Iterator Create(const Params& p, int batch_idx, int head_idx)
    {
        return {Head::of(p, head_idx), p.block_table + (i64)batch_idx * p.max_blocks, p.block_len_log2, 0, {}};
    }
};

template<class T, class Tkv, int CTA_S, int kHeadDim, int kHeld = 1, bool kJoins = true>
using GetBlockIterFactory = BlockIteratorFactory<T, Tkv, block::Layout<block::Config<T, Tkv, kHeadDim>>, CTA_S, kHeld, kJoins>;
