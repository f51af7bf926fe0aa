// Short names for the built-in types, and the words that every device function begins with.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE __device__ __forceinline__

constexpr u32 kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;
constexpr int kChunkBytes = 16;  // what one lane moves at once

DEVICE float negative_infinity()
{
    return __int_as_float(0xff800000);
}

// The same value, unknown to the compiler: what is computed from it is computed where it stands, not kept in registers across a loop.
DEVICE int opaque(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}

// The same of a lane or a thread, which is never negative: a division by four is one instruction, not three.
DEVICE int opaque_id(int x)
{
    x = opaque(x);
    __builtin_assume(x >= 0);
    return x;
}

DEVICE float opaque(float x)
{
    asm volatile("" : "+f"(x));
    return x;
}

template<bool kFirst, class A, class B>
struct IfElse {
    using Type = A;
};
template<class A, class B>
struct IfElse<false, A, B> {
    using Type = B;
};
// std::conditional_t
template<bool kFirst, class A, class B>
using if_else = typename IfElse<kFirst, A, B>::Type;
