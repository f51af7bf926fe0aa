// How every kernel starts. The host launches each so that it may become resident while the one before it ends: nothing in global memory may
// be touched before this.
#pragma once

#include "ptx/launch.cuh"

constexpr int kConstantLineBytes = 64;

template<class Params>
DEVICE void start_kernel(const Params& p)
{
    // The parameters' lines of the constant cache, asked for all at once instead of one after the other where a field is first used.
    const int line = threadIdx.x % kWarpSize * kConstantLineBytes;
    const int word = *(const int*)((const char*)&p + (line < (int)sizeof(Params) ? line : 0));
    asm volatile("" ::"r"(word));
    wait_for_earlier_kernels();
    admit_next_kernel();
}
