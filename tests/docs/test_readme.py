"""What the README and CONTRIBUTING tell a reader to type works, and what they point to is there."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import warnings
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest

from benchmarks import tables
from pagedattn import cli, env
from pagedattn.arch import ARCHS

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = {"README.md": README, "CONTRIBUTING.md": CONTRIBUTING, "CHANGELOG.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SNIPPETS = blocks(README, "python")
COMMANDS = sorted({c for text in PAGES.values() for c in re.findall(r"`(pagedattn [^`]+)`", text)})
TARGETS = sorted(
    {c for text in PAGES.values() for c in re.findall(r"`(make [^`]+)`", text)}
    | {c for b in blocks(README, "sh") for c in re.findall(r"^(make \w+)", b, re.MULTILINE)}
)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_snippet_runs(number: int) -> None:
    """One that shows another library is skipped without it."""
    guests = [name for name in ("torch", "transformers") if re.search(rf"^import {name}$", SNIPPETS[number], re.MULTILINE)]
    for name in guests:
        pytest.importorskip(name, reason=f"{name} is not installed")
    if guests:
        warnings.simplefilter("default")  # theirs, about themselves
    exec(compile(SNIPPETS[number], f"README.md, snippet {number}", "exec"), {"__name__": "__main__"})


def test_quickstart_is_the_example() -> None:
    example = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
    body = "".join(example.splitlines(keepends=True)[ast.parse(example).body[0].end_lineno :])  # without the docstring
    assert SNIPPETS[0].strip() == body.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_understood(command: str) -> None:
    """Each command parses; what they do is tested in tests/cli."""
    cli._parser().parse_args(shlex.split(command)[1:])


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("target", TARGETS)
def test_make_target_is_there(target: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run([*shlex.split(target), "--dry-run"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_extras_are_there() -> None:
    try:
        found = set(metadata("pagedattn").get_all("Provides-Extra") or ())
    except PackageNotFoundError:
        found = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"'\.\[(\w+)\]'", README))
    assert named
    assert named <= found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("variable", sorted(set(re.findall(r"PAGEDATTN_\w+", README))))
def test_environment_variable_is_read(variable: str) -> None:
    assert f'"{variable}"' in Path(env.__file__).read_text(encoding="utf-8")


def test_supported_sizes_are_the_layouts() -> None:
    from pagedattn.layout import BLOCK_LENS, HEAD_DIMS

    assert f"| head_dim | {', '.join(map(str, HEAD_DIMS))} |" in README
    assert f"| tokens per block | {', '.join(map(str, BLOCK_LENS))} |" in README


def test_capacity_of_quantised_caches_is_the_layouts() -> None:
    from pagedattn import BlockLayout

    for kv_dtype in ("int8", "int4"):
        stored, wide = (BlockLayout(num_kv_heads=1, head_dim=128, kv_dtype=t) for t in (kv_dtype, None))
        params = (stored.block_bytes - 2 * stored.block_len * stored.row_bytes) // (2 * stored.block_len)
        assert f"| {kv_dtype} | {stored.row_bytes} + {params} | {wide.block_bytes / stored.block_bytes:.2f}x |" in README


def test_targets_named_are_targets() -> None:
    assert {int(n) for n in re.findall(r"sm_(\d+)", README)} <= set(ARCHS)


def test_no_invented_figures() -> None:
    """The benchmark section's tables are those of the committed result."""
    results = json.loads((ROOT / "benchmarks" / "results" / "h200.json").read_text(encoding="utf-8"))
    assert not results["quick"]
    assert {name for _, name, _ in tables.PLACE.findall(README)} == set(tables.PARTS)
    assert tables.filled(README, results) == README


def test_figures_of_context_parallelism_are_measured() -> None:
    """The table is that of the committed result, and the host's times lie between its extremes."""
    section = README.partition("## Several GPUs for one sequence")[2].partition("\n## ")[0]
    results = json.loads((ROOT / "benchmarks" / "results" / "context_parallel_h200.json").read_text())
    assert tables.context_parallel_table(results) in section
    for backend in ("torch", "cupy"):
        for name in ("all_merge", "AllMerge"):
            found = [run["us"][f"{name}, host"] for run in results["runs"] if run["backend"] == backend]
            assert tables.host_range(found) in section, (backend, name)
