// PTX ISA 8 and 9.7.9, 9.7.13.5: what CTAs of a launch tell each other through global memory.
#pragma once

#include "core/types.cuh"

// atom.acq_rel.gpu.global.add.u32: a + x, returns a. What the CTA wrote before a barrier before it is seen by whoever finds its sum.
DEVICE u32 atom_add_acq_rel(u32* a, u32 x)
{
    u32 d;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(d) : "l"(a), "r"(x) : "memory");
    return d;
}

// st.relaxed.gpu.global.{v4, v2}.f32: seen by whoever loads so, word by word, in no order
DEVICE void st_relaxed(float* p, float4 x)
{
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

DEVICE void st_relaxed(float* p, float2 x)
{
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.x), "f"(x.y) : "memory");
}

// @there ld.relaxed.gpu.global.{v4, v2}.f32; d stays as it is where `there` is false: no branch
DEVICE void ld_relaxed_if(float4& d, const float* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %5, 0;\n\t@there ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "l"(p), "r"((int)there)
                 : "memory");
}

DEVICE void ld_relaxed_if(float2& d, const float* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %3, 0;\n\t@there ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];\n\t}"
                 : "+f"(d.x), "+f"(d.y)
                 : "l"(p), "r"((int)there)
                 : "memory");
}
