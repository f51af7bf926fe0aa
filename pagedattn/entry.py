"""Entry: one kernel of a store, its address made of all that went into it, and its files checked against their checksums."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedattn.nvrtc import Compiled

SCHEMA = 1  # raise it when the same recipe compiles to something else, or the files of an entry change
FILES = ("kernel.cu", "kernel.cubin", "kernel.ptx")
BUILD = "build.json"
FOLDER = re.compile(r"(\w+)\.([0-9a-f]{12})", re.ASCII)


def recipe(source: str, arch: str, flags: Iterable[str], nvrtc: tuple[int, int], headers: Mapping[str, bytes]) -> dict[str, Any]:
    """Everything that decides what a kernel compiles to; large parts by their SHA-256."""
    return {
        "schema": SCHEMA,
        "nvrtc": f"{nvrtc[0]}.{nvrtc[1]}",
        "arch": arch,
        "flags": list(flags),
        "source": _sha256(source.encode()),
        "headers": {name: _sha256(headers[name]) for name in sorted(headers)},
    }


def key(recipe: Mapping[str, Any]) -> str:
    """The SHA-256 of a recipe: the address of what it makes. No path, user, time or host is in it.

    >>> made = key(recipe("int x;", "sm_80", ["-arch=sm_80"], (12, 9), {}))
    >>> made == key(recipe("int x;", "sm_80", ["-arch=sm_80"], (12, 8), {}))
    False
    """
    return _sha256(_canonical(recipe))


@dataclass(frozen=True)
class Entry:
    """One kernel in the store.

    Attributes
    ----------
    path : Path
        Its directory.
    build : dict
        What build.json says: name, key, recipe, files, log, seconds.
    writable : bool
        False in a layer.
    """

    path: Path
    build: dict[str, Any]
    writable: bool = True

    @property
    def name(self) -> str:
        """The spec's name."""
        return str(self.build["name"])

    @property
    def key(self) -> str:
        return str(self.build["key"])

    @property
    def arch(self) -> str:
        return str(self.build["recipe"]["arch"])

    @property
    def nvrtc(self) -> str:
        """The compiler's version, such as "12.9"."""
        return str(self.build["recipe"]["nvrtc"])

    @property
    def seconds(self) -> float:
        """What compiling took."""
        return float(self.build["seconds"])

    @property
    def num_bytes(self) -> int:
        """What its files take on disk."""
        return sum(p.stat().st_size for p in self.path.iterdir())

    def read(self) -> tuple[str, Compiled]:
        """The source and what it compiled to; ValueError or OSError if a file is missing or is not what was written."""
        return verified(self.build, {name: (self.path / name).read_bytes() for name in FILES})

    def check_address(self) -> None:
        """ValueError if it does not lie where its recipe belongs."""
        if self.path.name != address(self.build):
            raise ValueError("the entry lies at another address than its recipe makes")


def open_entry(path: Path, key: str | None = None) -> Entry:
    """The entry in a directory; ValueError or OSError if build.json is missing, damaged or belongs to another key."""
    build = described((path / BUILD).read_bytes())
    if key is not None and build["key"] != key:
        raise ValueError(f"the entry belongs to another key, {build['key']}")
    return Entry(path, build)


def described(text: bytes) -> dict[str, Any]:
    """What a build.json says; ValueError if it is damaged, or another version's."""
    build = json.loads(text)
    if not isinstance(build, dict) or build.pop("checksum", None) != _sha256(_canonical(build)):
        raise ValueError("build.json is not what was written: its checksum differs")
    if not build.keys() >= {"name", "key", "recipe", "files", "log", "seconds"} or build["recipe"].get("schema") != SCHEMA:
        raise ValueError(f"build.json is not of schema {SCHEMA}: another version of the package wrote it")
    return build


def verified(build: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[str, Compiled]:
    """The source and what it compiled to; ValueError if a file is not what was written."""
    for name in FILES:
        if _sha256(files[name]) != build["files"][name]:
            raise ValueError(f"{name} is not what was written: its checksum differs")
    source, cubin, ptx = (files[name] for name in FILES)
    return source.decode(), Compiled(cubin, ptx, build["log"], float(build["seconds"]))


def address(build: Mapping[str, Any]) -> str:
    """The directory that an entry belongs into; ValueError if its key is not its recipe's."""
    if key(build["recipe"]) != build["key"]:
        raise ValueError("the entry lies at another address than its recipe makes")
    if build["files"]["kernel.cu"] != build["recipe"]["source"]:
        raise ValueError("kernel.cu is not the source of the recipe")
    return folder(str(build["name"]), str(build["key"]))


def folder(name: str, key: str) -> str:
    """The directory of a name and a key."""
    return f"{name}.{key[:12]}"


def contents(name: str, recipe: Mapping[str, Any], source: str, compiled: Compiled) -> dict[str, bytes]:
    """The files of a new entry."""
    files = dict(zip(FILES, (source.encode(), compiled.cubin, compiled.ptx), strict=True))
    build: dict[str, Any] = {
        "name": name,
        "key": key(recipe),
        "recipe": dict(recipe),
        "files": {file: _sha256(content) for file, content in files.items()},
        "log": compiled.log,
        "seconds": round(compiled.seconds, 3),
    }
    build["checksum"] = _sha256(_canonical(build))
    return {**files, BUILD: json.dumps(build, indent=1).encode()}


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    import hashlib  # here and not above: `import pagedattn` stays quick

    return hashlib.sha256(data).hexdigest()
