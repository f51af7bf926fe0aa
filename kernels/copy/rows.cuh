// Rows of T between contiguous arrays and the blocks of a cache that stores T: one CTA a token.
#pragma once

#include "copy/token.cuh"

// `to_pool`: from k, v to the block, else from the block to k, v.
template<bool to_pool, class Layout, class Params>
DEVICE void copy_token(const Params& p, int token, const TokenPlace& at, int thread, int threads)
{
    using Rows = TokenRows<Layout>;
    constexpr int kRowChunks = Layout::Config::kRowChunks;
    const Layout layout = Layout::of(p);
    for (int i = thread; i < Rows::count(p) * kRowChunks; i += threads) {
        const int row = i / kRowChunks, chunk = i % kRowChunks;
        uint4* const outside = (uint4*)Rows::contiguous(p, token, row) + chunk;
        uint4* const cached = (uint4*)Rows::data(p, layout, at, row) + chunk;
        if (to_pool) {
            *cached = *outside;
        }
        else {
            *outside = *cached;
        }
    }
}
