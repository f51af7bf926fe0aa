"""What a result says of its machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import machine


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=folder, check=True, capture_output=True)


def test_commit(tmp_path: Path) -> None:
    assert machine.commit_of(tmp_path) is None, "no repository"
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "one")
    clean = machine.commit_of(tmp_path)
    assert clean
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert machine.commit_of(tmp_path) == f"{clean}-dirty"
    (tmp_path / "inside").mkdir()
    assert machine.commit_of(tmp_path / "inside") is None, "an archive unpacked inside another repository is not that repository"


def test_versions_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("numpy", "no-such-package-of-anyone"))
    import numpy

    assert machine.versions() == {"numpy": numpy.__version__, "no-such-package-of-anyone": None}


def test_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["--id=1", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader"]
        return subprocess.CompletedProcess(command, 0, "1980 MHz, 123.4 W\n", "")

    monkeypatch.setattr(machine.subprocess, "run", answers)
    assert machine.asked("clocks.sm,power.draw", 1) == {"clocks.sm": "1980 MHz", "power.draw": "123.4 W"}


def test_no_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], **_: object) -> None:
        raise FileNotFoundError(command[0])

    monkeypatch.setattr(machine.subprocess, "run", fails)
    assert machine.asked("driver_version") == {}
