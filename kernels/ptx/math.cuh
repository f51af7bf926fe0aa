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
