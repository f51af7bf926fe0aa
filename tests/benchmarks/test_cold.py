"""Cold compilation is timed in a process in which no cache can help."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("cupy", reason="NVRTC comes with CuPy")


def cold(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_CACHE_DISABLE"} | variables
    command = [sys.executable, "-m", "benchmarks.cold", "sm_90", "64", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_takes_time() -> None:
    found = cold("--rounds", "2", CUDA_CACHE_DISABLE="1")
    assert found.returncode == 0, found.stderr
    names, least, most = zip(*(line.split() for line in found.stdout.splitlines()), strict=True)
    assert [name.split("_")[0] for name in names] == ["one", "decode", "decode", "prefill", "append"]
    assert all(0 < float(a) <= float(b) < 60 for a, b in zip(least, most, strict=True))
    assert least != most
    assert found.stderr.splitlines() == ["round 1 of 2: 5 kernels", "round 2 of 2: 5 kernels"]


def test_no_rounds_are_refused() -> None:
    found = cold("--rounds", "0", CUDA_CACHE_DISABLE="1")
    assert found.returncode == 2
    assert "`--rounds` must be 1 or more; got 0" in found.stderr


def test_a_process_with_a_cache_is_refused() -> None:
    found = cold()
    assert found.returncode == 1
    assert "`CUDA_CACHE_DISABLE` must be 1 from the start" in found.stderr
