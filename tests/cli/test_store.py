"""`pagedattn store`: list, path, verify, clear, pack and unpack."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pagedattn import build
from tests.cli.arguments import NAME, ONE


def test_store(home: Path, run) -> None:
    assert run("store", "path") == (0, f"{home}\n", "")
    assert json.loads(run("store", "path", "--json")[1]) == {"path": str(home), "layers": []}
    assert run("store", "list")[::2] == (0, "")
    assert json.loads(run("store", "list", "--json")[1]) == []
    run("precompile", *ONE, "--jobs", "1")

    status, out, _ = run("store", "list")
    assert status == 0
    assert NAME in out
    (entry,) = json.loads(run("store", "list", "--json")[1])
    assert (entry["name"], entry["arch"], entry["writable"]) == (NAME, "sm_80", True)
    assert entry["num_bytes"] > 1000

    assert run("store", "verify") == (0, "1 kernels, all whole\n", "")
    cubin = Path(entry["path"]) / "kernel.cubin"
    cubin.write_bytes(cubin.read_bytes()[:-10])
    status, out, _ = run("store", "verify")
    assert status == 1
    assert entry["path"] in out
    status, out, _ = run("store", "verify", "--json")
    assert (status, [d["path"] for d in json.loads(out)["damaged"]]) == (1, [entry["path"]])

    assert json.loads(run("store", "clear", "--json")[1]) == {"path": str(home), "removed": 1}
    assert run("store", "clear") == (0, f"0 kernels removed from {home}\n", "")


def test_store_pack_and_unpack(home: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("precompile", *ONE, "--jobs", "1")
    file = str(tmp_path / "kernels.tar.gz")
    assert run("store", "pack", file) == (0, f"1 kernels packed into {file}\n", "")
    assert json.loads(run("store", "pack", file, "--json")[1]) == {"file": file, "packed": [NAME], "left_out": []}
    other = tmp_path / "other"
    monkeypatch.setenv("PAGEDATTN_HOME", str(other))
    assert run("store", "unpack", file) == (0, f"1 kernels added to {other}, 0 were there\n", "")
    assert json.loads(run("store", "unpack", file, "--json")[1]) == {"path": str(other), "added": [], "present": [NAME]}
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    build.forget()
    status, out, _ = run("show", NAME, "--ptx")
    assert (status, f".entry {NAME}(" in out) == (0, True)
