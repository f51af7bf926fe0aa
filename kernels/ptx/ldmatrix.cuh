// PTX ISA 9.7.14.5.15 ldmatrix and 9.7.14.5.17 movmatrix: 8x8 matrices of 16-bit elements.
#pragma once

#include "core/types.cuh"

// ldmatrix.sync.aligned.m8n8.x4.shared.b16: lanes 8i..8i+7 address the rows of matrix i; lane l receives row l/4, columns 2*(l%4) and +1 of
// each.
DEVICE void ldmatrix_x4(u32 (&d)[4], u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a)
                 : "memory");
}

// ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16: the same, each matrix transposed.
DEVICE void ldmatrix_x4_trans(u32 (&d)[4], u32 a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a)
                 : "memory");
}

// movmatrix.sync.aligned.m8n8.trans.b16: the transpose of the 8x8 matrix that the warp holds.
DEVICE u32 movmatrix_trans(u32 a)
{
    u32 d;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(d) : "r"(a));
    return d;
}
