// What scores of a tile go through before the softmax: softcap, ALiBi, the caller's mask; on the scale of q.k.
#pragma once

#include "core/softmax.cuh"
#include "prefill/kept_keys.cuh"

// Impl's fragment: element e of pair array j of a slab is row e / 2, key 8 j + e % 2 of the lane's own; Impl::Map says where they begin.
// Large softcaps, which are rare: a quarter of the scores at a time, and the array turned by as much, for a quarter of the code.
template<class Impl, class Params>
DEVICE void cap_scores(typename Impl::FragS& frag_s, const Params& p)
{
    constexpr int kPairs = 2 * Impl::kKeySteps, kArrays = Impl::kSlabs * kPairs, kPart = kArrays < 4 ? 1 : kArrays / 4;
    static_assert(kArrays % kPart == 0);
    if (caps_at_once(p)) {
#pragma unroll
        for (int n = 0; n < kArrays; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                float& s = frag_s[n / kPairs][n % kPairs][e];
                s = softcap_at_once(p, s);
            }
        }
        return;
    }
#pragma unroll 1
    for (int turn = 0; turn < kArrays / kPart; ++turn) {
        float capped[kPart][4];
#pragma unroll
        for (int n = 0; n < kArrays; ++n) {
            const int next = (n + kPart) % kArrays;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                float& s = frag_s[n / kPairs][n % kPairs][e];
                if (n < kPart) {
                    capped[n][e] = softcap(p, s);
                }
                s = next < kPart ? capped[next][e] : frag_s[next / kPairs][next % kPairs][e];
            }
        }
    }
}

template<class Impl, class Params, class Tile>
DEVICE void add_alibi(typename Impl::FragS& frag_s, const Params& p, const Tile& query, int row, int first)
{
    const float step = (float)opaque(p.cp_size);
#pragma unroll
    for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float slope = alibi_slope(p, query.head(row + i * Impl::kSlabRows + h * Impl::Map::kRowStep));
            const int position = query.position(row + i * Impl::kSlabRows + h * Impl::Map::kRowStep);
            const float distance = (float)(position_of_key(p, first) - position);
#pragma unroll
            for (int j = 0; j < 2 * Impl::kKeySteps; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    frag_s[i][j][2 * h + e] = fmaf(slope, fmaf((float)(8 * j + e), step, distance), frag_s[i][j][2 * h + e]);
                }
            }
        }
    }
}

template<class Impl, class Params, class Tile>
DEVICE void adjust_scores(typename Impl::FragS& frag_s, const Params& p, const Tile& query, const KeptKeys<Impl>& kept, int warp_row,
                          int key0, int lane)
{
    const int row = warp_row + Impl::Map::row(lane), first = key0 + Impl::Map::key(lane);  // of the lane's first element
    if (p.softcap_in != 0.f) {
        cap_scores<Impl>(frag_s, p);
    }
    if (p.extras.alibi_slopes) {
        add_alibi<Impl>(frag_s, p, query, row, first);
    }
    if (p.extras.mask) {
        kept.Mask(frag_s);
    }
}
