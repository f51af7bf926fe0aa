"""Tuned rows: looked for where a call chooses its kernels, taken only from a whole file made for this GPU and these kernels."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch, candidates, dispatch, tuned, tuned_file, tuning, workspace
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.explain import explain_shape
from pagedattn.footprint import TILED
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec
from pagedattn.store import Store
from pagedattn.testing import assert_matches_reference
from pagedattn.tune import selected
from pagedattn.tuned_file import Record
from pagedattn.tuning import DecodeTile, Key, PrefillTile

GPU, TARGET = "Toy GPU 2000", "sm_90"
DECODE, PREFILL = Key("decode", 64, 8, 16), Key("prefill", 64, 0, 8)
ROWS = [Record(DECODE, DecodeTile(7, 2), "2026-11-21", 0.03), Record(PREFILL, PrefillTile(8, 256, 32, 1, 2, 16), "2026-11-20", 0.02)]
SHAPE: dict[str, Any] = {"num_heads": 8, "num_kv_heads": 2, "head_dim": 64}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store, and no tuned row in this process's memory, before and after."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path))
    dispatch.forget()
    yield tmp_path
    dispatch.forget()


def device(model: str = GPU, target: str = TARGET) -> InterpreterDevice:
    made = InterpreterDevice(target)
    made.model = model
    return made


def written(rows: list[Record] = ROWS, model: str = GPU, target: str = TARGET) -> Path:
    path = tuned_file.write(model, target, "12.9", rows)
    dispatch.forget()
    return path


def warps_of(gpu: Any, **more: Any) -> int | None:
    (step,) = explain_shape(**{**SHAPE, **more}, seqlens_k=[100], device=gpu).steps
    assert step.spec
    return step.spec.warps


def test_a_row_is_taken_on_its_gpu_and_nowhere_else(home: Path) -> None:
    before = warps_of(device())
    path = written()
    assert path == home / "tuned" / "Toy-GPU-2000-sm_90.json"
    assert before != 7
    assert warps_of(device()) == 7
    others: list[Any] = [InterpreterDevice(TARGET), device("Toy GPU 3000"), device(GPU, "sm_80"), "interpreter:sm_90"]
    assert [warps_of(gpu) for gpu in others] == [before, before, warps_of("interpreter"), before]
    assert warps_of(device(), kv_dtype="int8") == warps_of("interpreter:sm_90", kv_dtype="int8"), "it has no row"
    assert KernelSpec("decode", head_dim=64, arch=TARGET).warps == before, "a spec is the same on every machine"
    assert all(spec.warps != 7 for spec in shipped([TARGET], ["float16"], [64], ["decode"])), "and so is what is compiled ahead of time"


def test_it_serves_every_kernel_of_its_key(home: Path) -> None:
    written()
    layout = pa.BlockLayout(2, 64, kv_dtype="int8")
    specs = dispatch.specs_of(layout, 8, *[arch.parse(TARGET)] * 2, GPU)
    assert {(s.cta_s, s.cta_q) for s in specs if s.op == "prefill"} == {(32, 256)}
    decode = [s for s in dispatch.specs_of(pa.BlockLayout(2, 64), 8, *[arch.parse(TARGET)] * 2, GPU) if s.op == "decode"]
    assert {s.warps for s in decode if s.splits == "flat"} == {7}
    cut = KernelSpec("decode", head_dim=64, arch=TARGET, splits="cut")
    assert [s for s in decode if s.splits == "cut"] == [cut, replace(cut, general=True)], "the order of its sums would change"
    for op in TILED:
        spec = dispatch.spec_for(op, "bfloat16", "bfloat16", 64, TARGET, TARGET, model=GPU)
        assert spec == KernelSpec(op, "bfloat16", head_dim=64, arch=TARGET), "16-bit prefill was not tuned"


def test_a_tuned_row_says_when_keys_are_shared(home: Path) -> None:
    """Its CTAs share 512 keys as the shipped row's do: 16 tiles of 32 for 8 of 64."""
    plain = explain_shape(**SHAPE, kv_dtype="int8", seqlens_q=[2], seqlens_k=[1100], device=InterpreterDevice(TARGET))
    sharing = written([Record(PREFILL, PrefillTile(8, 256, 64, 1, 2, 16), "2026-11-21", 0.1)])
    assert sharing.exists()
    fewer = explain_shape(**SHAPE, kv_dtype="int8", seqlens_q=[2], seqlens_k=[1100], device=device())
    assert (plain.steps[0].grid, fewer.steps[0].grid) == (2, 2), "two multiprocessors leave no room to share"
    many = SimpleNamespace(arch=arch.parse(TARGET), source=arch.parse(TARGET), sm_count=132, model="")
    batch: Any = SimpleNamespace(batch_size=1, max_seqlen_q=2, max_seqlen_k=1100, total_k=0)
    layout = pa.BlockLayout(2, 64, kv_dtype="int8")
    parts = {}
    for many.model in ("", GPU):
        parts[many.model] = dispatch.plan_prefill(many, layout, 8, batch, 0)[3]
    assert parts == {"": 2, GPU: 1}


def test_explain_names_the_row_and_where_it_is_from(home: Path) -> None:
    path = written()
    told = str(explain_shape(**SHAPE, seqlens_q=[1, 30], seqlens_k=[100, 30], device=device()))
    assert f"    tile: warps=7, stages=2, cta_s=16; tuned on {GPU}, 2026-11-21, {path}\n" in told
    assert "_w7_flat_sm90\n" in told
    assert (
        "    tile: warps=4, cta_q=128, cta_s=64, min_ctas=2, stages=2, part_tiles=8, most_parts=16; row 1 of 1 of the shipped table\n"
        in told
    )
    cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, device=device())
    batch = cache.extend([cache.new_sequence()], [1])
    (step,) = pa.explain(np.zeros((1, 8, 64), np.float16), cache, batch).steps
    assert step.row.startswith("warps=7")
    assert warps_of(device("Toy GPU 3000")) != 7


def test_a_call_launches_what_was_tuned(home: Path) -> None:
    """The kernel of a tuned row runs, and is right."""
    written()
    cache = pa.KVCache(8, num_kv_heads=1, head_dim=64, block_len=16, device=device())
    batch = cache.extend([cache.new_sequence()], [40])
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 40, 1, 64)).astype(np.float16)
    pa.append(k, v, cache, batch)
    one = cache.extend([0], [1])
    q, new = rng.standard_normal((1, 4, 64)).astype(np.float16), rng.standard_normal((1, 1, 64)).astype(np.float16)
    pa.append(new, new, cache, one)
    out = pa.paged_attention(q, cache, one)
    assert assert_matches_reference(out, q, cache, one) < 1e-3
    assert any("_w7_" in entry.name for entry in Store(home).entries())


def test_the_environment_switches_tuned_rows_off(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written()
    monkeypatch.setenv("PAGEDATTN_TUNED", "0")
    assert warps_of(device()) == warps_of("interpreter:sm_90")


def test_a_layer_may_bring_the_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written()
    monkeypatch.setenv("PAGEDATTN_STORE_PATH", str(home))
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "own"))
    dispatch.forget()
    assert warps_of(device()) == 7
    own = written([ROWS[0]._replace(tile=DecodeTile(8, 2))])
    assert own != path
    assert warps_of(device()) == 8, "the user's own file comes first"


def test_the_file_is_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written()
    assert warps_of(device()) == 7
    path.unlink()
    monkeypatch.setattr(tuned_file, "read", lambda *_: pytest.fail("read again"))
    assert warps_of(device()) == 7
    assert warps_of(device(), kv_dtype="int4") is not None


def test_what_is_written_is_read(home: Path) -> None:
    path = written(ROWS[::-1])
    assert tuned_file.read(path, GPU, TARGET) == sorted(ROWS)
    lines = path.read_text().splitlines()
    assert [line for line in lines if '"tile"' in line] == [line for line in lines if '"gain"' in line], "one row, one line"
    assert not list(home.glob(".tmp-*"))
    assert not tuned_file.write(GPU, TARGET, "12.9", []).exists(), "a file without rows is none"


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change what a file says, and make its checksum right again."""
    content = json.loads(path.read_text())
    content.pop("checksum")
    change(content)
    path.write_text(json.dumps({**content, "checksum": tuned_file._checksum(content)}))


def put(**values: Any) -> Callable[[Path], None]:
    return lambda path: changed(path, lambda content: content.update(values))


def tile(number: int, **values: Any) -> Callable[[Path], None]:
    return lambda path: changed(path, lambda content: content["rows"][number]["tile"].update(values))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "is ignored, and the shipped tuning table used: "),
    "empty": (lambda path: path.write_text(""), "Expecting value"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is ignored"),
    "nested": (lambda path: path.write_text("[" * 100_000), "nested too deep"),
    "rows by name": (put(rows={}), "its rows must be a list"),
    "a list": (lambda path: path.write_text("[1]"), "it is not what was written"),
    "edited": (lambda path: path.write_text(path.read_text().replace('"warps": 7', '"warps": 6')), "its checksum differs"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "Is a directory"),
    "another GPU's": (put(device="Toy GPU 3000"), f"it is for Toy GPU 3000, sm_90, and this GPU is {GPU}, sm_90"),
    "another target's": (put(arch="sm_80"), f"it is for {GPU}, sm_80"),
    "other kernels'": (put(kernels="0123456789ab"), "its rows were tuned for the kernels of another version, 0123456789ab"),
    "without rows": (lambda path: changed(path, lambda content: content.pop("rows")), "it lacks 'rows'"),
    "an unknown operation": (lambda path: changed(path, lambda content: content["rows"][0].update(op="sort")), "it lacks 'sort'"),
    "an unknown head_dim": (lambda path: changed(path, lambda content: content["rows"][0].update(head_dim=65)), "must be one of"),
    "a field too many": (tile(0, threads=8), "threads"),
    "a tile that no kernel has": (tile(0, warps=17), "a decode CTA has at most 16 warps; got 17"),
    "a tile that does not fit": (tile(0, warps=16, stages=4), "bytes of shared memory per CTA"),
    "a tile that is no number": (tile(0, warps="8"), "`warps` must be a positive integer"),
    "more workspace": (tile(1, warps=16, cta_q=512, cta_s=32), "it wants .* bytes of workspace for a multiprocessor, more than"),
    "keys shared too soon": (tile(1, part_tiles=1), "CTAs would share fewer than 512 keys each"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_used_is_ignored_with_one_warning(home: Path, name: str) -> None:
    spoil, text = BROKEN[name]
    path = written()
    spoil(path)
    dispatch.forget()
    with pytest.warns(RuntimeWarning, match=text) as caught:
        found = warps_of(device())
    assert (len(caught), found) == (1, warps_of("interpreter:sm_90"))
    assert str(path) in str(caught[0].message)
    assert "`pagedattn tune --reset` removes" in str(caught[0].message)
    assert warps_of(device(), kv_dtype="int4") == warps_of("interpreter:sm_90", kv_dtype="int4"), "without another warning, an error here"


def test_a_file_for_some_keys_serves_those(home: Path) -> None:
    written(ROWS[:1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warps_of(device()) == 7
        assert warps_of(device(), kv_dtype="int8") == warps_of("interpreter:sm_90", kv_dtype="int8")


def test_kernels_have_one_name_until_a_header_or_a_row_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuned_file.kernels()
    assert before == tuned_file.kernels.__wrapped__()
    monkeypatch.setitem(tuning.DECODE, (64, 8, 16), (DecodeTile(11, 3),))
    assert tuned_file.kernels.__wrapped__() != before


def test_an_unwritable_store_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(pa.UnsupportedError, match=r"must be writable to keep tuned rows; got .* Set PAGEDATTN_HOME"):
        tuned_file.write(GPU, TARGET, "12.9", ROWS)


@pytest.mark.parametrize("target", [a.name for a in arch.ARCHS.values()])
def test_every_key_has_a_row_that_fits_every_target(target: str) -> None:
    """An A100 grants 163 KB, an sm_86, sm_89 or sm_120 99 KB, a Turing 64 KB."""
    mma, keys = arch.parse(target).mma, set()
    for spec in shipped([target]):
        if spec.op in ("decode", *TILED):
            keys.add(spec.key)
            rows = tuning.rows(mma, spec.key)
            own = {name: getattr(spec, name) for name in tuning.fields_of(rows[0])}
            assert own in [tuning.fields_of(row) for row in rows]
            assert spec.shared_bytes <= arch.parse(target).cta_shared_bytes
    assert keys == set(selected(target, groups=[8, 16])) | {k._replace(bits=b) for k in selected(target, ops="prefill") for b in (16, 8, 4)}


@pytest.mark.parametrize("target", [a.name for a in arch.ARCHS.values()])
@pytest.mark.parametrize("sm_count", [5, 40])
def test_workspace_bytes_holds_for_every_candidate(sm_count: int, target: str) -> None:
    """It knows the shipped rows only; a tuned row must never want more."""
    gpu: Any = SimpleNamespace(arch=arch.parse(target), source=arch.parse(target), sm_count=sm_count, model=GPU)
    for key in selected(target, head_dims=[64, 128, 256], kv_dtypes=["float16", "int4"]):
        sizes: dict[str, Any] = {"num_heads": 4 * (key.heads or 8), "num_kv_heads": 4, "head_dim": key.head_dim, "batch_size": 1}
        sizes.update(kv_dtype=tuned.STORED[key.bits], arch=target, sm_count=sm_count)
        layout = pa.BlockLayout(4, key.head_dim, kv_dtype=tuned.STORED[key.bits])
        lengths = ((1, 5000),) if key.op == "decode" else ((2, 600), (2, 1100), (2, 5000), (300, 5000))
        bounds = [pa.workspace_bytes(**sizes, max_seqlen_q=new, max_seqlen_k=length) for new, length in lengths]
        for row in candidates.of(key, target):
            dispatch.spec_for.cache_clear()
            with tuned.trying(GPU, target, key, row):
                for (new, length), bound in zip(lengths, bounds, strict=True):
                    batch: Any = SimpleNamespace(batch_size=1, max_seqlen_q=new, max_seqlen_k=length, total_k=0)
                    if key.op == "decode":
                        spec, _, _, pieces = dispatch.plan_decode(gpu, layout, key.heads, batch, 0)
                    else:
                        spec, tiles, _, parts = dispatch.plan_prefill(gpu, layout, sizes["num_heads"], batch, 0)
                        pieces = tiles * parts if parts > 1 else 0
                    assert tuning.fields_of(row).items() <= {n: getattr(spec, n) for n in tuning.SPEC_FIELDS}.items()
                    assert workspace.COUNTER_BYTES + pieces * spec.piece_bytes <= bound, (row, new, length)
    dispatch.spec_for.cache_clear()
