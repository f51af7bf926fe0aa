// PTX ISA 9.7.9 ld, st, prefetch, prmt: plain data movement, 16 bytes a lane where it counts.
#pragma once

#include "core/types.cuh"

DEVICE u32 shared_address(const void* p)
{
    return (u32)__cvta_generic_to_shared(p);
}

// ld.shared.{v4, v2, }.u32: as many words as d holds
DEVICE void ld_shared(u32 (&d)[4], u32 a)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(a) : "memory");
}

DEVICE void ld_shared(u32 (&d)[2], u32 a)
{
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(a) : "memory");
}

DEVICE void ld_shared(u32 (&d)[1], u32 a)
{
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(d[0]) : "r"(a) : "memory");
}

// st.shared.u32
DEVICE void st_shared(u32 a, u32 x)
{
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(a), "r"(x) : "memory");
}

// st.shared.v4.u32
DEVICE void st_shared_v4(u32 a, const u32 (&v)[4])
{
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(a), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// ld.global.{v4, v2, }.u32: as many words as d holds; stays where it is written, so that what follows runs while it is on its way
DEVICE void ld_global(u32 (&d)[4], const void* p)
{
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(p));
}

DEVICE void ld_global(u32 (&d)[2], const void* p)
{
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "l"(p));
}

DEVICE void ld_global(u32 (&d)[1], const void* p)
{
    asm volatile("ld.global.u32 %0, [%1];" : "=r"(d[0]) : "l"(p));
}

// ld.global.nc.L1::no_allocate.v4.u32, .L2::128B where there is one (sm_75): 16 bytes that nothing writes meanwhile and nobody reads again
DEVICE void ld_global_once(u32 (&d)[4], const void* p)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "l"(p));
#else
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "l"(p));
#endif
}

// @there ld.{v4, v2}.f32, from global or shared memory; d stays as it is where `there` is false: no branch
DEVICE void ld_if(float4& d, const void* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %5, 0;\n\t@there ld.v4.f32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "l"(p), "r"((int)there)
                 : "memory");
}

DEVICE void ld_if(float2& d, const void* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %3, 0;\n\t@there ld.v2.f32 {%0, %1}, [%2];\n\t}"
                 : "+f"(d.x), "+f"(d.y)
                 : "l"(p), "r"((int)there)
                 : "memory");
}

// @there ld.shared.{v4, v2}.f32
DEVICE void ld_shared_if(float4& d, u32 a, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %5, 0;\n\t@there ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "r"(a), "r"((int)there)
                 : "memory");
}

DEVICE void ld_shared_if(float2& d, u32 a, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %3, 0;\n\t@there ld.shared.v2.f32 {%0, %1}, [%2];\n\t}"
                 : "+f"(d.x), "+f"(d.y)
                 : "r"(a), "r"((int)there)
                 : "memory");
}

// @there ld.global.cg.{v4, v2}.f32, past L1
DEVICE void ld_global_cg_if(float4& d, const void* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %5, 0;\n\t@there ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];\n\t}"
                 : "+f"(d.x), "+f"(d.y), "+f"(d.z), "+f"(d.w)
                 : "l"(p), "r"((int)there)
                 : "memory");
}

DEVICE void ld_global_cg_if(float2& d, const void* p, bool there)
{
    asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.b32 there, %3, 0;\n\t@there ld.global.cg.v2.f32 {%0, %1}, [%2];\n\t}"
                 : "+f"(d.x), "+f"(d.y)
                 : "l"(p), "r"((int)there)
                 : "memory");
}

// prefetch.global.L1
DEVICE void prefetch_l1(const void* p)
{
    asm volatile("prefetch.global.L1 [%0];" ::"l"(p));
}

// prmt.b32 d, a, b, selector
DEVICE u32 prmt(u32 a, u32 b, u32 selector)
{
    return __byte_perm(a, b, selector);
}
