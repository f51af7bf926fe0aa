// The element types, and Pair<T>: two 16-bit elements in one 32-bit register.
#pragma once

#include "core/types.cuh"
#include "ptx/convert.cuh"

struct half_t {
    u16 bits;
};

struct bfloat16_t {
    u16 bits;
};

struct u4;  // codes of 4 bits, two in a byte

template<class T>
constexpr int bits_of = 8 * sizeof(T);
template<>
constexpr int bits_of<u4> = 4;

template<class T>
struct Pair;

template<>
struct Pair<half_t> {
    static constexpr u32 kOnes = 0x3c003c00u;

    static DEVICE u32 pack(float lo, float hi)
    {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // the conversion of two at once came with sm_80
        u16 a, b;
        cvt_rn_f16_f32(a, lo);
        cvt_rn_f16_f32(b, hi);
        return a | (u32)b << 16;
#else
        u32 d;
        cvt_rn_f16x2_f32(d, hi, lo);
        return d;
#endif
    }
};

template<>
struct Pair<bfloat16_t> {
    static constexpr u32 kOnes = 0x3f803f80u;

    static DEVICE u32 pack(float lo, float hi)
    {
        u32 d;
        cvt_rn_bf16x2_f32(d, hi, lo);
        return d;
    }
};

// The float32 value of one element.
DEVICE float to_float(half_t x)
{
    float d;
    cvt_f32_f16(d, x.bits);
    return d;
}

DEVICE float to_float(bfloat16_t x)
{
    return __uint_as_float((u32)x.bits << 16);
}

// The float32 values of a register's halves.
template<class T>
DEVICE float low_to_float(u32 x)
{
    return to_float(T{(u16)x});
}

template<class T>
DEVICE float high_to_float(u32 x)
{
    return to_float(T{(u16)(x >> 16)});
}
