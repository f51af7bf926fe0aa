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

// The coefficients come from Python's BlockLayout, already for one layer.
template<class Config_>
struct Layout {
    using Config = Config_;
    int k_base, v_base, head_bytes;
    int k_param_base, v_param_base, param_head_bytes;

    template<class Params>
    static DEVICE Layout of(const Params& p)
    {
        return {p.k_base, p.v_base, p.head_bytes, p.k_param_base, p.v_param_base, p.param_head_bytes};
    }

    DEVICE int k_data(int head, int token) const { return k_base + head * head_bytes + token * Config::kRowBytes; }
    DEVICE int v_data(int head, int token) const
    {
        return k_data(head, token) + (v_base - k_base);  // K and V differ by a constant: one address serves both
    }
    DEVICE int k_param(int head, int token) const { return k_param_base + head * param_head_bytes + token * Config::kParamBytes; }
    DEVICE int v_param(int head, int token) const { return k_param(head, token) + (v_param_base - k_param_base); }
};

template<class Layout_>
struct Head {
    using Layout = Layout_;
    using Config = typename Layout::Config;
    Layout layout;
    int head;

    DEVICE char* k_data(char* block, int token) const { return block + layout.k_data(head, token); }
    DEVICE char* v_data(char* block, int token) const { return k_data(block, token) + (layout.v_base - layout.k_base); }
    DEVICE char* k_param(char* block, int token) const { return block + layout.k_param(head, token); }
    DEVICE char* v_param(char* block, int token) const { return k_param(block, token) + (layout.v_param_base - layout.k_param_base); }
};

}  // namespace block
