// A row of T becomes codes and (scale, zero), by the formula of the format: float32 steps, each rounded to T.
#pragma once

#include "ptx/memory.cuh"
#include "ptx/packed.cuh"

// A row is spread over `kLanes` lanes (a power of two), eight dims each in lanes below kHeadDim / 8; the others bring nothing.
template<class T, int kBits, int kLanes>
struct RowQuantiser {
    static constexpr float kSteps = (1 << kBits) - 1;
    static constexpr u32 kNaN = (Pair<T>::kOnes & 0xffffu) == 0x3c00u ? 0x7e007e00u : 0x7fc07fc0u;

    u32 param;                  // (scale, zero)
    u32 minus_zero, inv_scale;  // as pairs
    bool plain;                 // a finite row with a scale

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
        minus_zero = Pair<T>::pack(-lowest, -lowest);
        inv_scale = Pair<T>::pack(__frcp_rn(scale), __frcp_rn(scale));
        plain = finite && scale != 0.f;
        param = finite ? Pair<T>::pack(scale, lowest) : kNaN;
    }

    // The eight codes of a lane, packed: 8 bits in order; 4 bits as the nibbles 0 2 4 6 1 3 5 7. Both steps in T itself: differences and products
    // of two T are rounded alike whether or not float32 came first, which has more than twice T's bits.
    DEVICE void Codes(u32 (&d)[kBits / 4], const u32 (&x)[4]) const
    {
#pragma unroll
        for (int i = 0; i < kBits / 4; ++i) {
            d[i] = 0;
        }
        if (!plain) {
            return;
        }
        constexpr float kMagic = 8388608.f;  // 2^23 + x has the nearest integer, of two the even one, in its low bits
        u32 code[8];
#pragma unroll
        for (int i = 0; i < 8; i += 2) {
            const u32 scaled = mul_rn_x2<T>(add_rn_x2<T>(x[i / 2], minus_zero), inv_scale);
            code[i] = __float_as_uint(fminf(fmaxf(low_to_float<T>(scaled), 0.f), kSteps) + kMagic);  // fmaxf: NaN becomes 0
            code[i + 1] = __float_as_uint(fminf(fmaxf(high_to_float<T>(scaled), 0.f), kSteps) + kMagic);
        }
        if (kBits == 8) {
            d[0] = bytes(code[0], code[1], code[2], code[3]);
            d[kBits / 4 - 1] = bytes(code[4], code[5], code[6], code[7]);
        }
        else {
            d[0] = bytes(code[0], code[4], code[1], code[5]) | bytes(code[2], code[6], code[3], code[7]) << 4;
        }
    }

private:
    // Of the low bytes.
    static DEVICE u32 bytes(u32 a, u32 b, u32 c, u32 d) { return prmt(prmt(a, b, 0x0040), prmt(c, d, 0x0040), 0x5410); }

    static DEVICE float element(const u32 (&x)[4], int i) { return i % 2 ? high_to_float<T>(x[i / 2]) : low_to_float<T>(x[i / 2]); }
};
