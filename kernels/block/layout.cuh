// One KV block: Config (what is compiled in), Layout (byte offsets, affine in head and token), Head (typed access for one KV head).
#pragma once

#include "core/float16.cuh"

namespace block {

template<class T_, class Tkv_, int kHeadDim_>
struct Config {
    using T = T_;
    using Tkv = Tkv_;
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kBits = bits_of<Tkv>;
    static constexpr bool kQuantised = kBits < 16;
    static constexpr int kRowBytes = kHeadDim * kBits / 8;
    static constexpr int kRowChunks = kRowBytes / kChunkBytes;
    static constexpr int kParamBytes = kQuantised ? 2 * sizeof(T) : 0;  // (scale, zero) of a row
};

// The coefficients come from Python's BlockLayout, already for one layer. V's rows lie at a constant distance from K's: one address serves
// both.
template<class Config_>
struct Layout {
    using Config = Config_;
    int k_base, v_offset, head_bytes;
    int k_param_base, v_param_offset, param_head_bytes;

    template<class Params>
    static DEVICE Layout of(const Params& p)
    {
        return {p.k_base, p.v_offset, p.head_bytes, p.k_param_base, p.v_param_offset, p.param_head_bytes};
    }

    DEVICE int k_data(int head, int token) const { return k_base + head * head_bytes + token * Config::kRowBytes; }
    DEVICE int v_data(int head, int token) const { return k_data(head, token) + v_offset; }
    DEVICE int k_param(int head, int token) const { return k_param_base + head * param_head_bytes + token * Config::kParamBytes; }
    DEVICE int v_param(int head, int token) const { return k_param(head, token) + v_param_offset; }
};

// One KV head's rows in the pool.
template<class Layout_>
struct Head {
    using Layout = Layout_;
    using Config = typename Layout::Config;
    const char* pool;
    u32 block_bytes;
    Layout layout;
    int head;

    template<class Params>
    static DEVICE Head of(const Params& p, int head)
    {
        return {p.pool, p.block_bytes, Layout::of(p), head};
    }

    // The row of a token, `bytes` further on. Offsets add up in 32 bits first: addresses of 64 cost twice.
    DEVICE const char* k_data(int block, int token, int bytes) const { return at(block, layout.k_data(head, token) + bytes); }
    DEVICE const char* v_data(int block, int token, int bytes) const { return k_data(block, token, bytes) + layout.v_offset; }
    DEVICE const char* k_param(int block, int token, int bytes) const { return at(block, layout.k_param(head, token) + bytes); }
    DEVICE const char* v_param(int block, int token, int bytes) const { return k_param(block, token, bytes) + layout.v_param_offset; }

private:
    DEVICE const char* at(int block, int offset) const { return pool + ((u64)block_bytes * (u32)block + (u32)offset); }
};

}  // namespace block
