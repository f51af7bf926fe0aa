// What a warp's lanes hold of S and O; the same for every mma. A lane holds two rows of a slab of 16 and
// pairs of neighbouring columns: element e of a pair array is row e/2, column e%2. The mma's Map says which rows and columns those are.
#pragma once

#include "core/types.cuh"

// Map: row(lane) + kRowStep h are the lane's rows; 8 j + key(lane) its first key of pair array j; kRowLanes[] what to exchange with to meet
// every lane of a row.
template<class Map_, int kSlabs, int kKeySteps, int kDimSteps>
struct PrefillFragments {
    using Map = Map_;
    using FragS = float[kSlabs][2 * kKeySteps][4];
    using FragO = float[kSlabs][2 * kDimSteps][4];
    using FragRow = float[kSlabs][2];  // one value for each of a lane's rows

    static DEVICE void Clear(FragO& frag_o, FragRow& frag_m, FragRow& frag_l)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kDimSteps; ++j) {
                frag_o[i][j][0] = frag_o[i][j][1] = frag_o[i][j][2] = frag_o[i][j][3] = 0.f;
            }
            frag_m[i][0] = frag_m[i][1] = negative_infinity();
            frag_l[i][0] = frag_l[i][1] = 0.f;
        }
    }
};
