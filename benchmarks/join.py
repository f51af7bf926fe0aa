"""One result of several runs: python -m benchmarks.join OUT FILE...; a later file's sections take the place of an earlier file's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import summary

SECTIONS = {
    "build": ("compile", "store_hit_ms"),
    "host": ("host_us", "host_most_us", "import_ms"),
    "decode": ("decode",),
    "fused": ("fused",),
    "splits": ("splits",),
    "placement": ("placement",),
    "prefill": ("prefill",),
    "scores": ("scores",),
    "peers": ("peers", "peers_missing"),
    "scale": ("sweeps",),
}
OF_RUN = ("commit", "driver", "cupy", "nvrtc", "torch", "read_ceiling_tb_per_s", "matmul_tflops")  # may differ from run to run


def runs_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a result is of: versions, ceilings and sections of each. One, unless it was joined."""
    if "runs" in result:
        return list(result["runs"])
    sections = [section for section, keys in SECTIONS.items() if any(key in result for key in keys)]
    return [{**{key: result.get(key) for key in OF_RUN}, "sections": sections}]


def run_of(result: dict[str, Any], section: str) -> dict[str, Any]:
    """The run that measured a section."""
    return next(run for run in runs_of(result) if section in run["sections"])


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first result with the later ones' sections; `runs` says which section is of which run, and what that run's ceilings were.

    >>> one, two = ({"commit": c, "device": "H200", "quick": False, "read_ceiling_tb_per_s": t} for c, t in (("a", 4.6), ("b", 4.5)))
    >>> both = joined([{**one, "decode": [], "import_ms": 3}, {**two, "decode": []}])
    >>> [(run["commit"], run["sections"]) for run in both["runs"]]
    [('a', ['host']), ('b', ['decode'])]
    """
    whole = dict(results[0])
    taken: dict[str, dict[str, Any]] = {}
    for result in results:
        if (result["device"], result["quick"]) != (whole["device"], False):
            raise SystemExit(
                f"results to join must be of one kind of device and not quick; got {result['device']}, quick: {result['quick']}"
            )
        for run in runs_of(result):
            for section in run["sections"]:
                whole.update({key: result[key] for key in SECTIONS[section] if key in result})
                taken[section] = {key: run.get(key) for key in OF_RUN}
    runs: list[dict[str, Any]] = []
    for section in (name for name in SECTIONS if name in taken):
        run = next((known for known in runs if {key: known[key] for key in OF_RUN} == taken[section]), None)
        if run is None:
            run = {**taken[section], "sections": []}
            runs.append(run)
        run["sections"].append(section)
    whole["runs"] = runs
    whole["summary"] = summary.of(whole)
    return whole


def loaded(file: Path, keys: Sequence[str] = ("device",)) -> dict[str, Any]:
    """A result, which has one of the keys, or the end of the program with what is wrong with the file."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{file} must be a result of `python -m benchmarks --json FILE`: {error}") from error
    if not isinstance(result, dict) or not any(key in result for key in keys):
        raise SystemExit(f"{file} must be a result of `python -m benchmarks --json FILE`; it names no device.")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    whole = joined([loaded(file) for file in arguments.files])
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
