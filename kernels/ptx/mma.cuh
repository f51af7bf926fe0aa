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

// PTX ISA 9.7.14.5.7 mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32: d = a b + c. A is the left half of m16n8k16's, B the upper.
template<class T>
DEVICE void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], u32 b, const float (&c)[4]);

template<>
DEVICE void mma_m16n8k8<half_t>(float (&d)[4], const u32 (&a)[2], u32 b, const float (&c)[4])
{
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// PTX ISA 9.7.14.5.1 mma.sync.aligned.m8n8k4.row.{col, row}.f32.f16.f16.f32: d += a b, four products, one for each quad pair: lanes 4p .. 4p + 3 and
// 4p + 16 .. 4p + 19 form pair p.
// A 8x4: lane l, element i -> row l%4 + 4*(l/16), column i
// B 4x8: col: lane l, element i -> row i, column l%4 + 4*(l/16); row: row l%4, column i + 4*(l/16)
// C 8x8: lane l, element i -> row l%2 + (i&2) + 4*(l/16), column (i&4) + (l&2) + (i&1)
DEVICE void mma_m8n8k4_row_col(float (&d0)[4], float (&d1)[4], u32 a0, u32 a1, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"
                 : "+f"(d0[0]), "+f"(d0[1]), "+f"(d0[2]), "+f"(d0[3]), "+f"(d1[0]), "+f"(d1[1]), "+f"(d1[2]), "+f"(d1[3])
                 : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}

DEVICE void mma_m8n8k4_row_row(float (&d0)[4], float (&d1)[4], u32 a0, u32 a1, u32 b0, u32 b1)
{
    asm volatile("mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
                 "{%0, %1, %2, %3, %4, %5, %6, %7};"
                 : "+f"(d0[0]), "+f"(d0[1]), "+f"(d0[2]), "+f"(d0[3]), "+f"(d1[0]), "+f"(d1[1]), "+f"(d1[2]), "+f"(d1[3])
                 : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
}
