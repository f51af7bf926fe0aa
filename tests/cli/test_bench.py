"""`pagedattn bench`: it runs what `make bench` runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pagedattn
from pagedattn import bench


def test_bench(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs what `make bench` runs; here in place of the benchmark a program that says what it was asked."""
    monkeypatch.setattr(bench.cuda, "usable", lambda: True)
    root = Path(pagedattn.__file__).parents[1]
    assert bench.command(["host", "build"], None) == [sys.executable, "-m", "benchmarks", "--only", "host,build"]
    assert (root / "benchmarks" / "__main__.py").is_file()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text(
        "import sys, pathlib\nprint('a table')\na = sys.argv[1:]\n"
        "if '--json' in a: pathlib.Path(a[a.index('--json') + 1]).write_text('{\"host_us\": 7}\\n')\nsys.exit('wrong' in a)\n"
    )
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    done = [
        sys.executable,
        "-c",
        "import sys; from pagedattn import bench, cli; from pathlib import Path\nbench.ROOT = Path(sys.argv[1])\n"
        "bench.cuda.usable = lambda: True\nsys.exit(cli.main(sys.argv[2:]))",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def answer(*argv: str) -> tuple[int, str]:
        found = subprocess.run([*done, *argv], env=environment, capture_output=True, text=True, check=False)
        return found.returncode, found.stdout

    assert answer("bench") == (0, "a table\n")
    assert answer("bench", "--only", "host", "--json") == (0, '{"host_us": 7}\n')
    status, out = answer("bench", "--only", "wrong", "--json")
    assert (status, list(json.loads(out))) == (1, ["error"])


def test_bench_refuses(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.cuda, "usable", lambda: False)
    status, out, err = run("bench")
    assert (status, out) == (1, "")
    assert "none is usable" in err
    with pytest.raises(pagedattn.UnsupportedError, match=r"needs the source tree; .* has no folder benchmarks"):
        bench.command(None, None, tmp_path)
