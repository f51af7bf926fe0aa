// Included by every header that belongs to the SM80 family.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "this header belongs to the SM80 family: cp.async and mma.m16n8k16 need sm_80"
#endif

namespace arch {
struct Sm80 {
    static constexpr bool kTurns = false;  // decode's K and V have places of their own
};
}  // namespace arch
