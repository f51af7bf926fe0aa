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

    static constexpr int kRows = kSlabs * 2;  // of a lane
    static_assert(kRows == 2 || kRows == 4);

    static DEVICE void Clear(FragO& frag_o, FragRow& frag_l)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kDimSteps; ++j) {
                frag_o[i][j][0] = frag_o[i][j][1] = frag_o[i][j][2] = frag_o[i][j][3] = 0.f;
            }
            frag_l[i][0] = frag_l[i][1] = 0.f;
        }
    }

    static DEVICE void FillScores(FragS& frag_s, float x)
    {
#pragma unroll
        for (int i = 0; i < kSlabs; ++i) {
#pragma unroll
            for (int j = 0; j < 2 * kKeySteps; ++j) {
                frag_s[i][j][0] = frag_s[i][j][1] = frag_s[i][j][2] = frag_s[i][j][3] = x;
            }
        }
    }

    // What is done once a row is done by one of the four lanes that hold it, by two of them where a lane holds two rows only: which of a lane's
    // rows 2 i + h is its own, and which lane owns row n.
    static DEVICE int own_row(int lane) { return (lane & Map::kRowLanes[0] ? 1 : 0) + (kRows == 4 && lane & Map::kRowLanes[1] ? 2 : 0); }
    static DEVICE int owner(int lane, int n)
    {
        return (lane & ~(Map::kRowLanes[0] | Map::kRowLanes[1])) + n % 2 * Map::kRowLanes[0] + n / 2 * Map::kRowLanes[1];
    }
};

// A row's keys so far: its reference in units of log2, -inf where it has seen none, and the sum of their probabilities.
struct RowSum {
    float m, l;
};
