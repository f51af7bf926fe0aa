// What rows of q, k and v go through on their way in: bias, rotation, logn; float32 inside, rounded once.
#pragma once

#include "core/float16.cuh"
#include "ptx/math.cuh"
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

// The queries of a token, to where attention will read them: a thread turns the same dims of several heads.
template<class T, int kHeadDim, class Params>
DEVICE void prepare_queries(const Params& p, int b, int token, int position, int thread, int threads)
{
    using Part = RowPart<T, kHeadDim>;
    const int teams = threads / Part::kParts;
    if (thread >= teams * Part::kParts) {
        return;
    }
    Part part(p, thread % Part::kParts, true, b, token, position);
    part.SetLogn(p, position);
    for (int head = thread / Part::kParts; head < p.num_heads; head += teams) {
        const int row = head * kHeadDim;
        u32 word[2];
        part.Apply(word, (const T*)p.q + token * p.q_stride + row, p.extras.q_bias ? (const T*)p.extras.q_bias + row : nullptr);
        T* const out = (T*)p.out + token * p.out_stride + row;
        *(u32*)(out + part.dim0) = word[0];
        *(u32*)(out + part.dim1) = word[1];
    }
}
