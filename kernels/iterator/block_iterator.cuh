// BlockIterator: the pages of one (sequence, KV head) as a row of tiles; a tile may lie in one block or span several.
#pragma once

#include "block/layout.cuh"

// Index of OffsetPtr.
constexpr int kKeyData = 0;
constexpr int kValueData = 1;
constexpr int kKeyParam = 2;
constexpr int kValueParam = 3;

constexpr int kMinBlockLen = 16;

// kHeld: parts of a tile whose blocks are held while the tile is current; with one for every 16 rows no row is ever searched.
template<class BlockHead_, int CTA_S, int kHeld = 1>
struct BlockIterator {
    using BlockHead = BlockHead_;
    static constexpr int kParts = kHeld;
    static constexpr int kPartRows = CTA_S / kParts;
    BlockHead block_head_;
    char* pool_;
    i64 block_bytes_;
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
            const int token = tile * CTA_S + i * kPartRows;
            block_[i] = block_table_[(i ? min(token, len - 1) : token) >> block_len_log2_];
        }
    }

    // Tiles are visited from the last to the first.
    DEVICE void Advance(int len)
    {
        if (tile_ > 0) {
            SetTile(tile_ - 1, len);
        }
    }

    // Whether every held part lies in one block.
    DEVICE bool OneBlock() const { return kPartRows <= kMinBlockLen || kPartRows <= 1 << block_len_log2_; }

    // Whether the parts follow each other in one block.
    DEVICE bool Joined() const { return kParts == 1 || CTA_S <= 1 << block_len_log2_; }

    // From one row to the next, in a block.
    template<int Index>
    DEVICE int RowBytes() const
    {
        return Index <= kValueData ? BlockHead::Config::kRowBytes : BlockHead::Config::kParamBytes;
    }

    // The address of row `row` of the tile; rows of a part that lies in one block follow each other.
    template<int Index>
    DEVICE const char* OffsetPtr(int row) const
    {
        return At<Index>(block_[row / kPartRows], tile_ * CTA_S + row);
    }

    // The same for a part that spans blocks: each row looks its block up.
    template<int Index>
    DEVICE const char* SearchPtr(int row) const
    {
        const int token = tile_ * CTA_S + row;
        return At<Index>(block_table_[token >> block_len_log2_], token);
    }

private:
    template<int Index>
    DEVICE const char* At(int block, int token) const
    {
        char* const base = pool_ + block * block_bytes_;
        const int ti = token & ((1 << block_len_log2_) - 1);
        switch (Index) {
        case kKeyData:
            return block_head_.k_data(base, ti);
        case kValueData:
            return block_head_.v_data(base, ti);
        case kKeyParam:
            return block_head_.k_param(base, ti);
        default:
            return block_head_.v_param(base, ti);
        }
    }
};

template<class T, class Tkv, class BlockLayout_, int CTA_S, int kHeld>
struct BlockIteratorFactory {
    using BlockLayout = BlockLayout_;
    using Head = block::Head<BlockLayout>;
    using Iterator = BlockIterator<Head, CTA_S, kHeld>;

    template<class Params>
    static DEVICE Iterator Create(const Params& p, int batch_idx, int head_idx)
    {
        return {Head{BlockLayout::of(p), head_idx},
                p.pool,
                p.block_bytes,
                p.block_table + (i64)batch_idx * p.max_blocks,
                p.block_len_log2,
                0,
                {}};
    }
};

template<class T, class Tkv, int CTA_S, int kHeadDim, int kHeld = 1>
using GetBlockIterFactory = BlockIteratorFactory<T, Tkv, block::Layout<block::Config<T, Tkv, kHeadDim>>, CTA_S, kHeld>;
