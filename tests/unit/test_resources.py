"""The package's folders are found in a checkout and in an installed wheel, and nobody else's are taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagedattn import resources
from pagedattn.errors import UnsupportedError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty package in a folder of its own, where `resources` believes to be."""
    folder = tmp_path / "root" / "pagedattn"
    folder.mkdir(parents=True)
    monkeypatch.setattr(resources, "__file__", str(folder / "resources.py"))
    monkeypatch.setattr(resources, "folder", resources.folder.__wrapped__)
    return folder


def test_wheel(package: Path) -> None:
    (package / "kernels").mkdir()
    (package.parent / "kernels").mkdir()
    assert resources.folder("kernels") == package / "kernels"


def test_checkout(package: Path) -> None:
    (package.parent / "templates").mkdir()
    (package.parent / "pyproject.toml").touch()
    assert resources.folder("templates") == package.parent / "templates"


def test_a_neighbour_in_site_packages_is_not_ours(package: Path) -> None:
    (package.parent / "kernels").mkdir()
    with pytest.raises(
        UnsupportedError, match=r"must hold the folder 'kernels'; there is none at .*pagedattn.kernels\. Install pagedattn again"
    ):
        resources.folder("kernels")


@pytest.mark.parametrize("name", ["kernels", "templates"])
def test_here(name: str) -> None:
    assert any(resources.folder(name).rglob("*.cuh" if name == "kernels" else "*.cu.j2"))
