// PTX ISA 9.7.9.25.3 cp.async: 16 bytes from global to shared memory, past the registers and L1; 9.7.9.17 createpolicy.
#pragma once

#include "core/family_sm80.cuh"
#include "core/types.cuh"

// cp.async.cg.shared.global.L2::128B [dst], [src], 16
DEVICE void cp_async_16(u32 dst, const void* src)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

// createpolicy.fractional.L2::evict_first.b64: L2 gives up what comes by it before anything else
DEVICE u64 evict_first_policy()
{
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// What a copy without a policy has. createpolicy knows no word for it: with its evict_normal decode reads 9 % slower. NVIDIA's CUTLASS passes
// these bits by the name of EVICT_NORMAL.
constexpr u64 kDefaultPolicy = 0x1000000000000000;

// cp.async.cg.shared.global.L2::cache_hint.L2::128B [dst], [src], 16, policy; before sm_90 none: it has been measured on an H200 only
DEVICE void cp_async_16(u32 dst, const void* src, u64 policy)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
    cp_async_16(dst, src);
#else
    asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "l"(policy) : "memory");
#endif
}

// cp.async.cg.shared.global.L2::128B [dst], [src], 16, source size: 0 bytes are read and 16 zeros written where `valid` is false.
DEVICE void cp_async_16_zfill(u32 dst, const void* src, bool valid)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}

// cp.async.commit_group
DEVICE void cp_async_commit_group()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// cp.async.wait_group N: all but the latest N groups of this thread have arrived.
template<int N>
DEVICE void cp_async_wait_group()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
