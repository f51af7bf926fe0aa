"""What holds for every test: a kernel store of the run's own, one BLAS thread per worker, `cuda` cases only where a GPU is usable, and
tests that compile only where there is a compiler; what is left out is skipped, and counted.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Their docstring examples need what they import; all of tests/interop is skipped without it, and counted.
_NEEDS = {"torch": ["pagedattn/torch.py"], "transformers": ["pagedattn/transformers"]}
collect_ignore = [path for name, paths in _NEEDS.items() if importlib.util.find_spec(name) is None for path in paths]

_OWN_HOME = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return  # xdist workers inherit the environment that the controller has set
    home = Path(tempfile.mkdtemp(prefix="pagedattn-test-home-"))
    config.stash[_OWN_HOME] = home
    os.environ["PAGEDATTN_HOME"] = str(home)
    for name in ("PAGEDATTN_STORE_PATH", "PAGEDATTN_JIT", "PAGEDATTN_CHECK", "PAGEDATTN_TUNED"):
        os.environ.pop(name, None)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := config.stash.get(_OWN_HOME, None):
        shutil.rmtree(home, ignore_errors=True)


@functools.cache
def _gpu_usable() -> bool:
    from pagedattn.devices import cuda

    return cuda.usable()


@functools.cache
def _compiler_missing() -> bool:
    from pagedattn import nvrtc
    from pagedattn.errors import UnsupportedError

    try:
        nvrtc.version()
    except UnsupportedError:
        return True
    return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = {name: [item for item in items if item.get_closest_marker(name)] for name in ("cuda", "nvrtc")}
    for item in marked["cuda"] if marked["cuda"] and not _gpu_usable() else ():
        item.add_marker(pytest.mark.skip(reason="no usable GPU"))
    for item in marked["nvrtc"] if marked["nvrtc"] and _compiler_missing() else ():
        item.add_marker(pytest.mark.skip(reason="no NVRTC"))


@pytest.fixture(autouse=True)
def _skip_where_it_would_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVRTC, a test ends as skipped where it first asks for it; one that asks in another process has the mark `nvrtc`."""
    if _compiler_missing():
        from pagedattn import nvrtc

        monkeypatch.setattr(nvrtc, "_library", functools.wraps(nvrtc._library)(lambda: pytest.skip("no NVRTC")))
