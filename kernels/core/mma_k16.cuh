// 16 steps of K of a 16x8 product, as the family has it: one m16n8k16, or two m16n8k8 side by side, whose fragments are the halves of its own.
#pragma once

#include "ptx/mma.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 750
#error "mma.m16n8 needs sm_75"
#endif

namespace arch {
struct Sm70;
struct Sm80;
}  // namespace arch

template<class Arch, class T>
struct MmaK16;

template<class T>
struct MmaK16<arch::Sm80, T> {
    static DEVICE void run(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4]) { mma_m16n8k16<T>(d, a, b, c); }
};

template<class T>
struct MmaK16<arch::Sm70, T> {
    static DEVICE void run(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4])
    {
        mma_m16n8k8<T>(d, {a[0], a[1]}, b[0], c);
        mma_m16n8k8<T>(d, {a[2], a[3]}, b[1], d);
    }
};

// d = a b + c
template<class Arch, class T>
DEVICE void mma_k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2], const float (&c)[4])
{
    MmaK16<Arch, T>::run(d, a, b, c);
}

// d += a b
template<class Arch, class T>
DEVICE void mma_k16(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2])
{
    mma_k16<Arch, T>(d, a, b, d);
}
