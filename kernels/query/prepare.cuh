// What rows of q, k and v go through on their way in: bias, rotation, logn; float32 inside, rounded once.
#pragma once

#include "core/float16.cuh"
#include "ptx/math.cuh"
#include "ptx/memory.cuh"
#include "query/turn.cuh"

// Four dims of a row that stay together, as two words of it, and what they go through; the same for every head of a token.
template<class T, int kHeadDim>
struct RowPart {
    static constexpr int kParts = kHeadDim / 4;  // of a row
    int dim0, dim1;                              // first dims of the words
    bool turns, split;                           // split: the words are the halves of two pairs; else each is a pair
    Turn turn[2];
    float scale;

    // Part `i`; `turning`: of q or k. Its position is its place in the sequence, unless the call brought others.
    template<class Params>
    DEVICE RowPart(const Params& p, int i, bool turning, int b, int token, int position)
    {
        const auto& x = p.extras;
        turns = turning && x.rope_table && 4 * i < x.rope_dim;
        split = turns && !x.rope_interleaved;
        dim0 = split ? 2 * i : 4 * i;
        dim1 = dim0 + (split ? x.rope_dim / 2 : 2);
        scale = 1.f;
        turn[0] = turn[1] = Turn{1.f, 0.f};
        if (turns) {
#pragma unroll
            for (int k = 0; k < 2; ++k) {
                const u64 entry = x.rope_table[(i64)b * x.rope_stride + 2 * i + k];
                const i64 at = x.rope_positions ? x.rope_positions[(i64)(entry & 3) * x.rope_axis_stride + token] : position;
                turn[k] = Turn::of((entry & ~3ull) * (u64)at, x.rope_factor);
            }
        }
    }

    // Queries far out are scaled up.
    template<class Params>
    DEVICE void SetLogn(const Params& p, int position)
    {
        if (p.extras.logn_max_position && position > p.extras.logn_max_position) {
            scale = lg2((float)position) * p.extras.logn_scale;
        }
    }

    // The part of a head's row; `bias`: of that head, or null.
    DEVICE void Apply(u32 (&word)[2], const T* row, const T* bias) const
    {
        word[0] = *(const u32*)(row + dim0);
        word[1] = *(const u32*)(row + dim1);
        float a0 = low_to_float<T>(word[0]), a1 = high_to_float<T>(word[0]);
        float b0 = low_to_float<T>(word[1]), b1 = high_to_float<T>(word[1]);
        if (bias) {
            const u32 first = *(const u32*)(bias + dim0), second = *(const u32*)(bias + dim1);
            a0 += low_to_float<T>(first), a1 += high_to_float<T>(first);
            b0 += low_to_float<T>(second), b1 += high_to_float<T>(second);
        }
        if (split) {
            turn[0].Apply(a0, b0);
            turn[1].Apply(a1, b1);
        }
        else if (turns) {
            turn[0].Apply(a0, a1);
            turn[1].Apply(b0, b1);
        }
        word[0] = Pair<T>::pack(a0 * scale, a1 * scale);
        word[1] = Pair<T>::pack(b0 * scale, b1 * scale);
    }
};

// Decode: the rows of a pack's heads, prepared by one warp, one after the other at `smem`.
template<class T, int kHeadDim, class Params>
DEVICE void prepare_heads(const Params& p, u32 smem, const T* q, int head0, int heads, int b, int token, int position, int lane)
{
    using Part = RowPart<T, kHeadDim>;
    for (int i = lane; i < Part::kParts; i += kWarpSize) {
        Part part(p, i, true, b, token, position);
        part.SetLogn(p, position);
        for (int head = 0; head < heads; ++head) {
            const T* const bias = p.extras.q_bias ? (const T*)p.extras.q_bias + (head0 + head) * kHeadDim : nullptr;
            u32 word[2];
            part.Apply(word, q + head * kHeadDim, bias);
            st_shared(smem + (head * kHeadDim + part.dim0) * (int)sizeof(T), word[0]);
            st_shared(smem + (head * kHeadDim + part.dim1) * (int)sizeof(T), word[1]);
        }
    }
    __syncwarp();
}

// Prefill: the rows of a query tile; those past the sequence's end become zeros.
template<class T, int kHeadDim, int kRows, int kThreads, class SmemLayout, class Params, class Tile>
DEVICE void prepare_tile(const Params& p, const Tile& tile, u32 smem_q, int thread)
{
    using Part = RowPart<T, kHeadDim>;
    const int tokens = 1 << tile.tokens_log2;
    auto address = [&](int row, int dim) { return smem_q + SmemLayout::offset(row, dim / 8) + dim % 8 * (int)sizeof(T); };
    for (int i = thread; i < tokens * Part::kParts; i += kThreads) {
        const int row0 = i / Part::kParts, position = tile.position(row0);
        const bool valid = tile.valid(row0);
        const i64 token = tile.row0 + min(tile.token(row0), tile.qlen - 1);
        Part part(p, i % Part::kParts, true, tile.b, (int)token, position);
        part.SetLogn(p, position);
        for (int row = row0; row < kRows; row += tokens) {
            const int head = tile.head(row);
            u32 word[2] = {0, 0};
            if (valid) {
                const T* const bias = p.extras.q_bias ? (const T*)p.extras.q_bias + head * kHeadDim : nullptr;
                part.Apply(word, (const T*)p.q + token * p.q_stride + head * kHeadDim, bias);
            }
            st_shared(address(row, part.dim0), word[0]);
            st_shared(address(row, part.dim1), word[1]);
        }
    }
}
