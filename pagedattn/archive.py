"""Archive: a store as one tar file. Nothing of it is believed: every byte is checked before the first kernel is put into a store.

The first member, `pagedattn-store.json`, lists the entries; `<entry>/<file>` of each follow. Equal stores make equal archives.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pagedattn import entry
from pagedattn.entry import BUILD, FILES, FOLDER
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.store import Store

INDEX = "pagedattn-store.json"
SCHEMA = 1
MOST_BYTES = 1 << 26  # of one member: kernels are far smaller, and a damaged or hostile file must not fill the memory

_MEMBERS = (*FILES, BUILD)


@dataclass(frozen=True)
class Packed:
    """What `pack` did: names of the kernels in the archive, and directories that were damaged and left out."""

    names: tuple[str, ...]
    left_out: tuple[Path, ...]


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` did: names of the kernels that it added, and of those that the store had."""

    added: tuple[str, ...]
    present: tuple[str, ...]


def pack(store: Store, file: str | Path) -> Packed:
    """Write every whole kernel of a store, its layers included, to a tar file; compressed if the name ends in .gz or .tgz.

    Raises
    ------
    ArgumentError
        The store has no whole kernel.
    UnsupportedError
        The file cannot be written. What was there before is there still.

    Examples
    --------
    >>> import tempfile, pagedattn as pa
    >>> from pagedattn.store import Store
    >>> kernel = pa.compile(pa.KernelSpec("merge", arch="sm_80"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = pack(Store(), f"{folder}/kernels.tar.gz")
    ...     unpacked = unpack(Store(f"{folder}/other", []), f"{folder}/kernels.tar.gz")
    >>> kernel.name in packed.names, unpacked.added == packed.names
    (True, True)
    """
    damaged = {x.path for x in store.verify()}
    found = {x.path.name: x for x in reversed(store.entries()) if x.path not in damaged}  # of two, the user's own
    if not found:
        raise ArgumentError(f"the store must hold whole kernels to be packed; {store.path} has none. `pagedattn precompile` makes them.")
    target = Path(file)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        try:
            with _writing(temporary, target.suffix in (".gz", ".tgz")) as tar:
                _add(tar, INDEX, json.dumps({"schema": SCHEMA, "entries": sorted(found)}, indent=1).encode())
                for name in sorted(found):
                    for member in _MEMBERS:
                        _add(tar, f"{name}/{member}", (found[name].path / member).read_bytes())
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UnsupportedError(f"{target} must be writable; got {error}.") from error
    return Packed(tuple(found[name].name for name in sorted(found)), tuple(sorted(damaged)))


def unpack(store: Store, file: str | Path) -> Unpacked:
    """Put the kernels of an archive into a store.

    The archive is read twice, once to check all of it: nothing is added from one that is damaged, lacks something that its index lists, or
    holds anything else than the files of kernels. Its names never become paths; every kernel goes where its own recipe belongs.
    Checksums find damage, not intent: code that a GPU will run should come from someone you trust.

    Raises
    ------
    ArgumentError
        The archive is not such a one, or not whole. Nothing was added.
    UnsupportedError
        The store cannot be written.
    """
    expected = {address for address, _ in _checked(Path(file))}
    if why := store.why_unwritable():
        raise UnsupportedError(f"the store at {store.path} must be writable to be filled; {why}. Set PAGEDATTN_HOME.")
    had = {x.path.name for x in store.entries() if x.writable} - {d.path.name for d in store.verify()}
    for address, files in _checked(Path(file)):
        if address not in had and address in expected and not store.install(address, files):
            raise UnsupportedError(f"the store at {store.path} must be writable to be filled; it refused {address}.")
    added, present = (tuple(x.rpartition(".")[0] for x in sorted(some)) for some in (expected - had, expected & had))
    return Unpacked(added, present)


def _checked(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every entry of an archive; ArgumentError if something is wrong with it."""
    try:
        yield from _entries(path)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} must be an archive that `pagedattn store pack` has written, and whole; {error}.") from error


def _entries(path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Every entry of an archive, checked: its address, and its files by name; ValueError and others if something is wrong."""
    with tarfile.open(path, "r:*") as tar:
        members = iter(tar)
        name, text = _read(tar, next(members, None))
        index = json.loads(text) if name == INDEX else None
        if not isinstance(index, dict) or index.get("schema") != SCHEMA:
            raise ValueError(f"its first member must be {INDEX} of schema {SCHEMA}; got {name}")
        for address in index["entries"]:
            if not isinstance(address, str) or not FOLDER.fullmatch(address):
                raise ValueError(f"its index names {address!r}, which no kernel is called")
            files = {}
            for member in _MEMBERS:
                name, files[member] = _read(tar, next(members, None))
                if name != f"{address}/{member}":
                    raise ValueError(f"{address}/{member} must follow; got {name}")
            build = entry.described(files[BUILD])
            entry.verified(build, files)
            if entry.address(build) != address:
                raise ValueError(f"{address} belongs to {entry.address(build)}")
            yield address, files
        if (extra := next(members, None)) is not None:
            raise ValueError(f"it holds {extra.name!r}, which its index does not name")
        assert tar.fileobj is not None
        while rest := tar.fileobj.read(1 << 20):  # to the end, where a compressed file has its checksum
            if any(rest):
                raise ValueError("something follows its end")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> tuple[str, bytes]:
    if member is None:
        raise ValueError("it ends too early")
    if not member.isreg() or member.size > MOST_BYTES:
        raise ValueError(f"{member.name!r} must be a plain file of at most {MOST_BYTES} bytes")
    stream = tar.extractfile(member)
    assert stream is not None
    data = stream.read()
    if len(data) != member.size:
        raise ValueError(f"{member.name!r} is cut short")
    return member.name, data


@contextmanager
def _writing(path: Path, compressed: bool) -> Iterator[tarfile.TarFile]:
    with open(path, "wb") as raw:
        packer: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if compressed else None
        stream: IO[bytes] = packer or raw
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            yield tar
        if packer:
            packer.close()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time: the archive says nothing of this machine
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))
