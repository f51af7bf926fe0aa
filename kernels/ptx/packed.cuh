// PTX ISA 9.7.4 half-precision arithmetic and 9.7.8.6 lop3: two 16-bit elements at once.
#pragma once

#include "core/float16.cuh"

// lop3.b32: (a & kAnd) | kOr
template<u32 kAnd, u32 kOr>
DEVICE u32 and_or(u32 a)
{
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "n"(kAnd), "n"(kOr));
    return d;
}

// lop3.b32: (a & kAnd) ^ kXor
template<u32 kAnd, u32 kXor>
DEVICE u32 and_xor(u32 a)
{
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(d) : "r"(a), "n"(kAnd), "n"(kXor));
    return d;
}

// fma.rn.{f16x2, bf16x2}: a * b + c
template<class T>
DEVICE u32 fma_rn_x2(u32 a, u32 b, u32 c);

template<>
DEVICE u32 fma_rn_x2<half_t>(u32 a, u32 b, u32 c)
{
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

template<>
DEVICE u32 fma_rn_x2<bfloat16_t>(u32 a, u32 b, u32 c)
{
    u32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}

// a + b. bfloat16 has no add below sm_90: an exact fma.
template<class T>
DEVICE u32 add_rn_x2(u32 a, u32 b);

template<>
DEVICE u32 add_rn_x2<half_t>(u32 a, u32 b)
{
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}

template<>
DEVICE u32 add_rn_x2<bfloat16_t>(u32 a, u32 b)
{
    return fma_rn_x2<bfloat16_t>(a, Pair<bfloat16_t>::kOnes, b);
}

// a * b; -0 as addend keeps the sign of a zero product.
template<class T>
DEVICE u32 mul_rn_x2(u32 a, u32 b)
{
    return fma_rn_x2<T>(a, b, 0x80008000u);
}
