// What scores of a tile go through before the softmax: softcap, ALiBi, the caller's mask; on the scale of q.k.
#pragma once

#include "core/softmax.cuh"

// Impl's fragment: element (slab, 8 keys, 2 half + key) of a lane.
template<class Impl, class Params, class Tile>
DEVICE void adjust_scores(typename Impl::FragS& frag_s, const Params& p, const Tile& query, int warp_row, int key0, int lane)
{
    const bool capped = p.softcap_in != 0.f;
    const u8* const mask = p.extras.mask ? p.extras.mask + p.extras.mask_starts[query.b] : nullptr;
#pragma unroll
    for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = warp_row + i * Impl::kSlabRows + h * 8 + lane / 4, first = key0 + lane % 4 * 2;
            const float slope = alibi_slope(p, query.head(row));
            const int distance = first - query.position(row);
            const u8* const kept = mask ? mask + (i64)min(query.token(row), query.qlen - 1) * query.klen + first : nullptr;
#pragma unroll
            for (int j = 0; j < 2 * Impl::kKeySteps; ++j) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float& s = frag_s[i][j][2 * h + e];
                    s = fmaf(slope, (float)(distance + 8 * j + e), capped ? softcap(p, s) : s);
                    if (kept && (first + 8 * j + e >= query.klen || !kept[8 * j + e])) {
                        s = negative_infinity();
                    }
                }
            }
        }
    }
}
