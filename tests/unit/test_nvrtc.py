"""NVRTC: the same bytes from everywhere, errors that show the place, and what is missing said in words."""

from __future__ import annotations

import functools
import inspect
import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pagedattn as pa
from pagedattn import arch, nvrtc
from pagedattn.kernel import usage

EX2 = b"""#pragma once
__device__ __forceinline__ float ex2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
"""
HEADERS = {"ptx/ex2.cuh": EX2, "core/all.cuh": b'#pragma once\n#include "ptx/ex2.cuh"\n'}
SOURCE = '#include "core/all.cuh"\nextern "C" __global__ void k(float* a)\n{\n    a[threadIdx.x] = ex2(a[threadIdx.x]);\n}\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _error(source: str, headers: dict[str, bytes] = HEADERS) -> pa.CompileError:
    with pytest.raises(pa.CompileError) as caught:
        nvrtc.compile(source, "k", "sm_80", headers)
    return caught.value


def test_what_is_here() -> None:
    assert nvrtc.version() >= (12, 0)
    assert {80, 86, 89, 90} <= {a.number for a in nvrtc.archs()} <= set(arch.ARCHS)
    assert "-arch=sm_86" in nvrtc.flags("sm_86")


@pytest.mark.parametrize("target", [a for n, a in arch.ARCHS.items() if n >= arch.OLDEST], ids=str)
def test_compiles(target: arch.Arch) -> None:
    if target not in nvrtc.archs():
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.version()))} lacks {target}")
    made = nvrtc.compile(SOURCE, "k", target, HEADERS)
    assert made.cubin.startswith(b"\x7fELF")
    assert f".target {target}".encode() in made.ptx
    assert b".visible .entry k(" in made.ptx
    assert f"for '{target}'" in made.log
    assert usage(made.log).registers > 0
    assert 0 < made.seconds < 60


def test_the_cubin_is_whole() -> None:
    cubin = nvrtc.compile(SOURCE, "k", "sm_80", HEADERS).cubin
    programs, sections = struct.unpack_from("<QQ", cubin, 32)  # ELF-64: e_phoff, e_shoff; then e_phentsize, e_phnum, e_shentsize, e_shnum
    program_bytes, num_programs, section_bytes, num_sections = struct.unpack_from("<4H", cubin, 54)
    assert max(programs + program_bytes * num_programs, sections + section_bytes * num_sections) == len(cubin)


def test_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line info names files; none may lie in the folder that the process runs in, and the log holds no time."""
    first = nvrtc.compile(SOURCE, "k", "sm_80", HEADERS)
    monkeypatch.chdir(tmp_path)
    second = nvrtc.compile(SOURCE, "k", "sm_80", HEADERS)
    assert (first.cubin, first.ptx, first.log) == (second.cubin, second.ptx, second.log)
    for name in ("k.cu", "kernels/ptx/ex2.cuh"):
        assert f'"{nvrtc.ROOT}{name}"'.encode() in second.ptx
    assert str(tmp_path).encode() not in second.cubin + second.ptx


def test_a_header_of_the_folder_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "all.cuh").write_text("__device__ float ex2(float x) { return 0; }")
    monkeypatch.chdir(tmp_path)
    assert 'source file "core/all.cuh" (no directories in search list), at k.cu(1).' in str(_error(SOURCE, {}))


def test_error_in_the_source(home: Path) -> None:
    bad = SOURCE.replace("ex2(a", "ex3(a")
    error = _error(bad)
    assert str(error) == (
        'k did not compile for sm_80: identifier "ex3" is undefined, at k.cu(4).\n'
        '     2 | extern "C" __global__ void k(float* a)\n'
        "     3 | {\n"
        ">    4 |     a[threadIdx.x] = ex3(a[threadIdx.x]);\n"
        "     5 | }\n"
        f"The source is {home / 'failed' / 'k.cu'}; `.log` has all that the compiler said."
    )
    assert (home / "failed" / "k.cu").read_text() == bad
    assert '"ex3" is undefined' in error.log
    assert "1 error detected" in error.log
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.log) == (str(error), error.log)


def test_error_in_a_header(home: Path) -> None:
    error = _error(SOURCE, {**HEADERS, "ptx/ex2.cuh": EX2.replace(b"return y", b"return z")})
    assert 'identifier "z" is undefined, at kernels/ptx/ex2.cuh(6).\n     4 |     float y;\n' in str(error)
    assert "\n>    6 |     return z;\n     7 | }\n" in str(error)


def test_warnings_come_before_the_error(home: Path) -> None:
    error = _error(SOURCE.replace("{\n    a", "{\n    int unused;\n    b"))
    assert 'identifier "b" is undefined, at k.cu(5).' in str(error)
    assert "unused" in error.log


def test_error_of_the_assembler_is_traced_to_its_line(home: Path) -> None:
    error = _error(SOURCE, {**HEADERS, "ptx/ex2.cuh": EX2.replace(b"ex2.approx", b"ex9.approx")})
    assert "k did not compile for sm_80: ptxas: " in str(error)
    assert ", at kernels/ptx/ex2.cuh(5).\n" in str(error)
    assert '>    5 |     asm("ex9.approx' in str(error)


def test_error_of_the_assembler_without_a_line(home: Path) -> None:
    body = "__shared__ int s[100000];\ns[a[1]] = 1;\n__syncthreads();\na[0] = s[a[2]];\n"
    error = _error(f'extern "C" __global__ void k(int* a)\n{{\n{body}}}\n')
    assert "ptxas: Entry function 'k' uses too much shared data" in str(error)


def test_failing_source_when_the_store_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    text = str(_error("int"))
    (kept,) = tmp_path.glob("temporary/pagedattn-*/k.cu")
    assert str(kept) in text
    assert kept.read_text() == "int"


@pytest.fixture
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_library", functools.cache(inspect.unwrap(nvrtc._library)))


@pytest.mark.usefixtures("forget")
def test_cupy_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(
        pa.UnsupportedError, match=r"NVRTC, reached through CuPy; got .*Install pagedattn\[cuda12\].* or pagedattn\[cuda13\]\."
    ):
        nvrtc.version()


@pytest.mark.usefixtures("forget")
def test_nvrtc_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.12".')

    monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(nvrtc=SimpleNamespace(getVersion=missing)))
    with pytest.raises(pa.UnsupportedError, match=r'got RuntimeError: Failure finding "libnvrtc.so.12"\. Install pagedattn\[cuda12\]'):
        nvrtc.compile(SOURCE, "k", "sm_80", HEADERS)


@pytest.mark.parametrize(
    ("target", "version", "supported", "text"),
    [
        (70, (13, 4), (75, 80, 90), "sm_70 needs NVRTC 12.x; found 13.4. Install pagedattn[cuda12] to compile for it."),
        (
            121,
            (12, 0),
            (70, 80, 90),
            "sm_121 needs a newer NVRTC; found 12.0, whose newest target is sm_90. Upgrade nvidia-cuda-nvrtc-cu12,",
        ),
    ],
)
def test_a_target_that_this_nvrtc_lacks(
    monkeypatch: pytest.MonkeyPatch, target: int, version: tuple[int, int], supported: tuple[int, ...], text: str
) -> None:
    monkeypatch.setattr(nvrtc, "_library", lambda: (SimpleNamespace(getSupportedArchs=lambda: supported), version))
    with pytest.raises(pa.UnsupportedError) as caught:
        nvrtc.compile(SOURCE, "k", arch.ARCHS[target], HEADERS)
    assert str(caught.value).startswith(text)
