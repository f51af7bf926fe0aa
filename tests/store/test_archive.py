"""Archives of a store: equal stores make equal files, and nothing comes out of one that is not what `pack` wrote."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pagedattn as pa
from pagedattn import archive, entry
from pagedattn.archive import INDEX, pack, unpack
from pagedattn.store import Store
from tests.store.workers import example

NAME, RECIPE, SOURCE, COMPILED = example()
FIRST = entry.folder(NAME, entry.key(RECIPE))


@pytest.fixture
def shelf(tmp_path: Path) -> Store:
    """A store of three kernels, one of them in a layer."""
    store = Store(tmp_path / "home", [tmp_path / "layer"])
    store.put(NAME, RECIPE, SOURCE, COMPILED)
    store.put("other", {**RECIPE, "arch": "sm_90"}, SOURCE, COMPILED)
    Store(tmp_path / "layer", []).put("below", {**RECIPE, "arch": "sm_86"}, SOURCE, COMPILED)
    return store


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    return Store(tmp_path / "elsewhere", [])


@pytest.mark.parametrize("name", ["kernels.tar", "kernels.tar.gz", "kernels.tgz"])
def test_round_trip(shelf: Store, elsewhere: Store, tmp_path: Path, name: str) -> None:
    packed = pack(shelf, tmp_path / name)
    assert sorted(packed.names) == sorted(["below", NAME, "other"])
    assert packed.left_out == ()
    assert unpack(elsewhere, tmp_path / name).added == packed.names
    assert unpack(elsewhere, tmp_path / name) == archive.Unpacked((), packed.names)
    assert elsewhere.get(NAME, entry.key(RECIPE)) == COMPILED
    assert elsewhere.verify() == []
    assert [x.read() for x in elsewhere.entries()] == [(SOURCE, COMPILED)] * 3
    assert (gzip.decompress if name.endswith("gz") else bytes)((tmp_path / name).read_bytes())[:100].startswith(INDEX.encode())
    assert not list(tmp_path.glob(".kernels*"))


def test_equal_stores_make_equal_archives(shelf: Store, elsewhere: Store, tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar.gz"):
        pack(shelf, tmp_path / name)
        unpack(elsewhere, tmp_path / name)
        (tmp_path / "again").mkdir(exist_ok=True)
        pack(elsewhere, tmp_path / "again" / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime, m.mode) for m in tar} == {(0, 0, "", "", 0, 0o644)}


def test_a_damaged_kernel_is_left_out_and_then_replaced(shelf: Store, tmp_path: Path) -> None:
    pack(shelf, tmp_path / "whole.tar")
    (shelf.path / FIRST / "kernel.cubin").write_bytes(b"other")
    packed = pack(shelf, tmp_path / "rest.tar")
    assert sorted(packed.names) == ["below", "other"]
    assert packed.left_out == (shelf.path / FIRST,)
    assert unpack(shelf, tmp_path / "whole.tar").added == ("below", NAME) if NAME > "below" else (NAME, "below")
    assert shelf.get(NAME, entry.key(RECIPE)) == COMPILED


def test_pack_refuses(shelf: Store, elsewhere: Store, tmp_path: Path) -> None:
    with pytest.raises(pa.ArgumentError, match="must hold whole kernels to be packed"):
        pack(elsewhere, tmp_path / "x.tar")
    with pytest.raises(pa.UnsupportedError, match="must be writable"):
        pack(shelf, tmp_path / "nowhere" / "x.tar")
    assert not (tmp_path / "x.tar").exists()


Member = tuple[str, bytes]


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]


def written(path: Path, content: list[Member | tarfile.TarInfo]) -> None:
    with tarfile.open(path, "w") as tar:
        for x in content:
            info = x if isinstance(x, tarfile.TarInfo) else tarfile.TarInfo(x[0])
            data = b"" if isinstance(x, tarfile.TarInfo) else x[1]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def renamed(all_: list[Any], old: str, new: str) -> list[Any]:
    """Everything of an entry under another name, in the index too."""
    index = json.loads(all_[0][1])
    index["entries"] = [new if x == old else x for x in index["entries"]]
    return [(INDEX, json.dumps(index).encode()), *((n.replace(old, new), data) for n, data in all_[1:])]


def forged(all_: list[Any]) -> list[Any]:
    """A build.json whose own checksum is right and whose recipe is no recipe."""
    build = json.loads(all_[4][1])
    build.pop("checksum")
    build["recipe"] = []
    build["checksum"] = entry._sha256(entry._canonical(build))
    return [*all_[:4], (all_[4][0], json.dumps(build).encode()), *all_[5:]]


SPOILED: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "no index": (lambda a: a[1:], f"first member must be {INDEX}"),
    "nothing": (lambda a: [], "."),
    "index of another schema": (lambda a: [(INDEX, b'{"schema": 2, "entries": []}'), *a[1:]], "of schema 1"),
    "index of nonsense": (lambda a: [(INDEX, b"\xff"), *a[1:]], "."),
    "index of no names": (lambda a: [(INDEX, b'{"schema": 1, "entries": [7]}'), *a[1:]], "names 7"),
    "a flipped byte": (lambda a: [*a[:2], (a[2][0], a[2][1][:-1] + b"!"), *a[3:]], "checksum differs"),
    "a flipped byte of the last file": (lambda a: [*a[:-1], (a[-1][0], a[-1][1].replace(b"{", b" {", 1).replace(b'"log"', b'"lag"'))], "."),
    "a file less": (lambda a: a[:-1], "ends too early"),
    "an entry less": (lambda a: a[:-4], "ends too early"),
    "files in another order": (lambda a: [a[0], a[2], a[1], *a[3:]], "must follow; got"),
    "a file more": (lambda a: [*a, ("surplus", b"")], "holds 'surplus'"),
    "a file twice": (lambda a: [*a, a[-1]], "which its index does not name"),
    "another entry's content": (lambda a: renamed(a, a[1][0].partition("/")[0], "name.0123456789ab"), "belongs to"),
    "a path upwards": (lambda a: renamed(a, a[1][0].partition("/")[0], "../../x.0123456789ab"), "which no kernel is called"),
    "an absolute path": (lambda a: renamed(a, a[1][0].partition("/")[0], "/tmp/x.0123456789ab"), "which no kernel is called"),
    "a file upwards": (lambda a: [*a, ("../evil", b"evil")], r"holds '\.\./evil'"),
    "a link": (lambda a: [a[0], special(a[1][0], tarfile.SYMTYPE, "/etc/passwd"), *a[2:]], "must be a plain file"),
    "a hard link": (lambda a: [*a[:2], special(a[2][0], tarfile.LNKTYPE, a[1][0]), *a[3:]], "must be a plain file"),
    "a folder": (lambda a: [a[0], special(a[1][0].partition("/")[0], tarfile.DIRTYPE), *a[1:]], "must be a plain file"),
    "a device": (lambda a: [a[0], special(a[1][0], tarfile.CHRTYPE), *a[2:]], "must be a plain file"),
    "a forged recipe": (forged, "."),
}


@pytest.mark.parametrize("name", SPOILED)
def test_nothing_comes_out_of_a_spoiled_archive(shelf: Store, elsewhere: Store, tmp_path: Path, name: str) -> None:
    pack(shelf, tmp_path / "good.tar")
    spoil, text = SPOILED[name]
    written(tmp_path / "bad.tar", spoil(members(tmp_path / "good.tar")))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(pa.ArgumentError, match=f"bad.tar must be an archive that `pagedattn store pack` has written, and whole; .*{text}"):
        unpack(elsewhere, tmp_path / "bad.tar")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_was_spoiled_was_good(shelf: Store, elsewhere: Store, tmp_path: Path) -> None:
    """The way in which the archives above are written is not what makes them bad."""
    pack(shelf, tmp_path / "good.tar")
    written(tmp_path / "copy.tar", list(members(tmp_path / "good.tar")))
    assert len(unpack(elsewhere, tmp_path / "copy.tar").added) == 3


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_truncated_and_flipped_anywhere(shelf: Store, elsewhere: Store, tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, an archive gives nothing; with a byte flipped it gives nothing, or all as it was (padding, a header's mode)."""
    good, bad = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    pack(shelf, good)
    data = good.read_bytes()
    wanted = data.rstrip(b"\0") if suffix == "tar" else data
    for size in range(0, len(wanted), max(1, len(wanted) // 60)):
        bad.write_bytes(data[:size])
        with pytest.raises(pa.ArgumentError):
            unpack(elsewhere, bad)
        assert elsewhere.entries() == []
    refused = 0
    for at in range(0, len(wanted), max(1, len(wanted) // 120)):
        bad.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        try:
            unpack(elsewhere, bad)
        except pa.ArgumentError:
            refused += 1
            assert elsewhere.entries() == []
        else:
            assert sorted(x.path.name for x in elsewhere.entries()) == sorted(x.path.name for x in shelf.entries())
            assert elsewhere.verify() == []
            elsewhere.clear()
    assert refused > 50


def test_what_follows_the_end(shelf: Store, elsewhere: Store, tmp_path: Path) -> None:
    pack(shelf, tmp_path / "x.tar")
    with open(tmp_path / "x.tar", "ab") as file:
        file.write(b"more")
    with pytest.raises(pa.ArgumentError, match="something follows its end"):
        unpack(elsewhere, tmp_path / "x.tar")


def test_members_have_a_limit(shelf: Store, elsewhere: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(shelf, tmp_path / "x.tar")
    monkeypatch.setattr(archive, "MOST_BYTES", 100)
    with pytest.raises(pa.ArgumentError, match="plain file of at most 100 bytes"):
        unpack(elsewhere, tmp_path / "x.tar")


def test_unpack_into_what_cannot_be_written(shelf: Store, tmp_path: Path) -> None:
    pack(shelf, tmp_path / "x.tar")
    (tmp_path / "file").write_text("")
    with pytest.raises(pa.UnsupportedError, match="must be writable to be filled"):
        unpack(Store(tmp_path / "file" / "home", []), tmp_path / "x.tar")
    with pytest.raises(pa.ArgumentError, match="nowhere must be an archive"):
        unpack(Store(tmp_path / "home2", []), tmp_path / "nowhere")
