"""From a spec to a kernel: where it comes from, who compiles it, and what happens when nobody may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pagedattn as pa
from pagedattn import build, nvrtc, render, store
from pagedattn.spec import KernelSpec
from pagedattn.store import Store

SPEC = KernelSpec(op="merge", head_dim=64)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store and an empty memory."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store, "_warned", set())
    build.forget()
    yield tmp_path / "home"
    build.forget()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were compiled, in order."""
    names: list[str] = []
    real = nvrtc.compile

    def counted(source: str, name: str, *rest: Any) -> nvrtc.Compiled:
        names.append(name)
        return real(source, name, *rest)

    monkeypatch.setattr(nvrtc, "compile", counted)
    return names


def test_compiled_then_memory_then_store(home: Path, compilations: list[str]) -> None:
    first = pa.compile(SPEC)
    assert first.origin == "compiled"
    assert pa.compile(KernelSpec(op="merge", head_dim=64)) is first
    build.forget()
    second = pa.compile(SPEC)
    assert second.origin == "store"
    assert compilations == [SPEC.name]
    for field in ("name", "source", "ptx", "cubin", "log", "registers", "spill_bytes", "shared_bytes"):
        assert getattr(first, field) == getattr(second, field), field
    assert second.seconds == pytest.approx(first.seconds, abs=1e-3)
    (entry,) = Store().entries()
    assert entry.path == home / f"{SPEC.name}.{entry.key[:12]}"
    assert (entry.name, entry.arch) == (SPEC.name, "sm_80")


@pytest.mark.nvrtc
def test_another_process_finds_it(compilations: list[str]) -> None:
    code = f"from pagedattn import build; from pagedattn.spec import KernelSpec; print(build.build({SPEC!r}).origin)"
    found = [
        subprocess.run([sys.executable, "-c", code], cwd=Path(pa.__file__).parents[1], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert found == ["compiled\n", "store\n"]
    assert pa.compile(SPEC).origin == "store"
    assert compilations == []


def test_threads_share_one_compilation(compilations: list[str]) -> None:
    other = KernelSpec(op="gather", head_dim=64)
    with ThreadPoolExecutor(8) as pool:
        kernels = list(pool.map(pa.compile, [SPEC, other] * 8))
    assert len(set(map(id, kernels))) == 2
    assert sorted(compilations) == sorted([SPEC.name, other.name])


def test_a_failure_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(render, "included", lambda _: {})
        with pytest.raises(pa.CompileError, match=r"could not open source file \"\w+/"):
            pa.compile(SPEC)
    assert pa.compile(SPEC).origin == "compiled"


def test_a_damaged_entry_is_compiled_anew(home: Path, compilations: list[str]) -> None:
    cubin = pa.compile(SPEC).cubin
    (path,) = home.glob("*/kernel.cubin")
    path.write_bytes(cubin[:100])
    build.forget()
    assert pa.compile(SPEC).cubin == cubin
    assert compilations == [SPEC.name] * 2
    assert path.read_bytes() == cubin


def test_a_changed_header_is_compiled_anew(monkeypatch: pytest.MonkeyPatch, compilations: list[str]) -> None:
    pa.compile(SPEC)
    headers = dict(render.headers())
    used, unused = next(iter(render.included(render.render(SPEC)))), "prefill/epilogue.cuh"
    for name, times in ((unused, 1), (used, 2)):
        headers[name] += b"// edited\n"
        monkeypatch.setattr(render, "headers", lambda: headers)
        build.forget()
        pa.compile(SPEC)
        assert len(compilations) == times, name


def test_without_a_store_a_kernel_stays_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[str]) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        kernel = pa.compile(SPEC)
    assert kernel.origin == "memory"
    assert pa.compile(SPEC) is kernel
    assert compilations == [SPEC.name]


def test_jit_switched_off(monkeypatch: pytest.MonkeyPatch, compilations: list[str]) -> None:
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    with pytest.raises(pa.NotPrecompiledError) as caught:
        pa.compile(SPEC)
    text = str(caught.value)
    assert text.startswith(f"PAGEDATTN_JIT=0 wants every kernel in the store; {SPEC.name} for NVRTC ")
    assert text.endswith("To put it there: pagedattn precompile --arch sm_80 --op merge --dtype float16 --kv-dtype float16 --head-dim 64")
    assert compilations == []
    build.make(SPEC, Store())  # what the command does
    assert pa.compile(SPEC).origin == "store"


def test_jit_switched_off_for_a_spec_that_is_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    spec = KernelSpec(op="merge", head_dim=64, warps=2)
    with pytest.raises(pa.NotPrecompiledError) as caught:
        pa.compile(spec)
    command = str(caught.value).partition("To put it there: ")[2]
    assert command.startswith('python -c "import pagedattn as pa; pa.compile(pa.KernelSpec(op=')
    monkeypatch.setenv("PAGEDATTN_JIT", "1")
    exec(command.removeprefix('python -c "').removesuffix('"'), {})
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    build.forget()
    assert pa.compile(spec).origin == "store"


def test_jit_switched_off_with_a_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build.make(SPEC, Store(tmp_path / "layer", []))
    monkeypatch.setenv("PAGEDATTN_JIT", "0")
    monkeypatch.setenv("PAGEDATTN_STORE_PATH", str(tmp_path / "layer"))
    assert pa.compile(SPEC).origin == "store"
    assert Store(layers=[]).entries() == []


@pytest.mark.parametrize("wrong", [None, "decode", 3, ("decode", "sm_80")])
def test_not_a_spec(wrong: object) -> None:
    with pytest.raises(pa.ArgumentError, match="must be a KernelSpec; got "):
        pa.compile(wrong)  # type: ignore[arg-type]
