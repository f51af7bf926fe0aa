"""AttentionParams' numbers that the host makes for the kernels."""

from __future__ import annotations

import numpy as np
import pytest

from pagedattn import params

LARGEST = 2**31 - 1


@pytest.mark.parametrize("divisors", [range(1, 1101), [2**i + e for i in range(2, 31) for e in (-1, 0, 1) if 2**i + e <= 2**30]])
def test_a_factor_and_a_shift_divide_exactly(divisors: list[int]) -> None:
    """Beside every multiple a quotient may go wrong by one, and most easily beside the largest: looked at there, and anywhere."""
    rng = np.random.default_rng(0)
    for d in divisors:
        factor, shift = params.divisor(d)
        assert factor < 2**32
        assert shift < 32
        most = LARGEST // d
        quotients = np.unique(np.r_[: min(most, 300) + 1, max(most - 300, 0) : most + 1, rng.integers(0, most + 1, 300)])
        x = np.concatenate([quotients * d + e for e in (-1, 0, 1)] + [[LARGEST]])
        x = x[(x >= 0) & (x <= LARGEST)].astype(np.uint64)
        high = 2 * x * np.uint64(factor) >> np.uint64(32)  # __umulhi(2 * x, factor): below 2**64
        np.testing.assert_array_equal(high >> np.uint64(shift), x // np.uint64(d), f"divided by {d}")
