"""bench: the benchmark of the source tree, from the command line. It is no part of an installed package."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pagedattn.devices import cuda
from pagedattn.errors import UnsupportedError

ROOT = Path(__file__).resolve().parents[1]


def command(sections: Sequence[str] | None, file: Path | None, root: Path | None = None) -> list[str]:
    """What runs it.

    Raises
    ------
    UnsupportedError
        There is no source tree around this package, or no GPU.
    """
    root = root or ROOT
    if not (root / "benchmarks" / "__main__.py").is_file():
        raise UnsupportedError(f"`pagedattn bench` needs the source tree; {root} has no folder benchmarks. Run it in a checkout.")
    if not cuda.usable():
        raise UnsupportedError("`pagedattn bench` measures a GPU, and none is usable; `pagedattn doctor` says why.")
    only = ["--only", ",".join(sections)] if sections else []
    return [sys.executable, "-m", "benchmarks", *only, *(["--json", str(file)] if file else [])]


def run(sections: Sequence[str] | None = None, as_json: bool = False) -> int:
    """Run the benchmark; its exit status. With `as_json` only the figures, or that there are none, go to stdout."""
    if not as_json:
        return subprocess.run(command(sections, None), cwd=ROOT, check=False).returncode
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        status = subprocess.run(command(sections, file), cwd=ROOT, stdout=sys.stderr, check=False).returncode
        print(json.dumps({"error": f"the benchmark ended with status {status}; stderr says why"}) if status else file.read_text().rstrip())
    return status
