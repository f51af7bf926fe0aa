// Scores of keys that a row does not keep become -infinity.
#pragma once

#include "prefill/fragments.cuh"

// Row r of slab i stands d = i * slab_step + r positions after the warp's first row; it keeps the positions [from + d, to + d * step_to),
// counted from that of the tile's first key. A key stands key_step positions after the one before it.
struct Bounds {
    int from, to, step_to, slab_step, key_step;
};

template<class Map, int kSlabs, int kKeySteps, int kDimSteps>
struct PrefillMask: PrefillFragments<Map, kSlabs, kKeySteps, kDimSteps> {
    using typename PrefillFragments<Map, kSlabs, kKeySteps, kDimSteps>::FragS;

    // `from`: some row's keys begin in the tile: those before them are those behind an end, counted from the other side.
    static DEVICE void Mask(FragS& frag_s, const Bounds& bounds, bool from, int lane)
    {
        Hide(frag_s, bounds.to, bounds.step_to, bounds.key_step, bounds.slab_step, lane);
        if (from) {
            Hide(frag_s, 1 - bounds.from, -1, -bounds.key_step, bounds.slab_step, lane);
        }
    }

private:
    // Keys from `end` + d * step on are as if they were not there; key k stands at k * key_step.
    static DEVICE void Hide(FragS& frag_s, int end, int step, int key_step, int slab_step, int lane)
    {
        int place[kSlabs][2];
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                place[i][h] = end + (i * slab_step + Map::row(lane) + Map::kRowStep * h) * step - Map::key(lane) * key_step;
            }
        }
#pragma unroll
        for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
            for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    frag_s[i][j][e] = (j * 8 + e % 2) * key_step >= place[i][e / 2] ? negative_infinity() : frag_s[i][j][e];
                }
            }
        }
    }
};
