"""The store in one process: what the key covers, what damage does, layers, homes that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pagedattn as pa
from pagedattn import entry, store
from pagedattn.entry import FILES
from pagedattn.store import Store
from tests.store.workers import HEADERS, example

NAME, RECIPE, SOURCE, COMPILED = example()
KEY = entry.key(RECIPE)


@pytest.fixture
def shelf(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", [])


@pytest.fixture(autouse=True)
def _warn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_warned", set())


def _only_entry(home: Path) -> Path:
    (path,) = home.iterdir()
    return path


def test_round_trip(shelf: Store) -> None:
    assert shelf.get(NAME, KEY) is None
    assert shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert shelf.get(NAME, KEY) == COMPILED
    path = _only_entry(shelf.path)
    assert path.name == f"{NAME}.{KEY[:12]}"
    assert {p.name for p in path.iterdir()} == {"kernel.cu", "kernel.cubin", "kernel.ptx", "build.json"}
    assert (path / "kernel.cubin").read_bytes() == COMPILED.cubin
    (entry,) = shelf.entries()
    assert (entry.name, entry.key, entry.arch, entry.nvrtc, entry.seconds, entry.writable) == (NAME, KEY, "sm_80", "12.9", 0.5, True)
    assert entry.num_bytes == sum(p.stat().st_size for p in path.iterdir())
    assert entry.read() == (SOURCE, COMPILED)
    assert shelf.verify() == []


def test_getting_takes_two_milliseconds_at_most(shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        shelf.get(NAME, KEY)
        times.append(time.perf_counter() - start)
    assert min(times) <= 2e-3


def test_nothing_of_this_machine_is_stored(shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    build = json.loads((_only_entry(shelf.path) / "build.json").read_text())
    assert build.keys() == {"name", "key", "recipe", "files", "log", "seconds", "checksum"}
    assert build["recipe"] == RECIPE
    assert RECIPE.keys() == {"schema", "nvrtc", "arch", "flags", "source", "headers"}
    assert str(shelf.path) not in json.dumps(build)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"source": SOURCE + " "}, id="source"),
        pytest.param({"arch": "sm_86"}, id="arch"),
        pytest.param({"flags": ("-arch=sm_80", "-lineinfo")}, id="flags"),
        pytest.param({"nvrtc": (13, 0)}, id="compiler"),
        pytest.param({"headers": {**HEADERS, "ptx/mma.cuh": b"// mma!\n"}}, id="bytes of a header"),
        pytest.param({"headers": {"ptx/mma.cuh": HEADERS["ptx/mma.cuh"]}}, id="a header less"),
        pytest.param({"headers": {"ptx/mma2.cuh": b"// mma\n", "core/types.cuh": b"// types\n"}}, id="name of a header"),
    ],
)
def test_the_key_covers(changed: dict[str, object]) -> None:
    inputs = {"source": SOURCE, "arch": "sm_80", "flags": ("-arch=sm_80",), "nvrtc": (12, 9), "headers": HEADERS}
    assert entry.key(entry.recipe(**inputs)) == KEY  # type: ignore[arg-type]
    assert entry.key(entry.recipe(**{**inputs, **changed})) != KEY  # type: ignore[arg-type]


def test_the_key_ignores_the_order_of_headers() -> None:
    assert entry.key(entry.recipe(SOURCE, "sm_80", ("-arch=sm_80",), (12, 9), dict(reversed(HEADERS.items())))) == KEY


def test_the_key_covers_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "SCHEMA", entry.SCHEMA + 1)
    assert entry.key(entry.recipe(SOURCE, "sm_80", ("-arch=sm_80",), (12, 9), HEADERS)) != KEY


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _empty(path: Path) -> None:
    os.truncate(path, 0)


def _folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_flip, _truncate, _empty, Path.unlink, _folder_instead], ids=lambda f: f.__name__.strip("_"))
@pytest.mark.parametrize("file", [*FILES, "build.json"])
def test_damage_is_a_miss_and_is_repaired(shelf: Store, file: str, damage: Callable[[Path], None]) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    path = _only_entry(shelf.path)
    damage(path / file)
    assert shelf.get(NAME, KEY) is None
    assert [d.path for d in shelf.verify()] == [path]
    assert shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert shelf.get(NAME, KEY) == COMPILED
    assert shelf.verify() == []
    assert _only_entry(shelf.path) == path


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"key": 1}', "[" * 100])
def test_any_json_is_survived(shelf: Store, content: str) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    (_only_entry(shelf.path) / "build.json").write_text(content)
    assert shelf.get(NAME, KEY) is None
    assert shelf.entries() == []
    assert len(shelf.verify()) == 1


def test_an_entry_of_another_schema(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(entry, "SCHEMA", entry.SCHEMA + 1)
        shelf.put(NAME, {**RECIPE, "schema": entry.SCHEMA}, SOURCE, COMPILED)
    assert shelf.entries() == []
    assert "another version of the package wrote it" in shelf.verify()[0].reason


def test_a_file_in_place_of_an_entry(shelf: Store) -> None:
    shelf.path.mkdir()
    path = shelf.path / f"{NAME}.{KEY[:12]}"
    path.touch()
    assert shelf.get(NAME, KEY) is None
    assert shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert shelf.get(NAME, KEY) == COMPILED


def test_a_key_that_begins_alike(shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert shelf.get(NAME, KEY[:12] + "0" * 52) is None


def test_an_entry_that_was_moved(shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    _only_entry(shelf.path).rename(shelf.path / f"prefill.{KEY[:12]}")
    (damage,) = shelf.verify()
    assert "another address" in damage.reason


def test_a_whole_entry_is_kept(shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    before = _only_entry(shelf.path).stat().st_ino
    assert shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert _only_entry(shelf.path).stat().st_ino == before


def test_layers(tmp_path: Path) -> None:
    lower, upper, home = tmp_path / "lower", tmp_path / "upper", tmp_path / "home"
    for root, number in ((lower, 1), (lower, 2), (upper, 2), (home, 3)):
        assert Store(root, []).put(*example(number))
    before = {p: p.stat().st_mtime_ns for root in (lower, upper) for p in root.rglob("*")}
    shelf = Store(home, [tmp_path / "missing", upper, lower])
    for number in (1, 2, 3):
        name, recipe, _, compiled = example(number)
        assert shelf.get(name, entry.key(recipe)) == compiled
    assert [(e.path.parent, e.name, e.writable) for e in shelf.entries()] == [
        (home, "decode_3", True),
        (upper, "decode_2", False),
        (lower, "decode_1", False),
        (lower, "decode_2", False),
    ]
    _truncate(next(upper.glob("*/kernel.ptx")))
    name, recipe, _, compiled = example(2)
    assert shelf.get(name, entry.key(recipe)) == compiled, "the layer below has a whole one"
    assert shelf.clear() == 1
    assert {p for root in (lower, upper) for p in root.rglob("*")} == set(before)


def test_layers_and_home_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PAGEDATTN_STORE_PATH", os.pathsep.join([str(tmp_path / "a"), str(tmp_path / "b")]))
    shelf = Store()
    assert shelf.path == tmp_path / "home"
    assert shelf.layers == (tmp_path / "a", tmp_path / "b")


def test_a_moved_home_still_answers(tmp_path: Path, shelf: Store) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    shutil.copytree(shelf.path, tmp_path / "elsewhere")
    assert Store(tmp_path / "elsewhere", []).get(NAME, KEY) == COMPILED
    assert Store(tmp_path / "elsewhere", []).verify() == []


def _file_as_home(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file"


def _home_below_a_file(tmp_path: Path) -> Path:
    return _file_as_home(tmp_path) / "deep" / "home"


@pytest.mark.parametrize(
    "home", [_file_as_home, _home_below_a_file, lambda _: Path("/proc/pagedattn")], ids=["file", "below a file", "proc"]
)
def test_a_home_that_cannot_be_written_warns_once(tmp_path: Path, home: Callable[[Path], Path]) -> None:
    shelf = Store(home(tmp_path), [])
    assert shelf.get(NAME, KEY) is None
    with pytest.warns(
        RuntimeWarning, match=r"cannot be written \(.*\); kernels .* last as long as this process\. Set PAGEDATTN_HOME"
    ) as told:
        assert not shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert len(told) == 1
    assert not shelf.put(NAME, RECIPE, SOURCE, COMPILED)  # a second warning would be an error here
    assert shelf.entries() == []
    assert shelf.verify() == []
    assert shelf.clear() == 0
    assert shelf.why_unwritable()


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pagedattn.env.home", homeless)
    shelf = Store()
    assert shelf.get(NAME, KEY) is None
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        assert not shelf.put(NAME, RECIPE, SOURCE, COMPILED)


def test_a_writable_home_says_so(shelf: Store) -> None:
    assert shelf.why_unwritable() == ""
    assert list(shelf.path.iterdir()) == []


def test_clear(shelf: Store) -> None:
    for number in range(3):
        shelf.put(*example(number, 100))
    (shelf.path / "failed").mkdir()
    (shelf.path / ".tmp-0").mkdir()
    (shelf.path / "notes.txt").write_text("not ours")
    assert shelf.clear() == 3
    assert [p.name for p in shelf.path.iterdir()] == ["notes.txt"]
    assert shelf.clear() == 0


def test_clear_says_what_it_could_not_remove(shelf: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(pa.UnsupportedError, match=r"must be writable to be cleared; got .*Permission denied.*\. Remove it by hand\."):
        shelf.clear()


def test_what_killed_processes_left_is_swept(shelf: Store) -> None:
    old, young = shelf.path / ".tmp-old", shelf.path / ".tmp-young"
    for path in (old, young):
        path.mkdir(parents=True)
        (path / "kernel.cu").touch()
    long_ago = time.time() - 2 * store.ABANDONED_SECONDS
    os.utime(old, (long_ago, long_ago))
    shelf.put(NAME, RECIPE, SOURCE, COMPILED)
    assert not old.exists()
    assert young.exists()
