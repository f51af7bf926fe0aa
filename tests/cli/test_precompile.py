"""`pagedattn precompile`: what it compiles, where it puts it, and how it ends."""

from __future__ import annotations

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pagedattn
from pagedattn.shipped import shipped
from pagedattn.store import Store
from tests.cli.arguments import NAME, ONE


def test_precompile_then_reuse(home: Path, run) -> None:
    status, out, _ = run("precompile", *ONE, "--jobs", "1", "--json")
    report = json.loads(out)
    assert (status, report["compiled"], report["reused"], report["failed"]) == (0, [NAME], [], {})
    assert report["path"] == str(home)
    status, out, _ = run("precompile", *ONE, "--jobs", "1")
    assert status == 0
    assert [int(n) for n in out.splitlines()[1].split()[1:5]] == [1, 0, 1, 0]  # kernels, compiled, reused, failed


def test_precompile_in_processes(home: Path, run) -> None:
    status, out, err = run(
        *("precompile", "--arch", "sm_80,sm_90", "--dtype", "float16", "--kv-dtype", "float16", "--head-dim", "64", "--op", "merge,append"),
        *("--jobs", "2", "--json"),
    )
    assert (status, err) == (0, "")
    assert sorted(json.loads(out)["compiled"]) == sorted(f"{op}_f16_kvf16_d64_sm{n}" for op in ("merge", "append") for n in (80, 90))
    assert len(Store(home).entries()) == 4
    assert not Store(home).verify()


CHOICES = [
    (None, {"f16": {"f16", "i8", "i4"}, "bf16": {"bf16", "i8", "i4"}}),
    ("float16", {"f16": {"f16"}}),
    ("int8", {"f16": {"i8"}, "bf16": {"i8"}}),
    ("bfloat16,int4", {"f16": {"i4"}, "bf16": {"bf16", "i4"}}),
]


@pytest.mark.parametrize(("kv_dtypes", "expected"), CHOICES, ids=[str(c[0]) for c in CHOICES])
def test_precompile_chooses_by_what_the_cache_stores(
    home: Path, run, monkeypatch: pytest.MonkeyPatch, kv_dtypes: str | None, expected: dict[str, set[str]]
) -> None:
    module = importlib.import_module("pagedattn.precompile")  # the package's own name is the function
    monkeypatch.setattr(module, "_outcome", lambda spec, shelf: module.Outcome(spec.name, spec.arch, 1.0))  # compiles nothing
    choice = () if kv_dtypes is None else ("--kv-dtype", kv_dtypes)
    status, out, _ = run("precompile", "--arch", "sm_80", "--op", "append,merge", "--head-dim", "64", *choice, "--jobs", "1", "--json")
    assert status == 0
    appends = {f"append_{t}_kv{kv}_d64_sm80" for t, stored in expected.items() for kv in stored}
    merges = {f"merge_{t}_kv{t}_d64_sm80" for t in expected}  # whatever the cache stores, partial results of its dtype may be merged
    assert json.loads(out)["compiled"] == [n for n in _names_in_order() if n in appends | merges]


def _names_in_order() -> list[str]:
    return [spec.name for spec in shipped(["sm_80"], head_dims=[64])]


def test_a_missing_kernel_names_the_command_that_makes_it(home: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pagedattn.KernelSpec(op="append", head_dim=64, kv_dtype="int4")
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    with pytest.raises(pagedattn.NotPrecompiledError) as caught:
        pagedattn.compile(spec)
    command = str(caught.value).rpartition("To put it there: pagedattn ")[2].split()
    status, out, _ = run(*command, "--jobs", "1", "--json")
    assert (status, json.loads(out)["compiled"]) == (0, [spec.name])
    assert pagedattn.compile(spec).origin == "store"


def test_precompile_elsewhere(home: Path, tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, elsewhere = tmp_path / "layer", tmp_path / "elsewhere"
    assert run("precompile", *ONE, "--jobs", "1", "--out", str(layer))[0] == 0
    monkeypatch.setenv("PAGEDATTN_STORE_PATH", str(layer))
    status, out, _ = run("precompile", *ONE, "--jobs", "1", "--out", str(elsewhere), "--json")
    assert (status, json.loads(out)["compiled"]) == (0, [NAME]), "a folder that can be shipped holds what layers of this machine hold too"
    assert not home.exists()
    assert [e.name for e in Store(elsewhere, layers=()).entries()] == [NAME]


def test_precompile_needs_a_writable_store(tmp_path: Path, run) -> None:
    (tmp_path / "file").touch()
    status, out, err = run("precompile", *ONE, "--out", str(tmp_path / "file" / "store"))
    assert (status, out) == (1, "")
    assert "must be writable" in err


def test_precompile_collects_failures(home: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagedattn import nvrtc

    whole = nvrtc.compile

    def broken(source: str, name: str, *rest: object) -> nvrtc.Compiled:
        return whole(f"{source}\nsyntax error" if name.startswith("append") else source, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(nvrtc, "compile", broken)
    argv = ("precompile", *ONE, "--op", "append,merge", "--kv-dtype", "float16", "--jobs", "1")
    status, out, _ = run(*argv, "--json")
    report = json.loads(out)
    assert (status, report["compiled"]) == (1, [NAME])
    assert "append_f16_kvf16_d64_sm80 did not compile for sm_80" in report["failed"]["append_f16_kvf16_d64_sm80"]
    status, out, _ = run(*argv)
    assert status == 1
    assert "append_f16_kvf16_d64_sm80:" in out


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.nvrtc
def test_precompile_shows_a_bar_on_a_terminal(home: Path) -> None:
    import fcntl
    import pty
    import termios

    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    done = subprocess.run(
        [sys.executable, "-m", "pagedattn", "precompile", *ONE, "--jobs", "1"], stdout=subprocess.PIPE, stderr=end, check=True
    )
    os.close(end)
    bar = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "1/1" in bar
    assert NAME in bar
    assert b"1/1" not in done.stdout


@pytest.mark.nvrtc
def test_precompile_interrupted(home: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pagedattn", "precompile", "--arch", "sm_80", "--dtype", "float16", "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not Store(home).entries() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does: every process of the group gets it
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "pagedattn: interrupted\n")
    assert Store(home).entries()
    assert not Store(home).verify()
    assert not list(home.glob(".tmp-*")), "processes finish the kernel in hand"


@pytest.mark.nvrtc
def test_precompile_needs_a_guarded_script(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pagedattn as pa\nprint(pa.precompile(['sm_80'], ['float16'], [64], ['merge', 'append'], jobs=2, progress=False))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(pagedattn.__file__).parents[1])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    # the last error; Python's own resource tracker may warn behind it
    errors = [line for line in done.stderr.splitlines() if line.startswith("pagedattn.errors.")]
    assert 'under `if __name__ == "__main__":`' in errors[-1], done.stderr
