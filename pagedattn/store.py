"""The store: compiled kernels on disk, one directory each, moved into place by one rename.

`<spec.name>.<12 hex>/{kernel.cu, kernel.cubin, kernel.ptx, build.json}`, addressed by what went in, checked by checksum on the way out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pagedattn import env
from pagedattn.errors import UnsupportedError
from pagedattn.nvrtc import Compiled

SCHEMA = 1  # raise it when the same recipe compiles to something else, or the files of an entry change
FILES = ("kernel.cu", "kernel.cubin", "kernel.ptx")
ABANDONED_SECONDS = 3600.0  # a temporary directory this old belongs to a process that was killed

_NAME = re.compile(r"(\w+)\.([0-9a-f]{12})")
_TEMPORARY = ".tmp-"
_warned: set[Path] = set()


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
        data = {name: (self.path / name).read_bytes() for name in FILES}
        for name, content in data.items():
            if _sha256(content) != self.build["files"][name]:
                raise ValueError(f"{name} is not what was written: its checksum differs")
        source, cubin, ptx = data.values()
        return source.decode(), Compiled(cubin, ptx, self.build["log"], self.seconds)


class Damage(NamedTuple):
    """An entry that `Store.verify` found wanting, and why."""

    path: Path
    reason: str


class Store:
    """Compiled kernels under `path`, over read-only layers.

    Any failure to read is a miss; a failure to write is told once per process, as a warning.

    Parameters
    ----------
    home : path, optional
        Where to write; None: $PAGEDATTN_HOME, else the XDG cache folder.
    layers : iterable of paths, optional
        Where to look next, in order; None: $PAGEDATTN_STORE_PATH.

    Examples
    --------
    >>> Store("/nowhere/at/all").get("decode", "0" * 64) is None
    True
    """

    def __init__(self, home: str | Path | None = None, layers: Iterable[str | Path] | None = None) -> None:
        try:
            self.path = env.home() if home is None else Path(home).expanduser()
        except RuntimeError:  # a user without a home folder
            self.path = Path(os.devnull) / "pagedattn"  # where nothing can be: it fails as any unwritable home does
        self.layers = tuple(env.store_layers() if layers is None else map(Path, layers))

    def get(self, name: str, key: str) -> Compiled | None:
        """What was stored for this name and key, checked; None if there is nothing, or nothing whole."""
        for root in (self.path, *self.layers):
            try:
                return _open(root / _folder(name, key), key).read()[1]
            except (OSError, ValueError):
                continue
        return None

    def put(self, name: str, recipe: Mapping[str, Any], source: str, compiled: Compiled) -> bool:
        """Store a kernel unless another process was faster; False, with one warning, if the home cannot be written."""
        digest = key(recipe)
        target = self.path / _folder(name, digest)
        temporary = self.path / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            try:
                temporary.mkdir()
                _write(temporary, name, digest, recipe, source, compiled)
                self._move(temporary, target, digest)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def why_unwritable(self) -> str:
        """Why nothing can be stored here; empty if something can. Tries it."""
        probe = self.path / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            probe.mkdir(parents=True)
            probe.rmdir()
        except OSError as error:
            return str(error)
        return ""

    def entries(self) -> list[Entry]:
        """Every readable entry, own ones first, by name."""
        return [entry for entry in self._scan() if isinstance(entry, Entry)]

    def verify(self) -> list[Damage]:
        """Check every entry against its checksums and its address; returns those that fail. They are compiled anew when needed."""
        found = []
        for entry in self._scan():
            if isinstance(entry, Damage):
                found.append(entry)
                continue
            try:
                entry.read()
                _check_address(entry)
            except (OSError, ValueError) as error:
                found.append(Damage(entry.path, str(error)))
        return found

    def clear(self) -> int:
        """Remove everything of ours under `path`, layers excepted; returns how many kernels there were.

        Raises
        ------
        UnsupportedError
            If something cannot be removed.
        """
        count = 0
        try:
            for path in _children(self.path):
                if _NAME.fullmatch(path.name):
                    self._discard(path)
                    count += 1
                elif path.name.startswith(_TEMPORARY) or path.name in ("failed", "parsed"):
                    shutil.rmtree(path)
        except OSError as error:
            raise UnsupportedError(f"the store at {self.path} must be writable to be cleared; got {error}. Remove it by hand.") from error
        return count

    def _scan(self) -> Iterator[Entry | Damage]:
        for root in (self.path, *self.layers):
            for path in _children(root):
                if not _NAME.fullmatch(path.name):
                    continue
                try:
                    entry = _open(path)
                except (OSError, ValueError) as error:
                    yield Damage(path, str(error))
                else:
                    yield Entry(path, entry.build, root == self.path)

    def _move(self, temporary: Path, target: Path, digest: str) -> None:
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            try:
                _open(target, digest).read()  # lost a race, and that is as good
            except (OSError, ValueError):
                self._discard(target)
                try:
                    temporary.rename(target)
                except OSError:
                    if not target.exists():  # else: lost a race after all
                        raise

    def _discard(self, path: Path) -> None:
        """Remove an entry so that no reader sees half of it."""
        away = self.path / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            path.rename(away)
        except FileNotFoundError:  # another process was faster
            return
        if away.is_dir():
            shutil.rmtree(away)
        else:
            away.unlink()

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        for path in _children(self.path):
            try:
                if path.name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            except OSError:
                continue

    def _warn(self, error: OSError) -> None:
        if self.path not in _warned:
            _warned.add(self.path)
            warnings.warn(
                f"the kernel store {self.path} cannot be written ({error}); kernels that are compiled now last as long as this process. "
                "Set PAGEDATTN_HOME to a writable folder.",
                RuntimeWarning,
                stacklevel=2,
            )


def _folder(name: str, key: str) -> str:
    return f"{name}.{key[:12]}"


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _open(path: Path, key: str | None = None) -> Entry:
    """The entry in a directory; ValueError if build.json is damaged or belongs to another key."""
    build = json.loads((path / "build.json").read_bytes())
    if not isinstance(build, dict) or build.pop("checksum", None) != _sha256(_canonical(build)):
        raise ValueError("build.json is not what was written: its checksum differs")
    if not build.keys() >= {"name", "key", "recipe", "files", "log", "seconds"} or build["recipe"].get("schema") != SCHEMA:
        raise ValueError(f"build.json is not of schema {SCHEMA}: another version of the package wrote it")
    if key is not None and build["key"] != key:
        raise ValueError(f"the entry belongs to another key, {build['key']}")
    return Entry(path, build)


def _check_address(entry: Entry) -> None:
    recipe = entry.build["recipe"]
    if key(recipe) != entry.key or entry.path.name != _folder(entry.name, entry.key):
        raise ValueError("the entry lies at another address than its recipe makes")
    if entry.build["files"]["kernel.cu"] != recipe["source"]:
        raise ValueError("kernel.cu is not the source of the recipe")


def _write(folder: Path, name: str, digest: str, recipe: Mapping[str, Any], source: str, compiled: Compiled) -> None:
    contents = dict(zip(FILES, (source.encode(), compiled.cubin, compiled.ptx), strict=True))
    for file, content in contents.items():
        (folder / file).write_bytes(content)
    build: dict[str, Any] = {
        "name": name,
        "key": digest,
        "recipe": dict(recipe),
        "files": {file: _sha256(content) for file, content in contents.items()},
        "log": compiled.log,
        "seconds": round(compiled.seconds, 3),
    }
    build["checksum"] = _sha256(_canonical(build))
    (folder / "build.json").write_text(json.dumps(build, indent=1))


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
