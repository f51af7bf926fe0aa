"""Cold compilation is timed in a process in which no cache can help."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("cupy", reason="NVRTC comes with CuPy")

from benchmarks import build, cold  # they import CuPy
from benchmarks.measure import Effort


def run_cold(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_CACHE_DISABLE"} | variables
    command = [sys.executable, "-m", "benchmarks.cold", "sm_90", "64", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_takes_time() -> None:
    found = run_cold("--rounds", "2", CUDA_CACHE_DISABLE="1")
    assert found.returncode == 0, found.stderr
    names, least, most = zip(*(line.split() for line in found.stdout.splitlines()), strict=True)
    assert [name.split("_")[0] for name in names] == ["one", "decode", "decode", "prefill", "append"]
    assert all(0 < float(a) <= float(b) < 60 for a, b in zip(least, most, strict=True))
    assert least != most
    assert found.stderr.splitlines() == ["round 1 of 2: 5 kernels", "round 2 of 2: 5 kernels"]


def test_no_rounds_are_refused() -> None:
    found = run_cold("--rounds", "0", CUDA_CACHE_DISABLE="1")
    assert found.returncode == 2
    assert "`--rounds` must be 1 or more; got 0" in found.stderr


def test_a_process_with_a_cache_is_refused() -> None:
    found = run_cold()
    assert found.returncode == 1
    assert "`CUDA_CACHE_DISABLE` must be 1 from the start" in found.stderr


def test_what_there_are_no_kernels_for_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_CACHE_DISABLE", "1")
    for arguments, text in ((["sm_60"], "sm_60 is not a target"), (["sm_90", "65"], "`head_dim` must be"), (["bogus"], "bogus")):
        monkeypatch.setattr(sys, "argv", ["cold", *arguments])
        with pytest.raises(SystemExit, match="2"):
            cold.main()
        assert text in capsys.readouterr().err


def test_the_least_and_the_most_of_all_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now, took = 0.0, {}

    def compiled(source: str, name: str, *given: Any) -> None:
        nonlocal now
        took.setdefault(name, iter((0.5, 0.25, 0.75)))
        now += 0.0 if name == "warm" else next(took[name])

    monkeypatch.setenv("CUDA_CACHE_DISABLE", "1")
    monkeypatch.setattr(sys, "argv", ["cold", "sm_90", "64"])
    monkeypatch.setattr(cold.nvrtc, "compile", compiled)
    monkeypatch.setattr(cold.time, "perf_counter", lambda: now)
    cold.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:] for line in lines] == [["0.250", "0.750"]] * 5


def test_the_section_reads_what_was_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = cold.specs("sm_90")[-1]
    hits = iter(("90.5 compiled", "1.5 store", "1.25 store", "2.0 store", "1.75 store"))

    def run(command: list[str], **keywords: Any) -> subprocess.CompletedProcess[str]:
        if "benchmarks.cold" not in command:
            return subprocess.CompletedProcess(command, 0, next(hits))
        assert keywords["env"]["CUDA_CACHE_DISABLE"] == "1"
        return subprocess.CompletedProcess(command, 0, f"one_line 0.025 0.030\n{spec.name} 0.600 0.900\n")

    class Device:
        compute_capability = "90"

    monkeypatch.setattr(build.subprocess, "run", run)
    monkeypatch.setattr(build.cp.cuda, "Device", Device)
    results: dict[str, Any] = {}
    build.build(results, Effort())
    what = {"op": "prefill", "splits": "whole", "head_dim": 128, "kv_dtype": "float16", "general": True}
    assert results["compile"] == [
        {"kernel": "one_line", "least_s": 0.025, "most_s": 0.03},
        {"kernel": spec.name, "least_s": 0.6, "most_s": 0.9, **what},
    ]
    assert results["store_hit_ms"] == 1.25
