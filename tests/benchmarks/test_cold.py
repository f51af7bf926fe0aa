"""Cold compilation is timed in a process in which no cache can help."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("cupy", reason="NVRTC comes with CuPy")


def cold(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_CACHE_DISABLE"} | variables
    command = [sys.executable, "-m", "benchmarks.cold", "sm_90", "64"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_takes_time() -> None:
    found = cold(CUDA_CACHE_DISABLE="1")
    assert found.returncode == 0, found.stderr
    names, seconds = zip(*(line.split() for line in found.stdout.splitlines()), strict=True)
    assert [name.split("_")[0] for name in names] == ["one", "decode", "decode", "prefill", "append"]
    assert all(0 < float(s) < 60 for s in seconds)


def test_a_process_with_a_cache_is_refused() -> None:
    found = cold()
    assert found.returncode == 1
    assert "`CUDA_CACHE_DISABLE` must be 1 from the start" in found.stderr
