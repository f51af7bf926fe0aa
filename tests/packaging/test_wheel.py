"""What is built from this folder holds all it needs, and works from any other."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ("kernels/ptx/mma.cuh", "templates/decode.cu.j2", "demo/weights.npz", "py.typed")


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a wheel or an sdist as an installer does, in a process of its own."""
    target.mkdir(exist_ok=True)
    code = f"import hatchling.build as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_contents(wheel: Path) -> None:
    found = names(wheel)
    assert {f"pagedattn/{path}" for path in DATA} <= found
    tops = {name.partition("/")[0] for name in found}
    assert {top.partition("-")[0] for top in tops} == {"pagedattn"}, "nothing beside the package"
    sources = {p.relative_to(ROOT).as_posix() for folder in ("kernels", "templates") for p in (ROOT / folder).rglob("*") if p.is_file()}
    assert {f"pagedattn/{path}" for path in sources} <= found


def test_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert (unpacked / "tests").is_dir()
    assert names(build("wheel", unpacked, tmp_path / "again")) == names(wheel)


@pytest.mark.nvrtc
def test_works_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import pagedattn as pa, pagedattn.resources as r\n"
        "kernel = pa.compile(pa.KernelSpec(op='merge', head_dim=64))\n"
        "print(pa.__file__, r.folder('kernels'), r.folder('templates'), kernel.origin, sep='\\n')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(site), "PAGEDATTN_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True, check=True)
    package = site / "pagedattn"
    assert done.stdout.split() == [str(package / "__init__.py"), str(package / "kernels"), str(package / "templates"), "compiled"]
