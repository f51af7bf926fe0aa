"""`pagedattn show`: a kernel's source, PTX, SASS and resources."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import pytest

import pagedattn
from pagedattn import build
from pagedattn.store import Store
from tests.cli.arguments import NAME, ONE

DISASSEMBLER = f"""#!{sys.executable}
import sys, pathlib
*options, cubin = sys.argv[1:]
assert pathlib.Path(cubin).read_bytes()[:4] == b"\\x7fELF"
print(*options, pathlib.Path(cubin).name)
"""


def test_show(home: Path, run) -> None:
    status, out, _ = run("show", NAME, "--source")
    assert status == 0
    assert '#include "' in out
    assert NAME in out
    assert f".entry {NAME}" in run("show", NAME, "--ptx")[1]
    assert run("show", NAME, "--resources")[1].split()[0] == "registers"
    resources = json.loads(run("show", NAME, "--resources", "--json")[1])["resources"]
    assert 0 < resources["registers"] <= 255
    assert resources["spill_bytes"] == 0


def test_show_a_kernel_outside_the_shipped_set(home: Path, run) -> None:
    spec = pagedattn.KernelSpec(op="merge", head_dim=64, warps=2)
    store = Store(home)
    made = build.make(spec, store)
    (entry,) = store.entries()
    renamed = "merge_of_another_version"
    from pagedattn.nvrtc import Compiled

    store.put(renamed, entry.build["recipe"], made.source, Compiled(made.cubin, made.ptx.encode(), made.log, 0.1))
    assert f".entry {spec.name}" in run("show", renamed, "--ptx")[1]
    assert json.loads(run("show", renamed, "--resources", "--json")[1])["resources"]["registers"] == made.registers
    (damaged,) = home.glob(f"{renamed}.*")
    (damaged / "kernel.ptx").unlink()
    status, _, err = run("show", renamed, "--ptx")
    assert status == 1
    assert "must be whole" in err


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script with a shebang")
@pytest.mark.parametrize(("tool", "expected"), [("nvdisasm", f"{NAME}.cubin"), ("cuobjdump", f"-sass {NAME}.cubin")])
def test_show_sass(home: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, expected: str) -> None:
    run("precompile", *ONE, "--jobs", "1")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    status, _, err = run("show", NAME, "--sass")
    assert status == 1
    assert "neither is on PATH" in err
    stand_in = tools / tool
    stand_in.write_text(DISASSEMBLER)
    stand_in.chmod(stand_in.stat().st_mode | stat.S_IXUSR)
    status, out, err = run("show", NAME, "--sass")
    assert (status, err) == (0, "")
    assert out.split() == expected.split()
