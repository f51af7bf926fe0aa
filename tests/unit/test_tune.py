"""The search for tuned rows, driven by a stand-in for time: what is tried, what is refused, what wins, what is kept."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import pagedattn as pa
from pagedattn import arch as archs
from pagedattn import build, candidates, cli, dispatch, tuned, tuned_file
from pagedattn import trial as trials
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.explain import explain_shape
from pagedattn.kernel import Kernel
from pagedattn.nvrtc import Compiled
from pagedattn.precompile import Outcome
from pagedattn.store import Store
from pagedattn.tune_report import Race, Shape, short
from pagedattn.tuning import DecodeTile, Key, PrefillTile, Tile

tune = importlib.import_module("pagedattn.tune")  # the package's own name is the function

KEY, TARGET, GPU = Key("decode", 128, 8, 16), "sm_90", "Toy GPU 2000"
SHIPPED, BETTER = DecodeTile(10, 2), DecodeTile(7, 2)
ONE: dict[str, Any] = {"ops": "decode", "head_dims": 128, "kv_dtypes": "float16", "groups": 4, "progress": False}


class Clock:
    """In place of Trial: a call takes as long as `times` says, with a noise that repeats."""

    times: ClassVar[Callable[[Tile], tuple[float, ...]]]
    noise: ClassVar[float] = 0.0
    faults: ClassVar[dict[Tile, str]] = {}
    thorough_faults: ClassVar[dict[Tile, str]] = {}
    measured: ClassVar[list[Tile]] = []

    def __init__(self, device: Any, key: Key, group: int) -> None:
        self.device, self.key, self.group, self.shapes = device, key, group, (Shape(64, 1, 4096), Shape(1, 1, 32768))

    def wrong(self, tile: Tile, *, thorough: bool = False) -> str:
        return self.faults.get(tile, "") or (self.thorough_faults.get(tile, "") if thorough else "")

    def seconds(self, tile: Tile) -> tuple[float, ...]:
        self.measured.append(tile)
        shake = 1 + self.noise * (-1) ** (len(self.measured) // 2)
        return tuple(t * (shake if tile != SHIPPED else 1) for t in Clock.times(tile))


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[InterpreterDevice]:
    """A GPU of which only the name is real; nothing is compiled, and kernels are loaded by being noted."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "home"))
    dispatch.forget()
    device = InterpreterDevice(TARGET)
    device.model = GPU
    monkeypatch.setattr(device, "load", lambda kernel: None)
    monkeypatch.setattr(tune, "fill", lambda specs, *_: {s.name: Outcome(s.name, s.arch) for s in specs})
    monkeypatch.setattr(build, "make", lambda spec, shelf: made(spec))
    monkeypatch.setattr(tune, "Trial", Clock)
    for name, value in (("faults", {}), ("thorough_faults", {}), ("measured", []), ("noise", 0.0)):
        monkeypatch.setattr(Clock, name, value)
    Clock.times = lambda tile: (2.5e-4, 4e-5) if tile != BETTER else (2.4e-4, 3.9e-5)
    yield device
    dispatch.forget()


def made(spec: pa.KernelSpec, spills: int = 0) -> Kernel:
    log = f"ptxas . {spills} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads\nptxas info : Used 40 registers"
    return Kernel(spec, "", Compiled(b"", b"", log, 0.1), "compiled")


def winner(report: Any) -> Tile | None:
    (race,) = report.races
    found: Tile | None = race.winner
    return found


def test_a_better_tile_is_found_and_kept_and_used(gpu: InterpreterDevice) -> None:
    report = pa.tune(gpu, **ONE)
    assert winner(report) == BETTER
    assert Clock.measured.count(SHIPPED) > tune.ROUNDS, "it runs beside each finalist"
    assert set(Clock.measured) == set(candidates.of(KEY, TARGET))
    record = tuned.table(GPU, TARGET).rows[KEY]
    assert (record.tile, report.path) == (BETTER, tuned.table(GPU, TARGET).path)
    assert record.gain == pytest.approx((2.5 / 2.4 * 4 / 3.9) ** 0.5 - 1, abs=1e-4)
    (step,) = explain_shape(num_heads=32, num_kv_heads=8, head_dim=128, seqlens_k=[100], device=gpu).steps
    assert step.spec
    assert step.spec.warps == 7
    assert f"tuned on {GPU}, " in step.row


# What a candidate must not do to take the shipped row's place.
LOSERS: dict[str, tuple[Callable[[Tile], tuple[float, ...]], float]] = {
    "as fast": (lambda tile: (2.5e-4, 4e-5), 0.0),
    "less than a hundredth faster": (lambda tile: (2.5e-4, 4e-5) if tile != BETTER else (2.48e-4, 3.97e-5), 0.0),
    "faster within the noise": (lambda tile: (2.5e-4, 4e-5) if tile != BETTER else (2.45e-4, 3.92e-5), 0.04),
    "slower in one workload": (lambda tile: (2.5e-4, 4e-5) if tile != BETTER else (2.0e-4, 4.1e-5), 0.0),
}


@pytest.mark.parametrize("name", LOSERS)
def test_what_is_not_surely_better_does_not_win(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    Clock.times, noise = LOSERS[name]
    monkeypatch.setattr(Clock, "noise", noise)
    report = pa.tune(gpu, **ONE)
    assert winner(report) is None
    assert report.path is not None
    assert not report.path.exists()
    assert "0 of 1 rows tuned on Toy GPU 2000, sm_90" in str(report)
    assert "; nothing is kept" in str(report)


def test_noise_alone_does_not_hide_what_is_better(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "noise", 0.01)
    assert winner(pa.tune(gpu, **ONE)) == BETTER


def test_a_wrong_candidate_is_never_timed(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "faults", {BETTER: "sequence 0 differs"})
    report = pa.tune(gpu, **ONE)
    assert (winner(report), BETTER in Clock.measured) == (None, False)
    assert "  s16x2_w7: sequence 0 differs" in str(report).splitlines()
    assert report.races[0].skipped == {BETTER: "sequence 0 differs"}


def test_nothing_is_measured_where_the_shipped_row_is_wrong(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "faults", {SHIPPED: "sequence 0 differs"})
    with pytest.raises(pa.UnsupportedError, match="row for decode d128 h8 16-bit must be right to be raced; sequence 0 differs"):
        pa.tune(gpu, **ONE)


def test_a_candidate_that_spills_is_skipped(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "make", lambda spec, shelf: made(spec, 8 * (spec.warps == 7)))
    report = pa.tune(gpu, **ONE)
    assert BETTER not in Clock.measured
    assert report.races[0].skipped[BETTER] == "spills 16 bytes of a thread, 8 on the stack"
    assert "  s16x2_w7 s16x3_w7: spills 16 bytes of a thread, 8 on the stack" in str(report).splitlines()


@pytest.mark.parametrize(("stack", "refused"), [(64, False), (72, True)])
def test_a_few_bytes_of_stack_are_no_spill_in_prefill(
    gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch, stack: int, refused: bool
) -> None:
    monkeypatch.setattr(build, "make", lambda spec, shelf: made(spec, stack))
    spec = tuned.spec_of(Key("prefill", 128, 0, 16), TARGET)
    assert bool(trials.load([spec], gpu, Store("/nowhere"))) == refused


@pytest.mark.parametrize("fault", ["bfloat16 spills", "cut is wrong", "does not compile"])
def test_a_winner_must_be_sound_in_all_that_it_serves(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    second = DecodeTile(8, 2)
    Clock.times = lambda tile: {BETTER: (2.3e-4, 3.8e-5), second: (2.4e-4, 3.9e-5)}.get(tile, (2.5e-4, 4e-5))  # type: ignore[call-overload]

    def fails(spec: pa.KernelSpec, shelf: Store) -> Kernel:
        if fault == "does not compile" and (spec.warps, spec.splits) == (7, "cut"):
            raise pa.CompileError("no registers are left\nand more")
        return made(spec, 8 * (fault == "bfloat16 spills" and spec.warps == 7 and spec.dtype == "bfloat16"))

    monkeypatch.setattr(build, "make", fails)
    monkeypatch.setattr(Clock, "thorough_faults", {BETTER: "wrong"} if fault == "cut is wrong" else {})
    report = pa.tune(gpu, **ONE)
    assert winner(report) == second, "the next best"
    why = report.races[0].skipped[BETTER]
    assert (
        why
        == {
            "bfloat16 spills": "spills 16 bytes of a thread, 8 on the stack, as decode_bf16_kvbf16_d128_h8_s16x2_w7_flat_sm90",
            "cut is wrong": "wrong",
            "does not compile": "no registers are left",
        }[fault]
    )


def test_rows_of_other_runs_stay_and_those_of_lost_races_go(gpu: InterpreterDevice) -> None:
    Clock.times = lambda tile: (2e-4, 2e-5) if tile in (BETTER, DecodeTile(6, 2)) else (2.5e-4, 4e-5)
    pa.tune(gpu, **ONE)
    pa.tune(gpu, **{**ONE, "groups": 16})
    assert {key: short(r.tile) for key, r in tuned.table(GPU, TARGET).rows.items()} == {
        KEY: "s16x2_w7",
        KEY._replace(heads=16): "s16x2_w7",
    }
    Clock.times = lambda tile: (2.5e-4, 4e-5)
    pa.tune(gpu, **ONE)
    assert set(tuned.table(GPU, TARGET).rows) == {KEY._replace(heads=16)}


def test_dry_run_keeps_nothing(gpu: InterpreterDevice, tmp_path: Path) -> None:
    report = pa.tune(gpu, **ONE, dry_run=True)
    assert (winner(report), report.path) == (BETTER, None)
    assert not list(tmp_path.rglob("*.json"))
    assert tuned.table(GPU, TARGET).rows == {}


def test_no_row_is_begun_after_the_time(gpu: InterpreterDevice) -> None:
    report = pa.tune(gpu, **{**ONE, "groups": None}, seconds=1e-9)
    assert (report.races, report.left) == ((), (KEY, KEY._replace(heads=16)))
    assert "no time was left for 2 more" in str(report)


def test_prefill_may_share_keys_later(gpu: InterpreterDevice) -> None:
    later = PrefillTile(4, 128, 64, 2, part_tiles=16)
    Clock.times = lambda tile: (1.5e-3, 3e-4) if tile == later else (1.5e-3, 4e-4)
    report = pa.tune(gpu, **{**ONE, "ops": "prefill"})
    assert winner(report) == later
    spec = dispatch.spec_for("prefill", "float16", "float16", 128, TARGET, TARGET, model=GPU)
    assert tuned.prefill_row(spec, GPU).part_tiles == 16


@pytest.mark.parametrize("key", [Key("prefill", 128, 0, 16), Key("prefill", 64, 0, 8)])
def test_what_is_timed_was_built_and_looked_at(key: Key, gpu: InterpreterDevice) -> None:
    """Where query tiles are few, several CTAs share their keys, by another kernel; that it spills must not be found out later."""
    layout = pa.BlockLayout(trials.KV_HEADS, key.head_dim, trials.BLOCK_LEN, kv_dtype=tuned.STORED[key.bits])
    gpu.sm_count = 132
    kinds = set()
    for tile in candidates.of(key, TARGET)[1:]:
        with tuned.trying(GPU, TARGET, key, tile):
            dispatch.spec_for.cache_clear()
            for sequences, new, length in ((1, 8192, 8192), (1, 512, 16384), (8, 1024, 1024), (1, 5, 2100)):
                batch = pa.Batch([[0] * (length // 64 + 1)] * sequences, [new] * sequences, [length] * sequences, device="cpu")
                spec, *_ = dispatch.plan_prefill(gpu, layout, 4 * trials.KV_HEADS, batch, 0)
                assert spec in trials.timed(key, TARGET, tile)
                kinds.add(spec.splits)
    dispatch.spec_for.cache_clear()
    assert kinds == {"whole", "parts"}


def test_the_report_as_text_and_as_data(gpu: InterpreterDevice) -> None:
    report = pa.tune(gpu, **ONE)
    head, line, last = str(report).splitlines()
    assert " ".join(head.split()) == "row for tried skipped shipped us best other us gain"
    assert " ".join(line.split()) == "decode d128 h8 16-bit 16 0 s16x2_w10 250 40 s16x2_w7 240 39 +3.4 % taken"
    assert last.startswith(f"1 of 1 rows tuned on {GPU}, sm_90, in ")
    assert last.endswith(f"; kept in {report.path}")
    (race,) = json.loads(json.dumps(report.to_dict()))["races"]
    assert (race["winner"], race["workloads"]) == (BETTER._asdict(), ["64 x 4096", "1 x 32768"])
    assert len(race["us"]) == 16


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"ops": "append"}, "`ops` must be some of decode, prefill, or None; got 'append'"),
        ({"head_dims": [128, 100]}, r"`head_dims` must be some of 64, 96, .*; got \[128, 100\]"),
        ({"kv_dtypes": []}, r"`kv_dtypes` must be some of float16, int8, int4, or None; got \[\]"),
        ({"groups": 0}, "`groups` must be integers from 1 to 64, or None; got 0"),
        ({"groups": [4, "many"]}, "`groups` must be integers"),
        ({"seconds": 0}, "`seconds` must be positive or None; got 0"),
        ({"seconds": float("nan")}, "`seconds` must be positive or None; got nan"),
        ({"jobs": 0}, "`jobs` must be a positive integer or None; got 0"),
        ({"device": "interpreter"}, "tuning measures a GPU with its own kernels; got device interpreter:sm_80"),
    ],
)
def test_bad_input(gpu: InterpreterDevice, tmp_path: Path, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(pa.PagedAttnError, match=text):
        pa.tune(**{"device": gpu, **ONE, **changes})
    assert not (tmp_path / "home").exists()
    assert not Clock.measured


def test_tuning_what_is_switched_off_is_refused(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDATTN_TUNED", "0")
    with pytest.raises(pa.UnsupportedError, match="PAGEDATTN_TUNED=0 switches tuned rows off; unset it to tune"):
        pa.tune(gpu, **ONE)


def test_an_unwritable_store_is_refused_before_anything_is_measured(
    gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(pa.UnsupportedError, match="must be writable to keep what is found"):
        pa.tune(gpu, **ONE)
    assert not Clock.measured


@pytest.mark.parametrize("target", [a.name for a in archs.ARCHS.values()])
def test_candidates_are_kernels_of_the_target(target: str) -> None:
    for key in tune.selected(target):
        shipped, *others = candidates.of(key, target)
        assert shipped == tuned.row_of(tuned.spec_of(key, target), "").tile
        assert others, "there is something to try"
        assert len({shipped, *others}) == len(others) + 1
        assert candidates.of(key, target, quick=True) == [shipped, *others[: candidates.QUICK]]
        for tile in others:
            assert tuned.spec_of(key, target, tile).arch == target  # KernelSpec refuses what cannot be
            assert tuned.why_not(key, target, tile) == ""


def test_a_race_needs_more_than_one_good_pair() -> None:
    pairs = [((1.0,), (0.9,))] * 5 + [((1.0,), (1.01,))] * 2
    race = Race.of(KEY, (Shape(1, 1, 1),), {SHIPPED: (1.0,), BETTER: (0.9,)}, {BETTER: pairs}, {}, 0.01, 0.01)
    assert race.finals[BETTER].gain == pytest.approx(1 / 0.9 - 1)
    assert race.ahead == ()
    assert race.best == BETTER


def test_the_command(gpu: InterpreterDevice, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tune.devices, "get", lambda name=None: gpu)

    def run(*argv: str) -> str:
        assert cli.main(["tune", *argv]) == 0
        return capsys.readouterr().out

    chosen = ("--only", "decode", "--head-dim", "128", "--kv-dtype", "float16", "--group", "4")
    assert "no rows were tuned for this GPU: nothing to remove" in run("--reset")
    assert json.loads(run(*chosen, "--dry-run", "--quick", "--json"))["path"] is None
    path = json.loads(run(*chosen, "--json"))["path"]
    assert "+3.4 %  taken" in run(*chosen)
    shown = run("--show").splitlines()
    assert shown[0] == f"interpreter:sm_90: {GPU}, sm_90"
    assert len(shown) == 1 + len(tune.selected(TARGET)) + 1  # and a row for long sequences
    (line,) = [line for line in shown if line.startswith("decode d128 h8 16-bit ")]
    assert line.split()[4] == "s16x2_w7"
    assert line.endswith(path)
    (row,) = [r for r in json.loads(run("--show", "--json"))["rows"] if r["op"] == "decode" and "tuned on" in r["origin"]]
    assert row["tile"] == BETTER._asdict()
    assert run("--reset") == f"{path} removed\n"
    assert json.loads(run("--reset", "--json")) == {"removed": None}
    assert "tuned on" not in run("--show")


def test_show_of_a_device_without_kernels() -> None:
    with pytest.raises(pa.UnsupportedError, match=r"device cpu runs no kernels and has no tuning table. Name another"):
        tune.table("cpu")
    assert tune.table("interpreter:sm_86").model == ""


SMALL = {"decode": ((1, 1), (1, 33)), "prefill": ((2, 2), (20, 50))}


@pytest.mark.parametrize("key", [Key("decode", 64, 8, 4), Key("prefill", 64, 0, 16)], ids=lambda k: k.op)
def test_a_trial_runs_the_kernels_and_knows_right_from_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: Key) -> None:
    """On the interpreter: a row's own kernels, compiled and executed."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path))
    for name, value in (("CHECKED", SMALL), ("KV_HEADS", 1), ("CHUNK", 32), ("BEYOND_L2", 1000), ("BURSTS", 1)):
        monkeypatch.setattr(trials, name, value)
    device = InterpreterDevice(TARGET)
    device.model = GPU
    tile = candidates.of(key, TARGET)[1]
    trial = trials.Trial(device, key, 2, (Shape(2, 1 if key.op == "decode" else 9, 80),))
    spec = trials.variants(key, TARGET, tile)[0]
    assert trials.load([spec], device, Store()) == ""
    whole, called = pa.paged_attention, set()

    def noted(q: Any, *rest: Any, **keywords: Any) -> Any:
        called.update({n for n in ("k", "softcap", "num_splits") if keywords.get(n) is not None} or {"plain"})
        return whole(q, *rest, **keywords)

    monkeypatch.setattr(trials, "paged_attention", noted)
    assert trial.wrong(tile, thorough=True) == ""
    assert called == {"plain", "k", "softcap"} | ({"num_splits"} if key.op == "decode" else set())
    (seconds,) = trial.seconds(tile)
    assert seconds > 0
    assert spec.name in {entry.name for entry in Store().entries()}, "the candidate ran, and not the shipped row"

    def spoiled(q: Any, *rest: Any, **keywords: Any) -> Any:
        out = whole(q, *rest, **keywords)
        out[-1] *= 1.01
        return out

    monkeypatch.setattr(trials, "paged_attention", spoiled)
    assert "differs from float64 attention" in trial.wrong(tile)
    assert tuned.table(GPU, TARGET).rows == {}, "a trial leaves nothing behind"


@pytest.mark.cuda
def test_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it, on the nearest candidates of one row."""
    monkeypatch.setenv("PAGEDATTN_HOME", str(tmp_path))
    monkeypatch.setattr(candidates, "QUICK", 2)
    dispatch.forget()
    report = pa.tune(**{**ONE, "head_dims": 64}, quick=True, jobs=1)
    assert len(report.races[0].figures) + len(report.races[0].skipped) == 3
    assert all(seconds > 1e-6 for found in report.races[0].figures.values() for seconds in found)
    assert tuned_file.find(report.device, report.arch) == ([report.path] if report.races[0].winner else [])
    dispatch.forget()
