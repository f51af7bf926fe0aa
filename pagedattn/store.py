"""The store: compiled kernels on disk, one directory each, moved into place by one rename.

`<spec.name>.<12 hex>/{kernel.cu, kernel.cubin, kernel.ptx, build.json}`, addressed by what went in, checked by checksum on the way out.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pagedattn import entry as entries
from pagedattn import env
from pagedattn.entry import FOLDER, Entry, folder, open_entry
from pagedattn.errors import UnsupportedError
from pagedattn.nvrtc import Compiled

ABANDONED_SECONDS = 3600.0  # a temporary directory this old belongs to a process that was killed

_TEMPORARY = ".tmp-"
_warned: set[Path] = set()


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
                return open_entry(root / folder(name, key), key).read()[1]
            except (OSError, ValueError):
                continue
        return None

    def put(self, name: str, recipe: Mapping[str, Any], source: str, compiled: Compiled) -> bool:
        """Store a kernel unless another process was faster; False, with one warning, if the home cannot be written."""
        return self.install(folder(name, entries.key(recipe)), entries.contents(name, recipe, source, compiled))

    def install(self, address: str, files: Mapping[str, bytes]) -> bool:
        """Put the files of an entry at its address, whole or not at all; as `put` otherwise."""
        temporary = self.path / f"{_TEMPORARY}{os.urandom(16).hex()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._sweep()
            try:
                temporary.mkdir()
                for name, content in files.items():
                    (temporary / name).write_bytes(content)
                self._move(temporary, self.path / address)
            finally:
                _remove(temporary)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def why_unwritable(self) -> str:
        """Why nothing can be stored here; empty if something can. Tries it."""
        probe = self.path / f"{_TEMPORARY}{os.urandom(16).hex()}"
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
                entry.check_address()
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
                if FOLDER.fullmatch(path.name):
                    self._discard(path)
                    count += 1
                elif path.name.startswith(_TEMPORARY) or path.name in ("failed", "parsed"):
                    _remove(path, True)
        except OSError as error:
            raise UnsupportedError(f"the store at {self.path} must be writable to be cleared; got {error}. Remove it by hand.") from error
        return count

    def _scan(self) -> Iterator[Entry | Damage]:
        for root in (self.path, *self.layers):
            for path in _children(root):
                if not FOLDER.fullmatch(path.name):
                    continue
                try:
                    entry = open_entry(path)
                except (OSError, ValueError) as error:
                    yield Damage(path, str(error))
                else:
                    yield Entry(path, entry.build, root == self.path)

    def _move(self, temporary: Path, target: Path) -> None:
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            try:
                found = open_entry(target)  # lost a race, and that is as good
                found.check_address()
                found.read()
            except (OSError, ValueError):
                self._discard(target)
                try:
                    temporary.rename(target)
                except OSError:
                    if not target.exists():  # else: lost a race after all
                        raise

    def _discard(self, path: Path) -> None:
        """Remove an entry so that no reader sees half of it."""
        away = self.path / f"{_TEMPORARY}{os.urandom(16).hex()}"
        try:
            path.rename(away)
        except FileNotFoundError:  # another process was faster
            return
        if away.is_dir():
            _remove(away, True)
        else:
            away.unlink()

    def _sweep(self) -> None:
        """Remove what killed processes left."""
        for path in _children(self.path):
            try:
                if path.name.startswith(_TEMPORARY) and time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    _remove(path)
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


def _remove(folder: Path, surely: bool = False) -> None:
    """Remove a folder with all that is in it; `surely`: or raise OSError."""
    import shutil  # here and not above: `import pagedattn` stays quick

    shutil.rmtree(folder, ignore_errors=not surely)


def _children(root: Path) -> list[Path]:
    try:
        return sorted(root.iterdir())
    except OSError:
        return []
