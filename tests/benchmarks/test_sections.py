"""The sections of the benchmark with a stand-in for the GPU: what they write is what tables, summary and plots read, and red stops them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import summary, tables
from benchmarks.peers import Form, Peer, UnfitError
from pagedattn import reference

cp = pytest.importorskip("cupy", reason="CuPy is not installed")

from benchmarks import comparison, decode, host, measure, placement, prefill, scale, scores, work_table  # noqa: E402  # they import CuPy
from benchmarks.measure import Effort  # noqa: E402


class Work:
    """A workload of which every call is right and takes a microsecond for each megabyte or gigaflop."""

    wrong = ""

    def __init__(
        self, row: Any, head_dim: int = 128, block_len: int = 64, dtype: str = "float16", kv_dtype: str | None = None, **where: Any
    ) -> None:
        assert set(where) <= {"layers", "order"}
        self.layers = where.get("layers") or 3
        self.row, self.head_dim, self.dtype = row, head_dim, dtype
        self.kv_bytes = sum(row.seqlens_k) * row.num_kv_heads * head_dim * {None: 4, "int8": 2, "int4": 1}[kv_dtype]

    def call(self, i: int = 0, num_splits: str | None = None, **change: Any) -> float:
        us = self.kv_bytes / 1e6 if self.row.decode else self.row.flops(self.head_dim) / 1e9
        return us * (2 if num_splits else 1) * (3 if change else 1)

    def error(self, out: Any = None, change: Any = None, **keywords: Any) -> float:
        asked = *keywords.values(), *(() if change is None else change.keywords)
        return 0.5 if self.wrong and self.wrong in (self.row.name, *asked) else 1e-5


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a run that has measured its ceilings."""
    for module in (decode, placement, prefill, scale, scores, comparison):
        monkeypatch.setattr(module, "Workload", Work)
    monkeypatch.setattr(scores, "cp", np)
    monkeypatch.setattr(scores, "_masked", lambda masks: scores.Change({"mask": masks}, lambda s, *at: s))
    monkeypatch.setattr(scores, "_sizes", lambda row: [(2, 3)])
    for name in ("events", "graph", "sustained"):
        monkeypatch.setattr(measure, name, lambda call, *given, **keywords: call(1))
    monkeypatch.setattr(measure, "give_back", lambda: None)
    ceilings = {"read_ceiling_tb_per_s": 2.0, "matmul_tflops": 2000.0}
    return {"pagedattn": "1", "device": "A GPU", "driver": None, "cupy": "14", "nvrtc": "13", "commit": None, **ceilings}


def run(results: dict[str, Any], effort: Effort) -> None:
    for section in (decode.decode, decode.splits, placement.placement, prefill.prefill, scores.scores, comparison.peers, scale.scale):
        section(results, effort)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(work: Any) -> list[Form]:
        raise UnfitError("not today")

    half = Peer("half as fast", "3", True, lambda work: [Form("a form", lambda i: 2 * work.call(), lambda out: out)])
    monkeypatch.setattr(comparison, "available", lambda: ([half, Peer("none", "4", True, unfit)], {"flash_attn": "not installed"}))
    monkeypatch.setattr(comparison, "_error", lambda form, work: 0.0)
    monkeypatch.setattr(comparison, "_timed", lambda form, work, effort: form.call(0))


def test_sections_write_what_the_rest_reads(results: dict[str, Any], peers: None, tmp_path: Path) -> None:
    run(results, Effort())
    for part in ("decode", "prefill"):
        assert [f["share"] for f in results[part]] == pytest.approx([0.5] * len(results[part]))
    assert {f["us"] / f["balanced_us"] for f in results["splits"]} == {2.0}
    assert {f["us"] / f["plain_us"] for f in results["scores"]} == {3.0}
    timed = [(f["variant"], f["row"], f["change"]) for f in results["scores"]]
    assert len(set(timed)) == len(timed) == 5 * (2 * 4 + 2)
    assert {row for _, row, _ in timed} == {"P1", "P2", "D3"}
    assert {change for _, row, change in timed if row == "D3"} == {"softcap", "ALiBi"}  # with a mask, decode is prefill's
    places = [(f["variant"], f["layers"], f["order"]) for f in results["placement"]]
    assert len(set(places)) == len(places) == 3 * 2 * 3
    assert {f["ratio"] for f in results["peers"] if f["peer"] == "half as fast"} == {2.0}
    assert {f["why"] for f in results["peers"] if f["peer"] == "none"} == {"not today"}
    assert {(f["row"], f["head_dim"]) for f in results["peers"]} >= {("D7", 128), ("P1", 64), ("P3", 256)}
    results["host_us"] = results["host_most_us"] = dict.fromkeys(tables.HOST, 1.0)
    results["compile"] = [{"kernel": "one_line", "least_s": 0.03, "most_s": 0.05}]  # compiled without the GPU: test_cold
    results["fused"] = [{"row": "D1", "kv_dtype": "float16", "decode_us": 1.0, "two_us": 3.0, "one_us": 2.0}]  # has arrays of its own
    text = "\n".join(part(results) for part in tables.PARTS.values())
    assert "| half as fast (3) |" in text
    assert "| none (4) |" not in text
    assert "commit unknown" in text
    found = {line["name"]: line for line in summary.of(results)}
    assert found["P1 head_dim 256: speed to the best sm_80-class peer, half as fast"]["value"] == 2.0
    assert found["fixed:512 to balanced, D7, d128 b64 float16 int4"]["value"] == 2.0
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from benchmarks import plots

    assert len(plots.save(results, tmp_path)) == 3


def test_the_hosts_figures_are_the_least_and_the_most_of_all_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = ({"on the current stream": (print, 7)}, {"on another": (print, 7)})
    figures = iter((5.0, 50.0, 3.0, 30.0, 9.0, 90.0, 4.0, 40.0, 6.0, 60.0))
    monkeypatch.setattr(cp.cuda, "Stream", lambda **keywords: contextlib.nullcontext())
    monkeypatch.setattr(host, "_calls", lambda stream: calls)
    monkeypatch.setattr(host, "_import_ms", lambda: 7.0)
    monkeypatch.setattr(host, "PAUSE_S", 0.0)
    monkeypatch.setattr(measure, "host", lambda call, count: next(figures))
    found: dict[str, Any] = {}
    host.host(found, Effort())
    assert found["host_us"] == {"on the current stream": 3.0, "on another": 30.0}
    assert found["host_most_us"] == {"on the current stream": 9.0, "on another": 90.0}


def test_a_quick_run_tries_every_section(results: dict[str, Any], peers: None) -> None:
    run(results, Effort(quick=True))
    assert set(results["sweeps"]) == set(scale.SWEEPS)
    assert {f["row"] for f in results["decode"]} == {row.name for row in work_table.DECODE}


@pytest.mark.parametrize("wrong", ["D7", "P2", "fixed:512", "512 x 4096", "softcap", "mask"])
def test_no_figures_on_red(wrong: str, results: dict[str, Any], peers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "wrong", wrong)
    with pytest.raises(SystemExit, match=r"relative error 5\.00e-01 against float64, more than 1e-03"):
        run(results, Effort(quick=True))


@pytest.mark.parametrize("name", scores.CHANGES)
def test_scores_change_as_the_calls_keywords_say(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "cp", np)
    row, rng = work_table.Row("two", (3, 20), (9, 40), 4, 4), np.random.default_rng(0)
    change = scores.CHANGES[name](row)
    keywords, first = dict(change.keywords), 0
    for b, (new, length) in enumerate(zip(row.seqlens_q, row.seqlens_k, strict=True)):
        q, k, v = (5 * rng.standard_normal((n, 4, 8)) for n in (new, length, length))
        if "mask" in keywords:
            keywords["mask"] = change.keywords["mask"][first : first + new * length].reshape(new, length)
            first += new * length
        expected = reference.attention(q, k, v, **keywords).out
        plain = reference.attention(q, k, v).out
        for j in range(new):
            seen = length - new + j + 1
            s = np.einsum("hd,khd->hk", q[j], k[:seen]) * 8**-0.5
            s = np.concatenate([change.scores(s[heads], heads, b, j) for heads in (slice(0, 2), slice(2, 4))])
            p = np.exp(s - s.max(axis=-1, keepdims=True))
            np.testing.assert_allclose(np.einsum("hk,khd->hd", p / p.sum(axis=-1, keepdims=True), v[:seen]), expected[j], atol=1e-6)
        assert np.abs(expected - plain).max() > 1e-2


def test_what_scores_change_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "cp", np)
    row = work_table.Row("one", (8,), (64,), 8, 8)
    assert scores.alibi(row).keywords["alibi_slopes"].tolist() == [2.0**-n for n in range(1, 9)]
    random, documents = (change(row).keywords["mask"].reshape(8, 64) for change in (scores.random_mask, scores.documents))
    assert random[np.arange(8), np.arange(56, 64)].all(), "its own key"
    assert 0.3 < random.mean() < 0.7
    assert np.array_equal(documents, np.broadcast_to(np.arange(64) >= 56, (8, 64)))


def test_a_run_has_the_sections_that_results_are_joined_by() -> None:
    from benchmarks import __main__, join

    assert list(__main__.SECTIONS) == list(join.SECTIONS)


@pytest.mark.parametrize("order", work_table.ORDERS)
def test_every_block_stands_once_in_a_table(order: str) -> None:
    table = work_table.block_table([3, 1, 2], order)
    taken = [*table[0], table[1, 0], *table[2, :2]]
    assert sorted(taken) == list(range(6))
    if order != "random":
        assert taken == {"in sequence": [0, 1, 2, 3, 4, 5], "in turns": [0, 3, 5, 1, 2, 4]}[order]


def test_sweeps_end_where_memory_does(results: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(Work):
        def __init__(self, row: Any, *given: Any, **keywords: Any) -> None:
            super().__init__(row, *given, **keywords)
            if sum(row.seqlens_k) > 1 << 20:
                raise cp.cuda.memory.OutOfMemoryError(1, 2, 3)

    monkeypatch.setattr(scale, "Workload", Small)
    monkeypatch.setattr(cp, "get_default_memory_pool", lambda: SimpleNamespace(free_all_blocks=lambda: None))
    scale.scale(results, Effort())
    assert max(f["x"] for f in results["sweeps"]["batch"]) == 256
    assert capsys.readouterr().out.count("does not fit") == 1
