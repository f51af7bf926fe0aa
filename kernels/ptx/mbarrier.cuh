// PTX ISA 9.7.13.15 mbarrier: barriers in shared memory at which threads arrive first and wait later, since sm_80.
#pragma once

#include "core/family_sm80.cuh"
#include "core/types.cuh"

// mbarrier.init.shared.b64 [a], count
DEVICE void mbarrier_init(u32 a, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(a), "r"(count) : "memory");
}

// mbarrier.arrive.shared.b64 state, [a]: what this thread did before is seen by all that find the phase complete.
DEVICE void mbarrier_arrive(u32 a)
{
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(a) : "memory");
}

// mbarrier.test_wait.parity.shared.b64 p, [a], parity: whether the phase of this parity, the current one or the one before it, is complete.
DEVICE bool mbarrier_test_wait_parity(u32 a, u32 parity)
{
    u32 d;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(d)
                 : "r"(a), "r"(parity)
                 : "memory");
    return d != 0;
}

DEVICE void mbarrier_wait_parity(u32 a, u32 parity)
{
    while (!mbarrier_test_wait_parity(a, parity)) {
    }
}
