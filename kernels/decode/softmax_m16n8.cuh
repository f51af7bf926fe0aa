// A warp's softmax over a tile of kKeyTiles * 16 keys. Scores stand as the accumulators of S^T: element i of key tile m, head tile n is
// key 2 kKeyTiles g + 2m + i/2, head 8n + 2t + i%2.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "ptx/ldmatrix.cuh"

// kOTiles: accumulator tiles of O, and of what is scaled and summed up with it.
template<class T, int kKeyTiles, int kHeadTiles, int kOTiles>
struct DecodeSoftmax {
    static constexpr int kKeys = 16 * kKeyTiles;
    static constexpr int kLaneKeys = 2 * kKeyTiles;  // keys of a lane follow each other

    static constexpr float kShift = 4.f;

    using FragS = float[kKeyTiles][kHeadTiles][4];
    using FragP = u32[kHeadTiles][kLaneKeys];     // B: keys 2 kLaneKeys t + n and + kLaneKeys of head g
    using FragO = float[kOTiles][kHeadTiles][4];  // (first dim, heads 2t and 2t + 1), (second dim, ...)
    using FragL = float[kHeadTiles][4];           // of heads 2t, 2t + 1, of the lane's own keys until Finish: sums of p * zero; sums of p
    using FragM = float[kHeadTiles][2];           // references of heads 2t, 2t + 1, log2 units

    // What is known of a segment, or of a warp's part of it.
    struct State {
        FragO frag_o;
        FragL frag_l;
        FragM frag_m;

        DEVICE void Clear()
        {
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
                frag_m[n][0] = frag_m[n][1] = 0.f;
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    frag_l[n][e] = 0.f;
#pragma unroll
                    for (int i = 0; i < kOTiles; ++i) {
                        frag_o[i][n][e] = 0.f;
                    }
                }
            }
        }

        // For the end: head `e` of two that a lane has in head tile n, its dims in pairs, and which lane tells its m and l.
        static DEVICE int head(int n, int e, int, int t) { return 8 * n + 2 * t + e; }
        static DEVICE bool tells(int g, int) { return g == 0; }
        DEVICE float2 pair(int i, int n, int e) const { return make_float2(frag_o[i][n][e], frag_o[i][n][2 + e]); }
        DEVICE float m(int n, int e) const { return frag_m[n][e]; }
        DEVICE float l(int n, int e) const { return frag_l[n][2 + e]; }
    };

    // Softcap and ALiBi, on the scale of q.k.
    template<class Params, class Place>
    static DEVICE void Adjust(FragS& frag_s, const Params& p, int first_head, const Place& place, int to, int g, int t)
    {
        if (p.softcap_in != 0.f) {
#pragma unroll
            for (int m = 0; m < kKeyTiles; ++m) {
#pragma unroll
                for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        frag_s[m][n][i] = softcap(p, frag_s[m][n][i]);
                    }
                }
            }
        }
        if (p.extras.alibi_slopes) {
            const float first = distance_from_query(p, place, kLaneKeys * g - to), step = (float)opaque(p.cp_size);
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float slope = alibi_slope(p, min(first_head + 8 * n + 2 * t + e, p.num_heads - 1));
#pragma unroll
                    for (int k = 0; k < kLaneKeys; ++k) {
                        float& s = frag_s[k / 2][n][k % 2 * 2 + e];
                        s = fmaf(slope, fmaf((float)k, step, first), s);
                    }
                }
            }
        }
    }

    // Keys outside [from, to), of those that are computed together, get probability 0.
    static DEVICE void Mask(FragS& frag_s, int from, int to, int g)
    {
        constexpr float kMasked = -1e38f;
#pragma unroll
        for (int m = 0; m < kKeyTiles; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = kLaneKeys * g + 2 * m + i / 2;
                if (key < from || key >= to) {
#pragma unroll
                    for (int n = 0; n < kHeadTiles; ++n) {
                        frag_s[m][n][i] = kMasked;
                    }
                }
            }
        }
    }

    // What such keys' values are multiplied with, which may be NaN, that a zero probability would not silence, becomes zero.
    static DEVICE void Mask(float (&factor)[kLaneKeys], int from, int to, int g)
    {
#pragma unroll
        for (int k = 0; k < kLaneKeys; ++k) {
            const int key = kLaneKeys * g + k;
            factor[k] = key < from || key >= to ? 0.f : factor[k];
        }
    }

    // The largest score's bits, if one is positive: those of positive numbers are ordered as they are. Three meet in one instruction.
    static DEVICE int top_bits(const FragS& frag_s)
    {
        constexpr int kScores = 4 * kHeadTiles * kKeyTiles;
        int v[kScores];
#pragma unroll
        for (int i = 0; i < kScores; ++i) {
            v[i] = __float_as_int(frag_s[i / 4 / kHeadTiles][i / 4 % kHeadTiles][i % 4]);
        }
#pragma unroll
        for (int left = kScores; left > 1; left = (left + 2) / 3) {
#pragma unroll
            for (int i = 0; i < left; i += 3) {
                v[i / 3] = max(max(v[i], v[min(i + 1, left - 1)]), v[min(i + 2, left - 1)]);
            }
        }
        return v[0];
    }

    // Scores are relative to the reference. Whether, in any lane, one outgrew it, or `besides` says that there is something to do: all that is
    // rare waits behind one branch.
    static DEVICE bool Outgrown(const FragS& frag_s, bool besides)
    {
        return __any_sync(kFullWarp, top_bits(frag_s) > __float_as_int(kLazyLimit) || besides);
    }

    // The reference moves, and O and l with it, so that no probability is above 2^kShift, or 2^(kShift - lower) if any lane says so. `fresh`: the
    // first keys of a segment, whose reference is still 0 and takes any value: the largest probability then is that.
    static DEVICE void MoveReference(FragS& frag_s, State& state, bool fresh, bool lowered = false, float lower = 0.f)
    {
        const float shift = __any_sync(kFullWarp, lowered) ? kShift - lower : kShift;
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
            float down[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                float top = fmaxf(frag_s[0][n][e], frag_s[0][n][2 + e]);
#pragma unroll
                for (int m = 1; m < kKeyTiles; ++m) {
                    top = fmaxf(top, fmaxf(frag_s[m][n][e], frag_s[m][n][2 + e]));
                }
#pragma unroll
                for (int k = 4; k < kWarpSize; k <<= 1) {
                    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, k));
                }
                const float up = fresh ? top - shift : fmaxf(top - shift, 0.f);
                down[e] = ex2(-fmaxf(up, 0.f));
                state.frag_m[n][e] += up;
#pragma unroll
                for (int m = 0; m < kKeyTiles; ++m) {
                    frag_s[m][n][e] -= up;
                    frag_s[m][n][2 + e] -= up;
                }
            }
#pragma unroll
            for (int i = 0; i < kOTiles; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    state.frag_o[i][n][e] *= down[e & 1];
                }
            }
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                state.frag_l[n][e] *= down[e & 1];
            }
        }
    }

    // The row sum is taken before P is rounded.
    static DEVICE void Exponentials(FragP& frag_p, const FragS& frag_s, State& state)
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int k = 0; k < kLaneKeys; ++k) {
                const float (&s)[4] = frag_s[k / 2][n];
                const float x = ex2(s[k % 2 * 2]), y = ex2(s[k % 2 * 2 + 1]);
                state.frag_l[n][2] += x;
                state.frag_l[n][3] += y;
                frag_p[n][k] = movmatrix_trans(Pair<T>::pack(x, y));
            }
        }
    }

    // The same where keys have a scale and a zero: scales join P before it is rounded, zeros its sums.
    static DEVICE void Exponentials(FragP& frag_p, const FragS& frag_s, State& state, const float (&scale)[kLaneKeys],
                                    const float (&zero)[kLaneKeys])
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int k = 0; k < kLaneKeys; ++k) {
                const float (&s)[4] = frag_s[k / 2][n];
                const float x = ex2(s[k % 2 * 2]), y = ex2(s[k % 2 * 2 + 1]);
                state.frag_l[n][0] = fmaf(x, zero[k], state.frag_l[n][0]);
                state.frag_l[n][1] = fmaf(y, zero[k], state.frag_l[n][1]);
                state.frag_l[n][2] += x;
                state.frag_l[n][3] += y;
                frag_p[n][k] = movmatrix_trans(Pair<T>::pack(x * scale[k], y * scale[k]));
            }
        }
    }

    // The lanes' sums of their own keys become the rows'; those of zeros where there are any.
    template<bool kZeros>
    static DEVICE void Finish(State& state)
    {
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = kZeros ? 0 : 2; e < 4; ++e) {
#pragma unroll
                for (int k = 4; k < kWarpSize; k <<= 1) {
                    state.frag_l[n][e] += __shfl_xor_sync(kFullWarp, state.frag_l[n][e], k);
                }
            }
        }
    }
};
