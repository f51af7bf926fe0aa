"""The examples run, and the serving loop does all that it is there to show."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from pagedattn.devices import cuda

EXAMPLES = Path(__file__).parents[2] / "examples"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def test_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    left = runpy.run_path(str(EXAMPLES / "quickstart.py"))
    assert left["out"].shape == (2, 32, 128)
    assert [left["cache"].seqlen(s) for s in left["sequences"]] == [101, 8]
    assert "2 sequences with one query" in capsys.readouterr().out


@pytest.mark.parametrize("device", DEVICES)
def test_serving_loop(capsys: pytest.CaptureFixture[str], device: str) -> None:
    script = runpy.run_path(str(EXAMPLES / "serving_loop.py"))
    finished = script["main"](device=device)
    out = capsys.readouterr().out
    assert all(word in out for word in ("joins", "is forked", "goes back", "leaves"))
    assert len(finished) == sum(r.samples for r in script["REQUESTS"])
    assert all(len(s.tokens) == s.stop or s.tokens[-1] == 0 for s in finished)
    assert f"{script['NUM_BLOCKS']} blocks free" in out.splitlines()[-1]


def test_serving_loop_says_when_a_request_can_never_fit() -> None:
    script = runpy.run_path(str(EXAMPLES / "serving_loop.py"))
    with pytest.raises(MemoryError, match="blocks"):
        script["main"](num_blocks=20, device="cpu")


def test_context_parallel(capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(EXAMPLES / "context_parallel.py"))
    script["main"](ranks=3, device="cpu")
    line = capsys.readouterr().out
    assert "1000 tokens of prompt and 5 of decoding on 3 threads" in line
    assert float(line.split("within ")[1].split()[0]) < 2e-3


def test_context_parallel_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "usable", lambda: False)
    script = runpy.run_path(str(EXAMPLES / "context_parallel.py"))
    with pytest.raises(SystemExit, match=r"No GPU is usable here .* --device cpu"):
        script["main"](ranks=2)
