// Rows of T between contiguous arrays and the blocks of a cache that stores T: one CTA a token.
#pragma once

#include "copy/token.cuh"
#include "query/prepare.cuh"

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

// Into the block, through bias and rotation: a thread takes the same four dims of several heads.
template<class Layout, class Params>
DEVICE void prepare_token(const Params& p, int b, int token, int position, const TokenPlace& at, int thread, int threads)
{
    using Rows = TokenRows<Layout>;
    using T = typename Rows::T;
    using Part = RowPart<T, Layout::Config::kHeadDim>;
    const Layout layout = Layout::of(p);
    const int teams = threads / Part::kParts;
    if (thread >= teams * Part::kParts) {
        return;
    }
    for (int is_v = 0; is_v < 2; ++is_v) {
        const Part part(p, thread % Part::kParts, !is_v, b, token, position);
        for (int head = thread / Part::kParts; head < p.num_kv_heads; head += teams) {
            const int row = is_v * p.num_kv_heads + head;
            u32 word[2];
            part.Apply(word, Rows::contiguous(p, token, row), Rows::bias(p, row));
            T* const cached = (T*)Rows::data(p, layout, at, row);
            *(u32*)(cached + part.dim0) = word[0];
            *(u32*)(cached + part.dim1) = word[1];
        }
    }
}
