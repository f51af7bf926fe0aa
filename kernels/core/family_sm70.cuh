// Included by every header that belongs to the SM70 family. Its source may be compiled for any later target, too.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#error "this header belongs to the SM70 family: mma.m8n8k4 needs sm_70"
#endif

namespace arch {
struct Sm70 {
    static constexpr bool kTurns = true;  // decode's K and V take turns in one place: shared memory is small
};
}  // namespace arch
