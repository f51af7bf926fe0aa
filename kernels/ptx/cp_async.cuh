// PTX ISA 9.7.9.25.3 cp.async: 16 bytes from global to shared memory, past the registers and L1.
#pragma once

#include "core/family_sm80.cuh"
#include "core/types.cuh"

// cp.async.cg.shared.global.L2::128B [dst], [src], 16
DEVICE void cp_async_16(u32 dst, const void* src)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(dst), "l"(src) : "memory");
}

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
