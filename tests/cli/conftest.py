"""The command line, run in this process over an empty store."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagedattn import build, cli


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and no kernel in this process's memory."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    build.forget()
    return tmp_path / "home"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; returns (status, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = cli.main(argv)
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run
