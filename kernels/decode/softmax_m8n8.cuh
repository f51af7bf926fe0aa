// A warp's softmax over a tile of 32 keys whose scores are m8n8k4's sums: element (h, i) of head tile n is key 4 (l/4) + 2 (l%2) + i/2, head
// 8n + 4h + (l&2) + i%2. O stands as P V: element (h, i) of dim tile d is head 8n + l%2 + (i&2) + 4 (l/16), two dims of half h.
#pragma once

#include "core/float16.cuh"
#include "core/softmax.cuh"
#include "core/types.cuh"

// kZeros: V's zeros are summed up beside P V.
template<class T, int kHeadTiles, int kDimTiles, bool kZeros>
struct QuadPairSoftmax {
    static constexpr int kKeys = 32;
    static constexpr float kShift = 4.f;

    using FragS = float[kHeadTiles][2][4];
    using FragO = float[kDimTiles][kHeadTiles][2][4];
    using FragHead = float[kHeadTiles][4];  // of heads 4 (e/2) + (l&2) + e%2

    // What is known of a segment, or of a warp's part of it.
    struct State {
        FragO frag_o;
        FragHead frag_l, frag_m;                   // sums of p, of the lane's own keys until Finish; references, log2 units
        float frag_z[kZeros ? kHeadTiles : 1][4];  // sums of p * zero, likewise

        DEVICE void Clear()
        {
#pragma unroll
            for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    frag_l[n][e] = frag_z[kZeros ? n : 0][e] = frag_m[n][e] = 0.f;
#pragma unroll
                    for (int i = 0; i < kDimTiles; ++i) {
                        frag_o[i][n][0][e] = frag_o[i][n][1][e] = 0.f;
                    }
                }
            }
        }

        // For the end: head `e` of two that a lane has of O in head tile n, its dims in pairs, and which lane tells its m and l.
        static DEVICE int head(int n, int e, int g, int t) { return 8 * n + t % 2 + 2 * e + g / 4 * 4; }
        static DEVICE bool tells(int g, int t) { return g % 4 == 0 && t < 2; }
        DEVICE float2 pair(int i, int n, int e) const
        {
            return make_float2(frag_o[i / 2][n][i % 2][2 * e], frag_o[i / 2][n][i % 2][2 * e + 1]);
        }
        DEVICE float m(int n, int e) const { return frag_m[n][e]; }
        DEVICE float l(int n, int e) const { return frag_l[n][e]; }
    };

    static DEVICE int first_key(int lane) { return lane / 4 * 4 + lane % 2 * 2; }
    static DEVICE float& score(FragS& frag_s, int n, int e, int key) { return frag_s[n][e / 2][2 * key + e % 2]; }

    // Softcap and ALiBi, on the scale of q.k.
    template<class Params, class Place>
    static DEVICE void Adjust(FragS& frag_s, const Params& p, int first_head, const Place& place, int to, int lane)
    {
        const bool capped = p.softcap_in != 0.f, sloped = p.extras.alibi_slopes;
        const float distance = distance_from_query(p, place, first_key(lane) - to), step = (float)opaque(p.cp_size);
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int head = first_head + 8 * n + 4 * (e / 2) + (lane & 2) + e % 2;
                const float slope = sloped ? alibi_slope(p, min(head, p.num_heads - 1)) : 0.f;
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    float& s = score(frag_s, n, e, k);
                    s = fmaf(slope, k ? distance + step : distance, capped ? softcap(p, s) : s);
                }
            }
        }
    }

    // Keys outside [from, to) of the tile get probability 0.
    static DEVICE void Mask(FragS& frag_s, int from, int to, int lane)
    {
        constexpr float kMasked = -1e38f;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            const int key = first_key(lane) + k;
            if (key < from || key >= to) {
#pragma unroll
                for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        score(frag_s, n, e, k) = kMasked;
                    }
                }
            }
        }
    }

    // As DecodeSoftmax's Outgrown and MoveReference.
    static DEVICE void MoveReference(FragS& frag_s, State& state, int lane, bool fresh, bool lowered = false, float lower = 0.f)
    {
        FragHead top;
        bool outgrown = lowered;
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                top[n][e] = fmaxf(score(frag_s, n, e, 0), score(frag_s, n, e, 1));
                outgrown |= top[n][e] > kLazyLimit;
            }
        }
        if (!__any_sync(kFullWarp, outgrown || fresh)) {
            return;
        }
        const float shift = __any_sync(kFullWarp, lowered) ? kShift - lower : kShift;
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {  // rare
            float down[4];
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                top[n][e] = OverKeys(top[n][e], [](float x, float y) { return fmaxf(x, y); });
                const float up = fresh ? top[n][e] - shift : fmaxf(top[n][e] - shift, 0.f);
                down[e] = ex2(-fmaxf(up, 0.f));
                state.frag_m[n][e] += up;
                state.frag_l[n][e] *= down[e];
                if constexpr (kZeros) {
                    state.frag_z[n][e] *= down[e];
                }
                score(frag_s, n, e, 0) -= up;
                score(frag_s, n, e, 1) -= up;
            }
            float of_row[2];
            ToRows(of_row, down, lane);
#pragma unroll
            for (int i = 0; i < kDimTiles; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    state.frag_o[i][n][0][e] *= of_row[e / 2];
                    state.frag_o[i][n][1][e] *= of_row[e / 2];
                }
            }
        }
    }

    // The lanes' sums of their own keys become the heads', every value goes to the lanes that have the head's O, and V's zeros join O.
    static DEVICE void Finish(State& state, int lane)
    {
        auto sum = [](float x, float y) { return x + y; };
#pragma unroll
        for (int n = 0; n < kHeadTiles; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                state.frag_l[n][e] = OverKeys(state.frag_l[n][e], sum);
            }
            float m[2], l[2];
            ToRows(m, state.frag_m[n], lane);
            ToRows(l, state.frag_l[n], lane);
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                state.frag_m[n][e] = m[e];
                state.frag_l[n][e] = l[e];
            }
            if constexpr (kZeros) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    state.frag_z[n][e] = OverKeys(state.frag_z[n][e], sum);
                }
                float z[2];
                ToRows(z, state.frag_z[n], lane);
#pragma unroll
                for (int i = 0; i < kDimTiles; ++i) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        state.frag_o[i][n][0][e] += z[e / 2];
                        state.frag_o[i][n][1][e] += z[e / 2];
                    }
                }
            }
        }
    }

private:
    // Over the lanes that hold the same heads.
    template<class F>
    static DEVICE float OverKeys(float x, F&& f)
    {
        x = f(x, __shfl_xor_sync(kFullWarp, x, 1));
#pragma unroll
        for (int k = 4; k < kWarpSize; k <<= 1) {
            x = f(x, __shfl_xor_sync(kFullWarp, x, k));
        }
        return x;
    }

    // From where scores have a head's value to where O has the head: heads l%2 + 2r + 4 (l/16).
    static DEVICE void ToRows(float (&d)[2], const float (&x)[4], int lane)
    {
        const float low = lane % 2 ? x[1] : x[0], high = lane % 2 ? x[3] : x[2], mine = lane < 16 ? low : high;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            d[r] = __shfl_sync(kFullWarp, mine, (lane & ~2) | 2 * r);
        }
    }
};
