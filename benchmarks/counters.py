"""What the hardware counts in one launch each of decode and prefill, by Nsight Compute: a table for NOTES.md.

python -m benchmarks.counters [--ncu PATH] [--csv FILE]: runs `ncu`, which must be allowed to read counters, on --launch.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "ComputeWorkloadAnalysis", "SchedulerStats", "WarpStateStats")
LAUNCHES = {  # name -> (row, kv_dtype)
    "16-bit decode": ("D3", None),
    "int8 decode": ("D3", "int8"),
    "int4 decode": ("D3", "int4"),
    "prefill": ("P1", None),
    "int4 prefill": ("P1", "int4"),
}
COUNTERS = {  # what it is -> the metric's name, and the factor from ncu's base unit
    "time, us": (r"^gpu__time_duration\.sum$", 1e-3),
    "DRAM throughput, % of peak": (r"^(gpu__dram_throughput|dram__throughput)\.avg\.pct_of_peak_sustained_elapsed$", 1.0),
    "DRAM read and written, TB/s": (r"^dram__bytes\.sum\.per_second$", 1e-12),
    "L2 hits, %": (r"^lts__t_sector_hit_rate\.pct$", 1.0),
    "issue slots used, %": (r"^smsp__issue_active\.avg\.pct_of_peak_sustained_active$", 1.0),
    "tensor pipe, %": (r"^sm__(pipe_tensor_cycles_active|inst_executed_pipe_tensor)\.avg\.pct_of_peak_sustained_active$", 1.0),
    "registers a thread": (r"^launch__registers_per_thread$", 1.0),
}
STALL = re.compile(r"^smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio$")


def rows(text: str) -> list[dict[str, str]]:
    """The launches in what `ncu --csv --page raw` prints: metric -> value. The first row holds units; what stands before is skipped."""
    at = text.find('"ID"')
    if at < 0:
        raise SystemExit(f"ncu must print a table of counters; it said:\n{text.strip()[-2000:]}")
    return list(csv.DictReader(io.StringIO(text[at:])))[1:]


def number(row: dict[str, str], pattern: str) -> float | None:
    """The largest value of the metrics whose names match; None: this GPU or this ncu has none."""
    found = [value.replace(",", "") for name, value in row.items() if name and re.search(pattern, name)]
    values = [float(value) for value in found if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", value)]
    return max(values) if values else None


def stalls(row: dict[str, str], most: int = 3) -> str:
    """The reasons that warps wait for longest, in cycles per issued instruction."""
    found = {match[1]: number(row, f"^{re.escape(name)}$") for name in row if name and (match := STALL.match(name))}
    longest = sorted(((value, name) for name, value in found.items() if value is not None and name != "selected"), reverse=True)[:most]
    return ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for value, name in longest) or "-"


def table(launches: dict[str, dict[str, str]]) -> str:
    """A column for each launch."""
    lines = [f"| | {' | '.join(launches)} |", "|---" * (len(launches) + 1) + "|"]
    for name, (pattern, factor) in COUNTERS.items():
        found = [number(row, pattern) for row in launches.values()]
        lines.append(f"| {name} | {' | '.join('-' if x is None else _text(x * factor) for x in found)} |")
    lines.append(f"| waits, cycles an instruction | {' | '.join(map(stalls, launches.values()))} |")
    return "\n".join(lines)


def _text(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.2g}" if x < 10 else f"{x:.0f}"


def launch() -> None:
    """One profiled launch of each, after two that are not."""
    import cupy as cp

    from benchmarks.work_table import DECODE, PREFILL, Workload, check

    for row, kv_dtype in LAUNCHES.values():
        work = Workload(next(r for r in (*DECODE, *PREFILL) if r.name == row), kv_dtype=kv_dtype)
        check(work, str(kv_dtype))
        work.call()
        cp.cuda.Device().synchronize()
        cp.cuda.profiler.start()
        work.call()
        cp.cuda.Device().synchronize()
        cp.cuda.profiler.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ncu", default=shutil.which("ncu"), help="where ncu is; default: on the PATH")
    parser.add_argument("--csv", type=Path, help="keep everything that ncu printed")
    parser.add_argument("--launch", action="store_true", help="only launch: what ncu runs")
    arguments = parser.parse_args()
    if arguments.launch:
        launch()
        return
    if not arguments.ncu:
        raise SystemExit("ncu must be on the PATH, or named by --ncu; found none. It comes with the CUDA toolkit: Nsight Compute.")
    options = [word for name in SECTIONS for word in ("--section", name)]
    options += ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
    command = [arguments.ncu, *options, sys.executable, "-m", "benchmarks.counters", "--launch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if arguments.csv:
        arguments.csv.write_text(done.stdout + done.stderr)
    found = rows(done.stdout or done.stderr)
    if len(found) != len(LAUNCHES):
        raise SystemExit(f"ncu must have seen {len(LAUNCHES)} launches; it saw {len(found)}: {[row.get('Kernel Name') for row in found]}")
    print(table(dict(zip(LAUNCHES, found, strict=True))))


if __name__ == "__main__":
    main()
