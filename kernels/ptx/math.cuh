// PTX ISA 9.7.3: the approximate float32 functions.
#pragma once

#include "core/types.cuh"

// ex2.approx.ftz.f32: 2^x, at most 2 ulp.
DEVICE float ex2(float x)
{
    float d;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// lg2.approx.ftz.f32: log2(x), 2^-22 absolute near 1.
DEVICE float lg2(float x)
{
    float d;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// rcp.approx.ftz.f32: 1/x, at most 1 ulp.
DEVICE float rcp(float x)
{
    float d;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(x));
    return d;
}

// tanh from ex2 and rcp: 1e-7 absolute, where tanh.approx has 5e-4; by its series near 0, where that would not be small beside the result.
DEVICE float tanh_ex2(float x)
{
    const float y = x * x;
    return fabsf(x) < 0.0625f ? x * fmaf(y, fmaf(y, 0.1333333333f, -0.3333333333f), 1.f) : 1.f - 2.f * rcp(1.f + ex2(x * 2.885390082f));
}
