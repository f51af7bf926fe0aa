// What both kernels do to scores and sums: softcap, the end of a row, the lazy reference.
#pragma once

#include "ptx/math.cuh"

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

// The running maximum need not move before a score outgrows it by 2^kLazyLimit: probabilities stay below 2^kLazyLimit, sums in float32.
constexpr float kLazyLimit = 8.f;

// softcap * tanh(s * scale / softcap), still on the scale of q.k: tanh from ex2 and rcp, within 5e-7 of the softcap, where tanh.approx has 5e-4.
template<class Params>
DEVICE float softcap_at_once(const Params& p, float s)
{
    return fmaf(-2.f * p.softcap_out, rcp(1.f + ex2(s * (p.softcap_in * 2.885390082f))), p.softcap_out);
}

// Whether that is enough: exponents are then off by 6e-5 at most.
template<class Params>
DEVICE bool caps_at_once(const Params& p)
{
    return p.softcap_out * p.qk_scale < 128.f;
}

// For all softcaps: by tanh's series near 0, where that much of a large one would not be small beside the result.
template<class Params>
DEVICE float softcap(const Params& p, float s)
{
    const float x = s * p.softcap_in, y = x * x;
    const float small = s * fmaf(y, fmaf(y, 0.1333333333f, -0.3333333333f), 1.f);
    return fabsf(x) < 0.0625f ? small : softcap_at_once(p, s);
}

// What each token's distance adds to a score, on the scale of q.k.
template<class Params>
DEVICE float alibi_slope(const Params& p, int head)
{
    return p.extras.alibi_slopes[head] * p.extras.alibi_scale;
}

// A row's end: what the unnormalised output is multiplied with, and the log-sum-exp. m is in units of log2.
struct RowEnd {
    float scale;
    float lse;

    template<class Params>
    DEVICE RowEnd(const Params& p, int head, float m, float l)
    {
        float weight = 1.f;
        if (p.sinks) {  // joins the sum once, with no value
            const float sink = p.sinks[head] * kLog2e, top = fmaxf(m, sink);
            weight = ex2(m - top);
            l = l * weight + ex2(sink - top);
            m = top;
        }
        scale = l > 0.f ? weight * rcp(l) : 0.f;
        lse = (m + lg2(l)) * kLn2;
    }
};
