// Division by what the host knows.
#pragma once

#include "core/types.cuh"

// x / d for x below 2^31, where factor and shift are params.divisor(d): a seventh of what a division by any number takes.
DEVICE u32 divide(u32 x, u32 factor, int shift)
{
    return __umulhi(2 * x, factor) >> shift;
}
