// Codes to elements, two at a time: a code x becomes an exact 16-bit float by the bits of a magic number.
// K's operands carry a bias, x + bias, that the score's accumulator starts without; V's are centred, x - kMiddle, so that sums stay of V's
// own size: tensor cores truncate what they add to, and a bias of 100 times the result would lose it over thousands of keys. Or half of them
// are turned round (kTurns): sums of x and of x - most meet in the middle.
#pragma once

#include "ptx/memory.cuh"
#include "ptx/packed.cuh"

template<class T, int kBits>
struct Codes;

struct CentredCodes {  // V's operands are codes less kMiddle
    static constexpr bool kTurns = false;
    static constexpr float kTurn = 0.f;
    static constexpr float kUnit[2] = {1.f, 1.f};
};

// 8 bits, float16: 0x64XX is 1024 + x.
template<>
struct Codes<half_t, 8>: CentredCodes {
    static constexpr float kMiddle = 128.f;
    static constexpr float kBias[2] = {1024.f, 1024.f};            // of a word's first and second pair of every k-step
    static constexpr u32 kUnbias[2] = {0xe400e400u, 0xe400e400u};  // minus that, as pairs
    static constexpr u32 kCentre[2] = {0xe480e480u, 0xe480e480u};  // minus that and minus kMiddle

    // k-step 0 of a word of K: dims (0, 1) and (2, 3).
    static DEVICE void key_pairs(u32 (&d)[2], u32 word, int)
    {
        d[0] = prmt(word, 0x64646464u, 0x4140);
        d[1] = prmt(word, 0x64646464u, 0x4342);
    }

    // Bytes 0 and 2, or 1 and 3, centred.
    static DEVICE u32 low(u32 x, bool = false) { return add_rn_x2<half_t>(and_or<0x00ff00ffu, 0x64006400u>(x), 0xe480e480u); }
    static DEVICE u32 high(u32 x, bool = false) { return add_rn_x2<half_t>(prmt(x, 0x64646464u, 0x4341), 0xe480e480u); }
};

// 8 bits, bfloat16 holds 7 bits beside its leading one: 0x43XX is 128 + x for x < 128, and the eighth bit chooses what is subtracted,
// 128 (0xc300) or 256 (0xc380), which differ in bit 7.
template<>
struct Codes<bfloat16_t, 8>: CentredCodes {
    static constexpr float kMiddle = 128.f;
    static constexpr float kBias[2] = {-128.f, -128.f};
    static constexpr u32 kUnbias[2] = {0x43004300u, 0x43004300u};

    static DEVICE void key_pairs(u32 (&d)[2], u32 word, int)
    {
        d[0] = low(prmt(word, 0, 0x4140));
        d[1] = low(prmt(word, 0, 0x4342));
    }

    static DEVICE u32 low(u32 x, bool = false)
    {
        return add_rn_x2<bfloat16_t>(and_or<0x007f007fu, 0x43004300u>(x), and_xor<0x00800080u, 0xc380c380u>(x));
    }
    static DEVICE u32 high(u32 x, bool = false) { return low(x >> 8); }
};

// 4 bits, float16: 0x640X is 1024 + x, 0x54X0 is 64 + x, and the code's bits alone are a float16, too: 0x000X is x * 2^-24, 0x00X0 x * 2^-20.
// A word's nibbles are dims 0 2 4 6 1 3 5 7.
template<>
struct Codes<half_t, 4> {
    static constexpr float kMiddle = 8.f;
    static constexpr float kBias[2] = {1024.f, 64.f};
    static constexpr u32 kUnbias[2] = {0xe400e400u, 0xd400d400u};
    static constexpr u32 kCentre[2] = {0xe408e408u, 0xd480d480u};

    static constexpr bool kTurns = true;
    static constexpr float kTurn = 7.5f;  // half of 15, of which turned ones fall short
    static constexpr u32 kMinusTurn = 0xc780c780u;
    static constexpr float kUnit[2] = {0x1p24f, 0x1p20f};  // one, as a sum of low and of high nibbles has it

    // k-step `step` of a word of K: dims 4 step + (0, 1) and (2, 3).
    static DEVICE void key_pairs(u32 (&d)[2], u32 word, int step)
    {
        word >>= 8 * step;
        d[0] = and_or<0x000f000fu, 0x64006400u>(word);
        d[1] = and_or<0x00f000f0u, 0x54005400u>(word);
    }

    // Nibbles 0 and 4, or 1 and 5; turned, 15 minus them.
    static DEVICE u32 low(u32 x, bool turned) { return turned ? and_xor<0x000f000fu, 0x000f000fu>(x) : x & 0x000f000fu; }
    static DEVICE u32 high(u32 x, bool turned) { return turned ? and_xor<0x00f000f0u, 0x00f000f0u>(x) : x & 0x00f000f0u; }
};

// 4 bits, bfloat16: 0x430X is 128 + x.
template<>
struct Codes<bfloat16_t, 4>: CentredCodes {
    static constexpr float kMiddle = 8.f;
    static constexpr float kBias[2] = {128.f, 128.f};
    static constexpr u32 kUnbias[2] = {0xc300c300u, 0xc300c300u};

    static DEVICE void key_pairs(u32 (&d)[2], u32 word, int step)
    {
        word >>= 8 * step;
        d[0] = and_or<0x000f000fu, 0x43004300u>(word);
        d[1] = and_or<0x000f000fu, 0x43004300u>(word >> 4);
    }

    static DEVICE u32 low(u32 x, bool = false) { return add_rn_x2<bfloat16_t>(and_or<0x000f000fu, 0x43004300u>(x), 0xc308c308u); }
    static DEVICE u32 high(u32 x, bool = false) { return low(x >> 4); }
};

// Eight codes as elements of T, code * scale + zero in one rounding. `param` is the row's (scale, zero).
template<class T, int kBits>
DEVICE void dequantise(u32 (&d)[4], const u32 (&codes)[kBits / 4], u32 param)
{
    using Code = Codes<T, kBits>;
    const u32 scale = prmt(param, param, 0x1010), zero = prmt(param, param, 0x3232);
#pragma unroll
    for (int i = 0; i < 2; ++i) {  // four dims each
        u32 pairs[2];
        Code::key_pairs(pairs, codes[kBits == 8 ? i : 0], kBits == 8 ? 0 : i);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            d[2 * i + k] = fma_rn_x2<T>(add_rn_x2<T>(pairs[k], Code::kUnbias[k]), scale, zero);
        }
    }
}
