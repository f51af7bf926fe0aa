"""The command line as a program sees it: what it prints, and its exit status."""

from __future__ import annotations

import importlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pagedattn
from pagedattn import bench, build, cli
from pagedattn.shipped import shipped
from pagedattn.store import Store

NAME = "merge_f16_kvf16_d64_sm80"
ONE = ("--arch", "sm_80", "--dtype", "float16", "--head-dim", "64", "--op", "merge")
DISASSEMBLER = f"""#!{sys.executable}
import sys, pathlib
*options, cubin = sys.argv[1:]
assert pathlib.Path(cubin).read_bytes()[:4] == b"\\x7fELF"
print(*options, pathlib.Path(cubin).name)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, and no kernel in this process's memory."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    build.forget()
    return tmp_path / "home"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Run a command in this process; returns (status, stdout, stderr)."""

    def run(*argv: str) -> tuple[int, str, str]:
        try:
            status = cli.main(argv)
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return run


EXPLAIN = ("explain", "--num-heads", "8", "--num-kv-heads", "2", "--head-dim", "64", "--device", "interpreter:sm_90")

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
    assert 'under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


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


SHAPE = ("--num-heads", "32", "--num-kv-heads", "8", "--head-dim", "64")


def test_warmup(home: Path, run) -> None:
    assert run("warmup", *SHAPE, "--device", "cpu") == (0, "cpu runs no kernels: nothing to warm up\n", "")
    assert not home.exists()
    status, out, _ = run("warmup", *SHAPE, "--device", "interpreter", "--kv-dtype", "int8")
    *kernels, last = out.splitlines()
    assert (status, last, len(kernels)) == (0, "8 kernels ready on interpreter:sm_80", 8)
    assert all("compiled in" in line for line in kernels)
    build.forget()
    report = json.loads(run("warmup", *SHAPE, "--device", "interpreter", "--kv-dtype", "int8", "--json")[1])
    assert [k["origin"] for k in report["kernels"]] == ["store"] * 8
    assert sorted(k["name"].partition("_")[0] for k in report["kernels"]) == [
        "append",
        "decode",
        "decode",
        "decode",
        "gather",
        "merge",
        "prefill",
        "prefill",
    ]


@pytest.mark.cuda
def test_warmup_on_a_gpu(home: Path, run) -> None:
    """Afterwards nothing is compiled: the kernels that calls of this shape ask for are loaded."""
    status, out, _ = run("warmup", *SHAPE)
    assert (status, "8 kernels ready on cuda:" in out) == (0, True)
    device = pagedattn.devices.get("cuda")
    before = len(device._modules)
    cache = pagedattn.KVCache(8, num_kv_heads=8, head_dim=64, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 1])
    q, k = device.zeros((21, 32, 64), "float16"), device.zeros((21, 8, 64), "float16")
    for splits in (None, 4):
        pagedattn.paged_attention(q, cache, batch, k=k, v=k, num_splits=splits)
    pagedattn.gather(cache, batch)
    assert len(device._modules) == before


def test_explain(home: Path, run) -> None:
    """What a call would launch, without a GPU and without compiling: the kernel, its row of the tuning table, and whose that is."""
    status, out, err = run(*EXPLAIN, "--seqlens-k", "4096,100,300", "--seqlens-q", "1,1,200", "--kv-dtype", "int8")
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        "on interpreter:sm_90: the SM80 family (mma.m16n8k16), for sm_90 has cp.async and mma.m16n8k16",
        "  decode_f16_kvi8_d64_h8_s32x3_w12_flat_sm90",
        "    2 CTAs of 384 threads, 182016 bytes of shared memory each",
        "    tile: warps=12, stages=3, cta_s=32; row 1 of 3 of the shipped table",
    ]
    steps = json.loads(run(*EXPLAIN, "--seqlens-k", "4096", "--json")[1])["steps"]
    assert [(s["kernel"], s["grid"]) for s in steps] == [("decode_f16_kvf16_d64_h8_s16x3_w12_flat_sm90", 2)]
    assert steps[0]["row"].endswith("; row 1 of 2 of the shipped table")
    assert "NumPy" in run(*EXPLAIN[:-1], "cpu", "--seqlens-k", "4096")[1]
    assert not home.exists(), "nothing is compiled"


def test_tune_shows_the_shipped_table(home: Path, run) -> None:
    status, out, _ = run("tune", "--show", "--device", "interpreter:sm_86")
    assert status == 0
    assert out.splitlines()[0] == "interpreter:sm_86: no GPU of its own, sm_86"
    assert "prefill d128 16-bit     q128_s64x2_w4_c1_p8     row 3 of 3 of the shipped table" in out.splitlines()
    report = json.loads(run("tune", "--show", "--device", "interpreter:sm_70", "--json")[1])
    assert {row["op"] for row in report["rows"]} == {"decode", "prefill"}
    assert not home.exists()


def test_bench(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs what `make bench` runs; here in place of the benchmark a program that says what it was asked."""
    monkeypatch.setattr(bench.cuda, "usable", lambda: True)
    root = Path(pagedattn.__file__).parents[1]
    assert bench.command(["host", "build"], None) == [sys.executable, "-m", "benchmarks", "--only", "host,build"]
    assert (root / "benchmarks" / "__main__.py").is_file()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__main__.py").write_text(
        "import sys, pathlib\nprint('a table')\na = sys.argv[1:]\n"
        "if '--json' in a: pathlib.Path(a[a.index('--json') + 1]).write_text('{\"host_us\": 7}\\n')\nsys.exit('wrong' in a)\n"
    )
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    done = [
        sys.executable,
        "-c",
        "import sys; from pagedattn import bench, cli; from pathlib import Path\nbench.ROOT = Path(sys.argv[1])\n"
        "bench.cuda.usable = lambda: True\nsys.exit(cli.main(sys.argv[2:]))",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(root)}

    def answer(*argv: str) -> tuple[int, str]:
        found = subprocess.run([*done, *argv], env=environment, capture_output=True, text=True, check=False)
        return found.returncode, found.stdout

    assert answer("bench") == (0, "a table\n")
    assert answer("bench", "--only", "host", "--json") == (0, '{"host_us": 7}\n')
    status, out = answer("bench", "--only", "wrong", "--json")
    assert (status, list(json.loads(out))) == (1, ["error"])


def test_bench_refuses(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.cuda, "usable", lambda: False)
    status, out, err = run("bench")
    assert (status, out) == (1, "")
    assert "none is usable" in err
    with pytest.raises(pagedattn.UnsupportedError, match=r"needs the source tree; .* has no folder benchmarks"):
        bench.command(None, None, tmp_path)


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


@pytest.mark.nvrtc
def test_closed_pipe(home: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pagedattn", "show", NAME, "--ptx"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_doctor(home: Path, run) -> None:
    status, out, _ = run("doctor", "--json")
    report = json.loads(out)
    checks = {c["name"]: c for c in report["checks"]}
    assert (status, report["ok"]) == (0, True), report
    assert checks["compile"]["state"] == checks["store"]["state"] == checks["cpu"]["state"] == "ok"
    assert "sm_80" in checks["nvrtc"]["found"]
    assert str(home) in checks["store"]["found"]
    status, out, _ = run("doctor")
    assert status == 0
    assert "attends; within" in out
    assert all(f"({stored})" in out for stored in ("float16", "int8", "int4"))


def test_doctor_finds_what_does_not_work(home: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagedattn import resources

    monkeypatch.setattr("pagedattn.devices.cpu.CpuDevice.run", lambda *_: None)
    monkeypatch.setattr("pagedattn.render.render", lambda _: "syntax error")
    status, out, _ = run("doctor", "--json")
    found = {c["name"]: c["state"] for c in json.loads(out)["checks"]}
    assert resources.folder("templates").is_dir()
    assert (status, found["cpu"], found["compile"]) == (1, "fail", "fail")


def test_doctor_without_a_writable_store(tmp_path: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file" / "home"))
    _, out, _ = run("doctor", "--json")
    (check,) = [c for c in json.loads(out)["checks"] if c["name"] == "store"]
    assert check["state"] == "note"
    assert "PAGEDATTN_HOME" in check["hint"]


def test_demo(run) -> None:
    status, out, _ = run("demo", "--device", "cpu", "--max-new-tokens", "8", "--json")
    assert status == 0
    assert json.loads(out)


def test_demo_refuses(run) -> None:
    status, _, err = run("demo", "--device", "cpu", "--max-new-tokens", "0")
    assert status == 1
    assert "max_new_tokens" in err
