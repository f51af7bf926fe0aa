"""`pagedattn explain` and `pagedattn tune --show`: what would be launched, and why; nothing is compiled."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.arguments import EXPLAIN


def test_explain(home: Path, run) -> None:
    """What a call would launch, without a GPU and without compiling: the kernel, its row of the tuning table, and whose that is."""
    status, out, err = run(*EXPLAIN, "--seqlens-k", "4096,100,300", "--seqlens-q", "1,1,200", "--kv-dtype", "int8")
    assert (status, err) == (0, "")
    assert out.splitlines()[:4] == [
        "on interpreter:sm_90: the SM80 family (mma.m16n8k16), for sm_90 has cp.async and mma.m16n8k16",
        "  decode_f16_kvi8_d64_h8_s32x2_w12_flat_sm90",
        "    2 CTAs of 384 threads, 129792 bytes of shared memory each",
        "    tile: warps=12, stages=2, cta_s=32; row 1 of 2 of the shipped table",
    ]
    steps = json.loads(run(*EXPLAIN, "--seqlens-k", "4096", "--json")[1])["steps"]
    assert [(s["kernel"], s["grid"]) for s in steps] == [("decode_f16_kvf16_d64_h8_s16x3_w12_flat_sm90", 2)]
    assert steps[0]["row"].endswith("; row 1 of 2 of the shipped table")
    assert "NumPy" in run(*EXPLAIN[:-1], "cpu", "--seqlens-k", "4096")[1]
    assert not home.exists(), "nothing is compiled"


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ((), "decode_f16_kvf16_d64_h8_s16x3_w12_flat_sm90"),
        (("--softcap", "30"), "decode_f16_kvf16_d64_h8_s16x3_w12_flat_general_sm90"),
        (("--alibi", "--num-splits", "3"), "decode_f16_kvf16_d64_h8_s16x3_w12_cut_general_sm90"),
        (("--num-splits", "fixed:32"), "decode_f16_kvf16_d64_h8_s16x3_w12_cut_sm90"),
        (("--mask",), "prefill_f16_kvf16_d64_q128_s64x2_w4_c2_parts_general_sm90"),
        (("--mask", "--num-splits", "fixed:32"), "prefill_f16_kvf16_d64_q128_s64x2_w4_c2_whole_general_sm90"),
    ],
)
def test_explain_with_options_of_the_call(options: tuple[str, ...], kernel: str, home: Path, run) -> None:
    steps = json.loads(run(*EXPLAIN, "--seqlens-k", "4096", "--json", *options)[1])["steps"]
    assert [step["kernel"] for step in steps] == [kernel]
    cut = dict(pairwise(options)).get("--num-splits")
    told = f"every sequence cut by num_splits={int(cut) if cut and cut.isdigit() else cut!r}"
    assert (told in steps[0]["reason"]) == (cut is not None and "--mask" not in options)


def test_explain_refuses_what_the_call_refuses(run) -> None:
    bad = (("--softcap", "-1"), ("--softcap", "nan"), ("--num-splits", "fixed:9"), ("--num-splits", "\u00b2"), ("--num-splits", "-3"))
    for options, text in ((x, f"`{x[0][2:].replace('-', '_')}` must be") for x in bad):
        status, out, err = run(*EXPLAIN, "--seqlens-k", "4096", *options)
        assert (status, out) == (1, "")
        assert text in err


def test_tune_shows_the_shipped_table(home: Path, run) -> None:
    status, out, _ = run("tune", "--show", "--device", "interpreter:sm_86")
    assert status == 0
    assert out.splitlines()[0] == "interpreter:sm_86: no GPU of its own, sm_86"
    assert "prefill d128 16-bit     q128_s64x2_w4_c1_p8     row 3 of 3 of the shipped table" in out.splitlines()
    lines = run("tune", "--show", "--device", "interpreter:sm_90")[1].splitlines()
    assert "prefill d128 16-bit     q256_s64x2_w8_c1_p8     row for long sequences of the shipped table" in lines
    some = run(
        "tune", "--show", "--device", "interpreter:sm_90", "--only", "decode", "--head-dim", "64", "--group", "4", "--kv-dtype", "int8"
    )
    assert [line.split("  ")[0] for line in some[1].splitlines()[1:]] == ["decode d64 h8 8-bit"]
    assert run("tune", "--show", "--device", "interpreter:sm_90", "--head-dim", "65")[0] == 1
    report = json.loads(run("tune", "--show", "--device", "interpreter:sm_70", "--json")[1])
    assert {row["op"] for row in report["rows"]} == {"decode", "prefill"}
    assert not home.exists()
