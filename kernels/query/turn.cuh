// The turn of a pair of dims at a position: integer arithmetic to the fraction of a turn, so it is as exact at position 1,000,000 as at 1.
#pragma once

#include "core/types.cuh"

struct Turn {
    float cos, sin;

    // `phase`: a 64-bit fraction of a turn. Both within 1e-7; polynomials fitted to an eighth of a turn either way.
    static DEVICE Turn of(u64 phase, float factor)
    {
        const u32 top = (u32)(phase >> 32), quarter = (top + (1u << 29)) >> 30;
        const float x = (float)(int)(top - (quarter << 30)) * 1.4629180792671596e-9f;  // radians: 2 pi / 2^32
        const float y = x * x;
        const float s = fmaf(x * y, fmaf(y, fmaf(y, -1.9588013e-4f, 8.33274890e-3f), -1.66666642e-1f), x);
        const float c = fmaf(y, fmaf(y, fmaf(y, fmaf(y, 2.45398351e-5f, -1.38882396e-3f), 4.16666642e-2f), -0.5f), 1.f);
        const float cos = quarter & 1 ? s : c, sin = quarter & 1 ? c : s;
        return {(quarter + 1) & 2 ? -factor * cos : factor * cos, quarter & 2 ? -factor * sin : factor * sin};
    }

    DEVICE void Apply(float& a, float& b) const
    {
        const float first = a;
        a = fmaf(a, cos, -b * sin);
        b = fmaf(b, cos, first * sin);
    }
};
