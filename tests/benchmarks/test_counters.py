"""Reading what Nsight Compute prints."""

from __future__ import annotations

import sys

import pytest

from benchmarks import counters

PRINTED = """==PROF== Connected to process 7
D3 None
"ID","Kernel Name","gpu__time_duration.sum","dram__throughput.avg.pct_of_peak_sustained_elapsed","dram__bytes.sum.per_second",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio","smsp__average_warps_issue_stalled_wait_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_selected_per_issue_active.ratio","sm__pipe_tensor_cycles_active.max.pct_of_peak_sustained_active"
"","","ns","%","byte/s","inst","inst","inst","%"
"0","decode","251,000","89.25","4300000000000","12.24","2.0","30.0","99"
"1","prefill","1412000","3.0","nan","0.2","n/a","1","99"
"""


def test_a_table_of_launches() -> None:
    first, second = counters.rows(PRINTED)
    assert counters.table({"decode": first, "prefill": second}).splitlines() == [
        "| | decode | prefill |",
        "|---|---|---|",
        "| time, us | 251 | 1,412 |",
        "| DRAM throughput, % of peak | 89 | 3 |",
        "| DRAM read and written, TB/s | 4.3 | - |",
        "| L2 hits, % | - | - |",
        "| issue slots used, % | - | - |",
        "| tensor pipe, % | - | - |",
        "| registers a thread | - | - |",
        "| waits, cycles an instruction | long scoreboard 12.2, wait 2.0 | long scoreboard 0.2 |",
    ]


def test_what_ncu_says_instead_of_counters_is_shown() -> None:
    with pytest.raises(SystemExit, match="ERR_NVGPUCTRPERM"):
        counters.rows("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission")


def test_without_ncu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters.shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["counters"])
    with pytest.raises(SystemExit, match="ncu must be on the PATH"):
        counters.main()
