"""What is made of a result: tables, the summary of goals, plots. A small result stands in for a GPU's."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest

from benchmarks import join, roofline, summary, tables

KV = ("", " int8", " int4")


def result() -> dict[str, Any]:
    """Every part that a run writes, with round figures."""
    decode = [
        {"row": row, "variant": variant, "events_us": 50.0, "graph_us": us, "share": share}
        for variant in (*tables.VARIANTS, "d128 b16 float16 int4", summary.PLAIN)
        for row, us, share in (("D3", 240.0, 0.95), ("D6", 170.0, 0.9), ("D7", 190.0, 0.91))
    ]
    prefill = [
        {"row": row, "variant": v, "us": 1000.0, "tflops": rate} for v in tables.VARIANTS for row, rate in (("P1", 375.0), ("P4", 350.0))
    ]
    ours = {"peer": "pagedattn", "version": "1", "sm80": True, "form": "paged"}
    flash = {"peer": "SDPA flash", "version": "PyTorch 3", "sm80": True, "form": "enable_gqa"}
    cudnn = {"peer": "SDPA cuDNN", "version": "PyTorch 3, cuDNN 9", "sm80": False, "form": "enable_gqa"}
    peers = [
        {**ours, "row": "D3", "head_dim": 128, "us": 240.0, "share": 0.95},
        {**flash, "row": "D3", "head_dim": 128, "us": 360.0, "share": 0.6, "ratio": 1.5},
        {**flash, "row": "D6", "head_dim": 128, "why": "ragged"},
        {**ours, "row": "P1", "head_dim": 64, "us": 100.0, "tflops": 300.0},
        {**flash, "row": "P1", "head_dim": 64, "us": 120.0, "tflops": 250.0, "ratio": 1.2},
        {**cudnn, "row": "P1", "head_dim": 64, "us": 60.0, "tflops": 500.0, "ratio": 0.6},
    ]
    sizes = {"batch": (1, 512), "context": (128, 1 << 20), "head_dim": (64, 256), "group": (1, 32), "block_len": (16, 256)}
    sweeps = {
        name: [{"x": n, "kv": kv, "us": 20.0 * n, "floor_us": 10.0 * n} for n in x for kv in ("float16", "int8", "int4")]
        for name, x in sizes.items()
    }
    sweeps["new tokens"] = [{"x": n, "kv": kv, "us": 9.0, "tflops": 300.0} for n in (128, 8192) for kv in ("float16", "int8", "int4")]
    return {
        "device": "A GPU",
        "driver": "1.2",
        "cupy": "14",
        "nvrtc": "13.0",
        "commit": "0123456789abcdef",
        "read_ceiling_tb_per_s": 4.6,
        "matmul_tflops": 700.0,
        "quick": False,
        "decode": decode,
        "prefill": prefill,
        "fused": [{"row": "D1", "kv_dtype": kv, "decode_us": 40.0, "two_us": 42.5, "one_us": 40.1} for kv in ("float16", "int8", "int4")],
        "splits": [{"row": "D3", "variant": f"{summary.PLAIN}{kv}", "keys": 512, "us": 300.0, "balanced_us": 240.0} for kv in KV],
        "placement": [
            {"row": "D3", "variant": summary.PLAIN, "layers": n, "order": order, "us": 240.0 + n}
            for n in (1, 32)
            for order in ("random", "in sequence")
        ],
        "scores": [
            {"row": row, "variant": f"{summary.PLAIN}{kv}", "change": change, "us": us, "plain_us": 1000.0}
            for kv in KV
            for row, change, us in (("D3", "softcap", 1100.0), ("P1", "mask, at random", 1300.0), ("P1", "softcap", 1400.0))
        ],
        "peers": peers,
        "peers_missing": {"flashinfer": "not installed"},
        "host_us": dict.fromkeys(tables.HOST, 4.0),
        "host_most_us": dict.fromkeys(tables.HOST, 6.0),
        "compile": [
            {"kernel": "one_line", "least_s": 0.03, "most_s": 0.05},
            *(
                {"op": op, "splits": splits, "head_dim": d, "kv_dtype": kv, "general": False, "least_s": d / 400, "most_s": 0.9}
                for op, splits in (("decode", "flat"), ("decode", "cut"), ("prefill", "whole"))
                for d, kv in ((256, "float16"), (64, "float16"), (128, "int8"))
            ),
            {"op": "decode", "splits": "cut", "head_dim": 64, "kv_dtype": "float16", "general": True, "least_s": 0.7, "most_s": 0.8},
        ],
        "store_hit_ms": 1.5,
        "sweeps": sweeps,
    }


def lines(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in summary.of(results)}


@pytest.mark.parametrize("part", tables.PARTS)
def test_a_page_is_filled(part: str) -> None:
    text = tables.PARTS[part](result())
    page = f"before\n<!-- figures: {part} -->\nwhat stood there\n<!-- end -->\nafter\n"
    done = tables.filled(page, result())
    assert done == f"before\n<!-- figures: {part} -->\n{text}\n<!-- end -->\nafter\n"
    assert tables.filled(done, result()) == done


def test_tables_say_what_was_measured() -> None:
    assert "| 16 bits, blocks of 16 | 240 (0.95) | 170 (0.90) | 190 (0.91) |" in tables.decode(result())
    assert "| SDPA flash (PyTorch 3) | 360 (1.50) |" in tables.decode_peers(result())
    assert "| SDPA cuDNN (PyTorch 3, cuDNN 9) | 500 |" in tables.prefill_peers(result())
    assert "P1, head_dim 64" in tables.prefill_peers(result())
    assert "not measured: flashinfer." in tables.prefill_peers(result())
    assert '| int8, `"fixed:512"` | 1.25 |' in tables.splits(result())
    assert "| 16 bits | 40.0 / 42.5 / 40.1 |" in tables.fused(result())
    assert "| launch of a captured step of 32 layers | 4.0 | 6.0 |" in tables.host(result())
    assert tables.compiled(result()).splitlines() == [
        "| to compile, s (most) | head_dim 64 | head_dim 128 | head_dim 256 |",
        "|---|---|---|---|",
        "| decode | 0.16 (0.90) | - | 0.64 (0.90) |",
        "| decode, int8 | - | 0.32 (0.90) | - |",
        "| decode in cuts | 0.16 (0.90) | - | 0.64 (0.90) |",
        "| decode in cuts, int8 | - | 0.32 (0.90) | - |",
        "| prefill | 0.16 (0.90) | - | 0.64 (0.90) |",
        "| prefill, int8 | - | 0.32 (0.90) | - |",
        "| decode in cuts, general | 0.70 (0.80) | - | - |",
    ]
    assert "| D3, us of a layer | random | in sequence |" in tables.placement(result())
    assert "| 16 bits, 32 layers | 272.0 | 272.0 |" in tables.placement(result())
    assert tables.scores(result()).splitlines() == [
        "| time, as a multiple of the same call's without it | 16 bits, head_dim 128 | int8 | int4 |",
        "|---|---|---|---|",
        "| P1, mask, at random | 1.30 | 1.30 | 1.30 |",
        "| P1, softcap | 1.40 | 1.40 | 1.40 |",
        "| D3, softcap | 1.10 | 1.10 | 1.10 |",
    ]
    assert "commit 0123456, driver 1.2, CuPy 14, NVRTC 13.0; the card read at 4.60 TB/s" in tables.device(result())


def test_results_of_several_runs_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = [{**figure, "graph_us": 200.0} for figure in result()["decode"]]
    later = {
        **{k: v for k, v in result().items() if not isinstance(v, list | dict) and k != "store_hit_ms"},
        "commit": "fed",
        "read_ceiling_tb_per_s": 4.5,
        "decode": decode,
    }
    files = [tmp_path / "out.json", tmp_path / "all.json", tmp_path / "decode.json"]
    for file, content in zip(files[1:], (result(), later), strict=True):
        file.write_text(json.dumps(content))
    monkeypatch.setattr(sys, "argv", ["join", *map(str, files)])
    join.main()
    whole = json.loads(files[0].read_text())
    assert "| int4 | 200 (0.95) |" in tables.decode(whole)
    assert tables.prefill(whole) == tables.prefill(result())
    assert "- decode: commit fed, driver 1.2, CuPy 14, NVRTC 13.0; the card read at 4.50 TB/s" in tables.device(whole)
    assert "- build, host, fused, splits, placement, prefill, scores, peers, scale: commit 0123456, driver" in tables.device(whole)
    assert whole["summary"] == summary.of(whole)
    host = {**{k: v for k, v in later.items() if k not in ("decode", "read_ceiling_tb_per_s", "matmul_tflops")}, "host_us": {}}
    assert "\n- host: commit fed, driver 1.2, CuPy 14, NVRTC 13.0" in tables.device(join.joined([result(), host]))
    again = join.joined([result(), {**host, "host_us": {"a": 1.0}, "host_most_us": {"a": 2.0}, "compile": [], "store_hit_ms": 9.0}])
    assert (again["host_us"], again["host_most_us"], again["compile"], again["store_hit_ms"]) == ({"a": 1.0}, {"a": 2.0}, [], 9.0)
    for other in ({**later, "device": "Another GPU"}, {**later, "quick": True}):
        with pytest.raises(SystemExit, match="one kind of device and not quick"):
            join.joined([result(), other])


def test_quick_figures_are_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "r.json", tmp_path / "page.md"
    page.write_text("<!-- figures: host -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["tables", str(file), "--into", str(page)])
    file.write_text(json.dumps({**result(), "quick": True}))
    with pytest.raises(SystemExit, match="not to be quoted"):
        tables.main()
    assert page.read_text() == "<!-- figures: host -->\n<!-- end -->\n"
    file.write_text(json.dumps(result()))
    tables.main()
    assert "| 4.0 |" in page.read_text()


def test_a_page_without_places_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, page = tmp_path / "r.json", tmp_path / "page.md"
    file.write_text(json.dumps(result()))
    page.write_text("no figures\n")
    monkeypatch.setattr(sys, "argv", ["tables", str(file), "--into", str(page)])
    with pytest.raises(SystemExit, match="must have places for figures"):
        tables.main()
    assert page.read_text() == "no figures\n"


def test_a_table_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "context_parallel_h200.json"
    monkeypatch.setattr(sys, "argv", ["tables", str(file)])
    tables.main()
    assert capsys.readouterr().out.strip() == tables.context_parallel_table(json.loads(file.read_text()))


def test_of_two_passes_the_first_is_quoted() -> None:
    results = result()
    again = [{**figure, "graph_us": 999.0} for figure in results["decode"] if figure["variant"] == summary.PLAIN]
    assert tables.decode({**results, "decode": [*results["decode"], *again]}) == tables.decode(results)


def test_summary_holds_goals_against_figures() -> None:
    found = lines(result())
    assert all(line["met"] in (None, True) for line in found.values()), found
    skewed = found["skewed (D7), share of the ceiling to D3's, d128 b64 float16"]
    assert (round(skewed["value"], 3), skewed["limit"], skewed["met"]) == (0.958, 0.92, True)
    assert found["fixed:512 to balanced, D3, d128 b64 float16 int4"]["value"] == 1.25
    assert found["P1 head_dim 64: speed to the best sm_80-class peer, SDPA flash"]["value"] == pytest.approx(1.2)
    assert found["P1 head_dim 64: speed to the best peer of all, SDPA cuDNN"]["met"] is None


@pytest.mark.parametrize(
    ("part", "find", "change", "missed"),
    [
        ("decode", {"row": "D7", "variant": summary.PLAIN}, {"share": 0.8}, "skewed (D7)"),
        ("decode", {"row": "D6", "variant": f"{summary.PLAIN} int4"}, {"share": 0.8}, "ragged (D6)"),
        ("decode", {"row": "D3", "variant": "d128 b16 float16"}, {"graph_us": 260.0}, "blocks of 16"),
        ("peers", {"peer": "SDPA flash", "row": "P1"}, {"us": 90.0}, "sm_80-class peer"),
    ],
)
def test_summary_says_what_is_missed(part: str, find: dict[str, Any], change: dict[str, Any], missed: str) -> None:
    results = copy.deepcopy(result())
    hit = [figure for figure in results[part] if find.items() <= figure.items()]
    assert hit
    for figure in hit:
        figure.update(change)
    wrong = [line for line in summary.of(results) if line["met"] is False]
    assert len(wrong) == 1
    assert missed in wrong[0]["name"]
    assert summary.table(wrong).endswith("MISSED")


def test_host_goals() -> None:
    results = result()
    results["host_us"] = {"paged_attention, out given": 13.0, summary.STEP: 6.0}
    assert [line["met"] for line in summary.of(results) if line["name"].endswith("us of the host")] == [False, False]


def test_build_goals() -> None:
    results = result()
    results["compile"][2]["least_s"] = 0.81
    results["store_hit_ms"] = 2.1
    found = {name: (line["value"], line["met"]) for name, line in lines(results).items() if line["limit"] in (0.8, 2.0) and line["most"]}
    assert found == {
        "to compile a kernel, at the longest, s: 16 bits": (0.81, False),
        "to compile a kernel, at the longest, s: 8 and 4 bits": (0.32, True),
        "to compile a kernel, at the longest, s: general, 16 bits": (0.7, True),
        "to find a kernel in the store, ms": (2.1, False),
    }


def test_summary_of_a_part_of_the_benchmark() -> None:
    assert summary.of({}) == []


def test_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    from benchmarks import plots

    files = plots.save(result(), tmp_path / "a")
    assert [f.name for f in files] == ["size.svg", "shape.svg", "roofline.svg"]
    for file, words in zip(
        files, (("1M", "TFLOP/s, sustained"), ("tokens per block",), ("SDPA flash", "D7", "P4", "700 TFLOP/s")), strict=True
    ):
        minidom.parse(str(file))
        text = file.read_text()
        assert all(word in text for word in (*words, "A GPU")), file
        assert len(text) < 60_000
    again = plots.save(result(), tmp_path / "b")
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files], "the same figures make the same bytes"
    assert plots.save({"device": "A GPU"}, tmp_path / "c") == []


def test_committed_plots_are_small() -> None:
    folder = Path(__file__).resolve().parents[2] / "docs" / "plots"
    found = {f.name: f.stat().st_size for f in folder.glob("*.svg")}
    assert set(found) == {"size.svg", "shape.svg", "roofline.svg"}
    assert max(found.values()) < 60_000


def test_intensity_by_hand() -> None:
    """P2: 8 prompts of 1,024; a prompt's K and V are 4 MiB, q and the output 16 MiB."""
    pairs = 1024 * 1025 // 2
    assert roofline.intensity("P2") == pytest.approx(4 * 32 * 128 * pairs / (20 << 20))
