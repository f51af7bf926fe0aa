"""The command line as a program sees it: wrong usage, errors, help, and what ends it early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pagedattn
from pagedattn.store import Store
from tests.cli.arguments import EXPLAIN, NAME

# Wrong usage is told apart from an error of the package, so that a script can tell its own mistake.
WRONG = [
    ((), 2, "COMMAND"),
    (("store",), 2, "ACTION"),
    (("storm",), 2, "invalid choice"),
    (("show", NAME), 2, "--source --ptx --sass --resources is required"),
    (("show", NAME, "--ptx", "--sass"), 2, "not allowed with"),
    (("precompile", "--head-dim", "wide"), 2, "must be integers such as 64,128; got 'wide'"),
    (("precompile", "--jobs", "many"), 2, "invalid int value"),
    (("precompile", "--arch", "volta"), 1, "must look like 'sm_80'; got 'volta'"),
    (("precompile", "--arch", "sm_91"), 1, "the nearest is sm_90"),
    (("precompile", "--dtype", "float32"), 1, "must be one of float16, bfloat16; got 'float32'"),
    (("precompile", "--kv-dtype", "int2"), 1, "must be None or one of float16, bfloat16, int8, int4; got 'int2'"),
    (("precompile", "--dtype", "float16", "--kv-dtype", "bfloat16"), 1, "a 16-bit cache stores its `dtype`"),
    (
        ("precompile", "--arch", "sm_75", "--kv-dtype", "bfloat16"),
        1,
        "below sm_80, where are no bfloat16 tensor cores; got 'bfloat16' for sm_75",
    ),
    (("precompile", "--dtype", "float16", "--kv-dtype", "int8,bfloat16"), 1, "a 16-bit cache stores its `dtype`; got 'bfloat16'"),
    (("precompile", "--op", "varlen", "--kv-dtype", "int8"), 1, "types that the chosen kernels read"),
    (("precompile", "--arch", ""), 2, "argument --arch: must name at least one, or be left out; got ''"),
    (("precompile", "--head-dim", ","), 2, "argument --head-dim: must name at least one"),
    (("precompile", "--head-dim", "100"), 1, "The nearest is 96"),
    (("precompile", "--op", "prefil"), 1, "got 'prefil'"),
    (("precompile", "--jobs", "0"), 1, "`jobs` must be a positive integer or None; got 0"),
    (("show", "merge_f16_kvf16_d65_sm80", "--ptx"), 1, NAME),
    (("show", "nothing at all", "--ptx"), 1, "store list"),
    (("show", "decode_f16_kvf16_d128_h8_sm80", "--ptx"), 1, "mean decode_f16_kvf16_d128_h8_s16x2_w"),
    (("show", "decode_f16_kvi8_d64_sm90", "--ptx"), 1, "mean decode_f16_kvi8_d64_h"),
    (("show", "decode", "--ptx"), 1, "mean decode_"),
    (("show", "prefil_f16_kvf16_d128_sm90", "--ptx"), 1, "kvf16_d128"),
    (("demo", "--device", "tpu"), 1, "'tpu'"),
    (("store", "pack"), 2, "FILE"),
    (("store", "pack", "kernels.tar"), 1, "the store must hold whole kernels to be packed"),
    (("store", "unpack", "nowhere.tar"), 1, "nowhere.tar must be an archive that `pagedattn store pack` has written"),
    (("warmup", "--num-heads", "8"), 2, "--num-kv-heads, --head-dim"),
    (("warmup", "--num-heads", "7", "--num-kv-heads", "2", "--head-dim", "64"), 1, "positive multiple of num_kv_heads, 2; got 7"),
    (("warmup", "--num-heads", "8", "--num-kv-heads", "2", "--head-dim", "65"), 1, "`head_dim` must be one of"),
    (("explain", "--num-heads", "8", "--num-kv-heads", "2", "--head-dim", "64"), 2, "--seqlens-k"),
    ((*EXPLAIN, "--seqlens-k", "long"), 2, "must be integers such as 64,128; got 'long'"),
    ((*EXPLAIN, "--seqlens-k", "8", "--seqlens-q", "9"), 1, "`seqlens_k`"),
    ((*EXPLAIN, "--seqlens-k", "8", "--seqlens-q", "1,1"), 1, "seqlens"),
    ((*EXPLAIN, "--seqlens-k", "8", "--kv-dtype", "int2"), 1, "got 'int2'"),
    (("tune", "--device", "cpu"), 1, "tuning measures a GPU with its own kernels; got device cpu"),
    (("tune", "--device", "cpu", "--reset"), 1, "tuning measures a GPU"),
    (("tune", "--device", "cpu", "--show"), 1, "device cpu runs no kernels and has no tuning table"),
    (("tune", "--show", "--reset"), 2, "not allowed with"),
    (("tune", "--seconds", "long"), 2, "invalid float value"),
]


@pytest.mark.parametrize(("argv", "status", "text"), WRONG, ids=[" ".join(w[0]) or "nothing" for w in WRONG])
def test_refusal(home: Path, run, argv: tuple[str, ...], status: int, text: str) -> None:
    found, out, err = run(*argv)
    assert (found, out) == (status, "")
    assert text in err
    assert "Traceback" not in err
    assert not home.exists(), "a refused command has changed nothing"


@pytest.mark.parametrize(("argv", "text"), [(argv, text) for argv, status, text in WRONG if status == 1])
def test_refusal_as_json(home: Path, run, argv: tuple[str, ...], text: str) -> None:
    """A program that asks for JSON gets JSON: an object with the text, and nothing besides."""
    status, out, err = run(*argv, "--json")
    assert (status, err) == (1, "")
    answer = json.loads(out)
    assert list(answer) == ["error"]
    assert text in answer["error"]


def test_interrupted_as_json(home: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Store) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "entries", interrupt)
    assert run("store", "list") == (130, "", "pagedattn: interrupted\n")
    status, out, err = run("store", "list", "--json")
    assert (status, json.loads(out), err) == (130, {"error": "interrupted"}, "")


@pytest.mark.parametrize(
    "command",
    ["", "demo", "precompile", "warmup", "store", "show", "explain", "tune", "doctor", "bench"]
    + [f"store {action}" for action in ("list", "path", "verify", "clear", "pack", "unpack")],
)
def test_help(run, command: str) -> None:
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert out.startswith(f"usage: pagedattn {command}".rstrip())


def test_version(run) -> None:
    assert run("--version") == (0, f"pagedattn {pagedattn.__version__}\n", "")


@pytest.mark.nvrtc
def test_closed_pipe(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pagedattn", "show", NAME, "--ptx"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
