// What a warp does together.
#pragma once

#include "core/types.cuh"

// The sum over the lanes, in every lane.
DEVICE int warp_sum(int x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800  // redux.sync came with sm_80
#pragma unroll
    for (int k = 1; k < kWarpSize; k <<= 1) {
        x += __shfl_xor_sync(kFullWarp, x, k);
    }
    return x;
#else
    return __reduce_add_sync(kFullWarp, x);
#endif
}

// The least of the lanes', in every lane.
DEVICE int warp_min(int x)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma unroll
    for (int k = 1; k < kWarpSize; k <<= 1) {
        x = min(x, __shfl_xor_sync(kFullWarp, x, k));
    }
    return x;
#else
    return __reduce_min_sync(kFullWarp, x);
#endif
}

// x, which every lane has alike: from here on the compiler knows it, too, and needs no barrier where ways that part by it meet again.
DEVICE int uniform(int x)
{
    return __shfl_sync(kFullWarp, x, 0);
}
