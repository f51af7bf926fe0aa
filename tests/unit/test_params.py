"""AttentionParams' numbers that the host makes for the kernels."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch, dispatch, params, render
from pagedattn.problem import Extras, Problem
from pagedattn.shipped import shipped

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


@pytest.mark.parametrize("cuts", [0, 3, -512])
@pytest.mark.parametrize(
    ("changes", "general"),
    [
        ({}, False),
        ({"window_size": 7}, False),
        ({"softcap": 20.0}, True),
        ({"extras": Extras(alibi_slopes=np.zeros(8, np.float32))}, True),
        ({"cp": pa.ContextParallel(0, 2)}, True),
        ({"cp": pa.ContextParallel(0, 1)}, False),
        ({"num_heads": 16}, False),
        ({"num_heads": 17}, True),
    ],
)
def test_plain_kernels_are_launched_for_what_they_take_for_granted(changes: dict[str, Any], general: bool, cuts: int) -> None:
    """They have the values of some parameters in their code, and would not notice others."""
    fields: dict[str, Any] = {"num_heads": 8, **changes}
    q = np.broadcast_to(np.float16(0), (1, fields.pop("num_heads"), 64))
    batch = pa.Batch([[0] * 20], [1], [300], device="cpu")
    target: Any = SimpleNamespace(arch=arch.parse("sm_90"), source=arch.parse("sm_90"), sm_count=132, model="", address=lambda x: 0)
    problem = Problem("attention", pa.BlockLayout(1, 64), None, 0, batch, q=q, out=q, num_splits=cuts, **fields)
    (launch,) = dispatch.select(problem, target)
    assert launch.spec.general == general
    assert bool(_granted(launch)) == (not general)


@pytest.mark.parametrize(
    ("changes", "new", "kind"),
    [
        ({}, 4096, "whole"),
        ({}, 100, "parts"),
        ({}, 512, "parts"),  # of head_dim 128 by the row for long sequences
        ({"num_splits": -512}, 100, "whole"),
        ({"cp": pa.ContextParallel(0, 2)}, 4096, "parts"),
        ({"cp": pa.ContextParallel(0, 1)}, 4096, "whole"),
        ({"softcap": 20.0}, 4096, "whole"),
        ({"softcap": 20.0}, 100, "parts"),
        ({"softcap": 20.0, "cp": pa.ContextParallel(1, 2)}, 4096, "parts"),
    ],
)
@pytest.mark.parametrize("dim", [64, 128])
def test_prefill_shares_a_tiles_keys_with_kernels_that_can(dim: int, changes: dict[str, Any], new: int, kind: str) -> None:
    """Where there are few query tiles, several CTAs read the keys of each; ranks have a share of them, but not of contiguous keys."""
    q = np.broadcast_to(np.float16(0), (new, 8, dim))
    batch = pa.Batch([[0] * 64], [new], [4096], device="cpu")
    target: Any = SimpleNamespace(arch=arch.parse("sm_90"), source=arch.parse("sm_90"), sm_count=132, model="", address=lambda x: 0)
    for op in ("attention",) if "cp" in changes else ("attention", "varlen"):
        (launch,) = dispatch.select(Problem(op, pa.BlockLayout(1, dim), None, 0, batch, q=q, out=q, **changes), target)
        assert (launch.spec.splits, launch.spec.general) == (kind, "softcap" in changes)
        assert launch.spec in shipped(["sm_90"], ["float16"], [dim]), "it is compiled ahead of time"
        assert ("num_splits" in _granted(launch)) == (kind == "whole")
        (packed,) = np.frombuffer(launch.params, params.dtype())
        assert (packed["num_splits"] > 1) == (new < 4096 and "num_splits" not in changes)
        if op == "attention":
            assert launch.spec in dispatch.specs_of(pa.BlockLayout(1, dim), 8, target.arch, target.source), "warmup loads it"


def _granted(launch: dispatch.Launch) -> dict[str, int]:
    """What a launch's code takes for granted, as its source says; the launch has these values."""
    (body,) = re.findall(r"struct Params: AttentionParams \{\n((?:.*;\n)*)\};", render.render(launch.spec))
    granted = {name: int(value) for name, value in re.findall(r"static constexpr int (\w+) = (\d+);", body)}
    assert granted == launch.spec.granted
    (packed,) = np.frombuffer(launch.params, params.dtype())
    assert {name: packed[name] for name in granted} == granted
    return granted
