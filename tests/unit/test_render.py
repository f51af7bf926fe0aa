"""Rendering: the template language, the headers that a source includes, and errors that name template, line and spec."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pytest

import pagedattn as pa
from pagedattn import params, render, resources
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec


@dataclass(frozen=True)
class Spec:
    """What render needs of a spec."""

    template: str = "k.cu.j2"
    name: str = "k_f16_sm80"

    def context(self) -> dict[str, Any]:
        return {"spec": self, "wide": 7, "text": "a<b && c"}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """write(name, text) puts a template or a header into folders that render looks into."""
    for name in ("kernels", "templates"):
        (tmp_path / name).mkdir()

    def clear() -> None:
        render._environment.cache_clear()
        render.headers.cache_clear()

    def put(name: str, text: str) -> None:
        path = tmp_path / ("kernels" if name.endswith(".cuh") else "templates") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / name)
    clear()
    yield put
    clear()


def test_language(write: Callable[..., None]) -> None:
    write("k.cu.j2", "//# gone\nint a = {{ wide }};  //# gone too\n//% if wide > 3\n// {{ text }}\n//% else\nno\n//% endif\nint b;\n")
    assert render.render(Spec()) == "\nint a = 7;\n// a<b && c\nint b;\n"


def test_the_parameter_struct_is_there(write: Callable[..., None]) -> None:
    write("k.cu.j2", "{{ params_struct }}")
    assert render.render(Spec()) == params.c_struct()


def _error(spec: Spec) -> str:
    with pytest.raises(pa.RenderError) as caught:
        render.render(spec)  # type: ignore[arg-type]
    return str(caught.value)


def test_undefined_name(write: Callable[..., None]) -> None:
    write("k.cu.j2", "int a;\nint b = {{ narrow }};\n")
    text = _error(Spec())
    assert text.startswith("templates/k.cu.j2, line 2, for k_f16_sm80: 'narrow' is undefined. It sees: params_struct, spec, text, wide.")
    assert text.endswith("\n  2 | int b = {{ narrow }};")


def test_undefined_attribute(write: Callable[..., None]) -> None:
    write("k.cu.j2", "\n\n{{ spec.stages }}\n")
    assert "line 3, for k_f16_sm80: " in _error(Spec())
    assert "'stages'" in _error(Spec())


def test_syntax(write: Callable[..., None]) -> None:
    write("k.cu.j2", "int a;\n//% if wide\nint b;\n")
    assert _error(Spec()).startswith("templates/k.cu.j2, line 3, for k_f16_sm80: Unexpected end of template.")


def test_failing_expression(write: Callable[..., None]) -> None:
    write("k.cu.j2", "int a;\nint b = {{ wide // 0 }};\n")
    assert _error(Spec()).startswith("templates/k.cu.j2, line 2, for k_f16_sm80: ZeroDivisionError: ")


def test_the_innermost_template_is_named(write: Callable[..., None]) -> None:
    write("part.j2", "//% macro m(x)\n\n{{ x + nothing }}\n//% endmacro\n")
    write("k.cu.j2", '//% from "part.j2" import m\n{{ m(1) }}\n')
    assert _error(Spec()).startswith("templates/part.j2, line 3, for k_f16_sm80: 'nothing' is undefined.")


def test_missing_template(write: Callable[..., None]) -> None:
    write("other.cu.j2", "")
    assert _error(Spec()) == "k_f16_sm80 needs the template 'k.cu.j2', which templates/ lacks. It has: other.cu.j2."


@pytest.mark.parametrize("damage", [b"", b"not ours", None], ids=["empty", "foreign", "cut off"])
def test_what_was_parsed_is_kept(write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None) -> None:
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    parsed, parse = [], jinja2.Environment.compile
    monkeypatch.setattr(jinja2.Environment, "compile", lambda *a, **k: parsed.append(a[1]) or parse(*a, **k))

    def rendered() -> str:
        render._environment.cache_clear()  # as in another process
        return render.render(Spec())  # type: ignore[arg-type]

    write("k.cu.j2", "int a = {{ wide }};\n")
    assert [rendered() for _ in range(2)] == ["int a = 7;\n"] * 2
    assert len(parsed) == 1
    (kept,) = (tmp_path / "home" / "parsed").iterdir()
    kept.write_bytes(kept.read_bytes()[:-9] if damage is None else damage)
    assert [rendered() for _ in range(2)] == ["int a = 7;\n"] * 2
    assert len(parsed) == 2
    write("k.cu.j2", "int b = {{ wide }};\n")
    assert rendered() == "int b = 7;\n"
    assert len(parsed) == 3
    assert [kept] == list((tmp_path / "home" / "parsed").iterdir())


def test_included(write: Callable[..., None]) -> None:
    write("a/top.cuh", '#pragma once\n#include "b/low.cuh"\n')
    write("b/low.cuh", '#pragma once\n#include "a/top.cuh"\n// a ring of headers ends\n')
    write("c/conditional.cuh", "")
    write("d/commented.cuh", "")
    write("e/unused.cuh", "")
    source = (
        '#include "a/top.cuh"\n#if 0\n #  include "c/conditional.cuh"\n#endif\n// #include "d/commented.cuh"\n#include "f/unknown.cuh"\n'
    )
    found = render.included(source)
    assert list(found) == ["a/top.cuh", "b/low.cuh", "c/conditional.cuh"]
    assert found["c/conditional.cuh"] == b""


@pytest.mark.parametrize("spec", shipped(["sm_90"]), ids=lambda s: s.name)
def test_shipped(spec: KernelSpec) -> None:
    source = render.render(spec)
    assert source.count('extern "C"') == source.count(f"{spec.name}(") == 1
    assert params.c_struct() in source
    assert "{{" not in source
    assert "//%" not in source
    assert str(resources.folder("kernels").parent) not in source
    assert source == render.render(spec)
    assert render.included(source)


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = "import sys; from pagedattn import build, render; sys.exit(sum(m in sys.modules for m in ('jinja2', 'cupy')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(pa.__file__).parents[1], check=False).returncode == 0
