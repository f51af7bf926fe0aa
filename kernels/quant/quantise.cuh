// A row of T becomes codes and (scale, zero), by the formula of the format: float32 steps, each rounded to T.
#pragma once

#include "ptx/memory.cuh"
#include "ptx/packed.cuh"

// A row is spread over `kLanes` lanes (a power of two), eight dims each in lanes below kHeadDim / 8; the others bring nothing.
template<class T, int kBits, int kLanes>
struct RowQuantiser {
    static constexpr float kSteps = (1 << kBits) - 1;
    static constexpr u32 kNaN = (Pair<T>::kOnes & 0xffffu) == 0x3c00u ? 0x7e007e00u : 0x7fc07fc0u;

    u32 param;  // (scale, zero)
    float zero, inv_scale;
    bool plain;  // a finite row with a scale

    static DEVICE float round(float x) { return low_to_float<T>(Pair<T>::pack(x, 0.f)); }

    DEVICE RowQuantiser(const u32 (&x)[4], bool active)
    {
        float lowest = -negative_infinity(), highest = negative_infinity();
        bool finite = true;
        if (active) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                const float v = element(x, i);
                finite &= fabsf(v) < -negative_infinity();  // false for NaN
                lowest = fminf(lowest, v);
                highest = fmaxf(highest, v);
            }
        }
#pragma unroll
        for (int k = 1; k < kLanes; k <<= 1) {
            lowest = fminf(lowest, __shfl_xor_sync(kFullWarp, lowest, k));
            highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, k));
            finite &= __shfl_xor_sync(kFullWarp, (int)finite, k) != 0;
        }
        const float scale = round(__fmul_rn(__fsub_rn(highest, lowest), 1.f / kSteps));
        zero = lowest;
        inv_scale = round(__frcp_rn(scale));
        plain = finite && scale != 0.f;
        param = finite ? Pair<T>::pack(scale, zero) : kNaN;
    }

    // The eight codes of a lane, packed: 8 bits in order; 4 bits as the nibbles 0 2 4 6 1 3 5 7.
    DEVICE void Codes(u32 (&d)[kBits / 4], const u32 (&x)[4]) const
    {
#pragma unroll
        for (int i = 0; i < kBits / 4; ++i) {
            d[i] = 0;
        }
        if (!plain) {
            return;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const float scaled = round(__fmul_rn(round(__fsub_rn(element(x, i), zero)), inv_scale));
            const u32 code = scaled == scaled ? (u32)__float2int_rn(fminf(fmaxf(scaled, 0.f), kSteps)) : 0;
            if (kBits == 8) {
                d[i / 4 % (kBits / 4)] |= code << 8 * (i % 4);
            }
            else {
                d[0] |= code << 4 * (i / 2 + i % 2 * 4);
            }
        }
    }

private:
    static DEVICE float element(const u32 (&x)[4], int i) { return i % 2 ? high_to_float<T>(x[i / 2]) : low_to_float<T>(x[i / 2]); }
};
