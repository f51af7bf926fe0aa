// PTX ISA 9.7.14 griddepcontrol: programmatic dependent launch, from sm_90 on; 9.7.19 trap; 10.1 %tid, 10.20 %lanemask_lt.
#pragma once

#include "core/types.cuh"

// griddepcontrol.wait: until the kernels before this one in the stream have ended, and what they wrote is there
DEVICE void wait_for_earlier_kernels()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// griddepcontrol.launch_dependents: the CTAs of the next kernel may take what room this one's leave, and wait there
DEVICE void admit_next_kernel()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// mov.u32 from %tid.x: the thread's number read again, where holding it would cost a main loop a register
DEVICE int thread_again()
{
    int x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return x;
}

// mov.u32 from %lanemask_lt: a bit for each lane below this one, so the highest is never set
DEVICE u32 lanes_below()
{
    u32 d;
    asm("mov.u32 %0, %%lanemask_lt;" : "=r"(d));
    return d;
}

// trap: the launch fails
DEVICE void trap()
{
    asm volatile("trap;");
}
