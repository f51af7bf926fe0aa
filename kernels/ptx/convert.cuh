// PTX ISA 9.7.9 cvt: between float32 and the 16-bit types.
#pragma once

#include "core/types.cuh"

// cvt.rn.f16x2.f32 d, a, b: a becomes the upper half.
DEVICE void cvt_rn_f16x2_f32(u32& d, float a, float b)
{
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(a), "f"(b));
}

// cvt.rn.f16.f32 d, a
DEVICE void cvt_rn_f16_f32(u16& d, float a)
{
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(a));
}

// cvt.rn.bf16x2.f32 d, a, b: a becomes the upper half.
DEVICE void cvt_rn_bf16x2_f32(u32& d, float a, float b)
{
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(a), "f"(b));
}

// cvt.f32.f16 d, a
DEVICE void cvt_f32_f16(float& d, u16 a)
{
    asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(a));
}
