// Where a token of a batch is: its sequence, its block, its place there.
#pragma once

#include "block/layout.cuh"

// The sequence that holds `token`: the last b with cu_seqlens[b] <= token.
DEVICE int find_sequence(const int* cu_seqlens, int batch_size, int token)
{
    int lo = 0, hi = batch_size;
    while (hi - lo > 1) {
        const int mid = (lo + hi) / 2;
        if (cu_seqlens[mid] <= token) {
            lo = mid;
        }
        else {
            hi = mid;
        }
    }
    return lo;
}

struct TokenPlace {
    char* block;
    int ti;

    template<class Params>
    DEVICE TokenPlace(const Params& p, int b, int position)
        : block(p.pool + (u64)p.block_bytes * (u32)p.block_table[(i64)b * p.max_blocks + (position >> p.block_len_log2)]),
          ti(position & ((1 << p.block_len_log2) - 1))
    {}
};

// The rows of one token that a CTA moves: K of every head, then V of every head.
template<class Layout>
struct TokenRows {
    using Config = typename Layout::Config;
    using T = typename Config::T;

    template<class Params>
    static DEVICE int count(const Params& p)
    {
        return 2 * p.num_kv_heads;
    }

    // Row `row` of the contiguous array.
    template<class Params>
    static DEVICE T* contiguous(const Params& p, int token, int row)
    {
        const bool is_v = row >= p.num_kv_heads;
        const int head = is_v ? row - p.num_kv_heads : row;
        return (T*)(is_v ? p.v : p.k) + token * (is_v ? p.v_stride : p.k_stride) + head * Config::kHeadDim;
    }

    // Of row `row`, or null.
    template<class Params>
    static DEVICE const T* bias(const Params& p, int row)
    {
        const bool is_v = row >= p.num_kv_heads;
        const T* const bias = (const T*)(is_v ? p.extras.v_bias : p.extras.k_bias);
        return bias ? bias + (is_v ? row - p.num_kv_heads : row) * Config::kHeadDim : nullptr;
    }

    template<class Params>
    static DEVICE char* data(const Params& p, const Layout& layout, const TokenPlace& at, int row)
    {
        const bool is_v = row >= p.num_kv_heads;
        return at.block + (is_v ? layout.v_data(row - p.num_kv_heads, at.ti) : layout.k_data(row, at.ti));
    }

    template<class Params>
    static DEVICE u32* param(const Params& p, const Layout& layout, const TokenPlace& at, int row)
    {
        const bool is_v = row >= p.num_kv_heads;
        return (u32*)(at.block + (is_v ? layout.v_param(row - p.num_kv_heads, at.ti) : layout.k_param(row, at.ti)));
    }
};
