// PTX ISA 9.7.14.5.8 mma.m16n8k16: D = A B + C in float32, A and B in 16-bit.
// A 16x16: lane l, element i -> row l/4 + 8*(i/2%2), column 2*(l%4) + i%2 + 8*(i/4)
// B 16x8:  lane l, element i -> row 2*(l%4) + i%2 + 8*(i/2), column l/4
// C 16x8:  lane l, element i -> row l/4 + 8*(i/2), column 2*(l%4) + i%2
#pragma once

#include "core/float16.cuh"

// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32: d = a b + c
template<class T>
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]);

template<>
DEVICE void mma_m16n8k16<half_t>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

template<>
DEVICE void mma_m16n8k16<bfloat16_t>(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// d += a b
template<class T>
DEVICE void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    mma_m16n8k16<T>(d, a, b, d);
}

// d = a b
template<class T>
DEVICE void mma_m16n8k16_zero(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    mma_m16n8k16<T>(d, a, b, {0.f, 0.f, 0.f, 0.f});
}
