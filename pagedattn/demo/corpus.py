"""The text that the demo's model learns: sources and reference pages of Python's own standard library (PSF licence)."""

from __future__ import annotations

import hashlib
import importlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from pagedattn.demo.model import END

# Not the library's own text: others' packages, tests, tables, generated files.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
_SKIPPED_FILES = {"html/entities.py", "stringprep.py", "this.py"}
_HELD_OUT = 13  # of 256


def documents(root: Path | None = None) -> Iterator[tuple[str, bytes]]:
    """(name, text) of every document, in the order of their names: the library's modules and the pages of `help()`.

    Parameters
    ----------
    root : Path, optional
        The library's folder; None: the running Python's.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    names = {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    for name in sorted(filter(_wanted, names)):
        text = (root / name).read_bytes().replace(b"\r\n", b"\n")
        if text.strip() and END not in text and _is_utf8(text):
            yield name, text
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some distributions package it apart
        return
    for name, page in sorted(topics.items()):
        yield f"topics/{name}", page.encode()


def is_held_out(name: str) -> bool:
    """Whether a document is for measuring only. It depends on the name alone, so it holds for every Python version.

    >>> is_held_out("textwrap.py"), is_held_out("zipapp.py")
    (False, False)
    """
    return hashlib.sha256(name.encode()).digest()[0] < _HELD_OUT


def read(root: Path | None = None) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """All text as bytes, (for training, held out); every document begins with END."""
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name, text in documents(root):
        parts[is_held_out(name)].append(bytes([END]) + text)
    training, held_out = (np.frombuffer(b"".join(part), np.uint8) for part in parts)
    return training, held_out


def _wanted(name: str) -> bool:
    path = PurePosixPath(name)
    generated = path.name.startswith("_sysconfigdata") or path.parts[0].startswith("config-")
    return not (_SKIPPED_FOLDERS.intersection(path.parts) or name in _SKIPPED_FILES or generated)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
