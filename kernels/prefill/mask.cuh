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

    // `from`: some row's keys begin in the tile.
    static DEVICE void Mask(FragS& frag_s, const Bounds& bounds, bool from, int lane)
    {
        Hide(frag_s, bounds.to, bounds.step_to, bounds, lane, [](int key, int to) { return key >= to; });
        if (from) {
            Hide(frag_s, bounds.from, 1, bounds, lane, [](int key, int from) { return key < from; });
        }
    }

private:
    // The keys that `hidden` names by their place and the row's bound are as if they were not there.
    template<class Hidden>
    static DEVICE void Hide(FragS& frag_s, int bound, int step, const Bounds& bounds, int lane, Hidden&& hidden)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                int place = bound + (i * bounds.slab_step + Map::row(lane) + Map::kRowStep * h) * step;
                if (bounds.key_step > 1) {
                    const int step = opaque(bounds.key_step);  // nothing of the division is worth a register of the main loop
                    place = (u32)(max(place, 0) + step - 1) / (u32)step;
                }
                place -= Map::key(lane);
#pragma unroll
                for (int j = 0; j < 2 * kKeySteps; ++j) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        if (hidden(j * 8 + e, place)) {
                            frag_s[i][j][2 * h + e] = negative_infinity();
                        }
                    }
                }
            }
        }
    }
};
