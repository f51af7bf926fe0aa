"""The benchmark's examples are true: those of its modules that need no GPU."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["cold", "join", "plots", "roofline", "tables", "work_table"])
def test_examples(name: str) -> None:
    if name in ("cold", "work_table"):
        pytest.importorskip("cupy", reason="CuPy is not installed")
    if name in ("plots", "roofline"):
        pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    found = doctest.testmod(importlib.import_module(f"benchmarks.{name}"), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0
