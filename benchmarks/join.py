"""One result of several runs: python -m benchmarks.join OUT FILE...; a later file's sections take the place of an earlier file's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import summary

SECTIONS = {
    "build": ("compile_s", "store_hit_ms"),
    "host": ("host_us", "import_ms"),
    "decode": ("decode",),
    "fused": ("fused",),
    "splits": ("splits",),
    "prefill": ("prefill",),
    "peers": ("peers", "peers_missing"),
    "scale": ("sweeps",),
}
OF_RUN = ("commit", "read_ceiling_tb_per_s", "matmul_tflops")  # differs from run to run, as the card may


def joined(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first result with the later ones' sections; `runs` says which section is of which run, and what that run's ceilings were.

    >>> one, two = ({"commit": c, "device": "H200", "quick": False, "read_ceiling_tb_per_s": t} for c, t in (("a", 4.6), ("b", 4.5)))
    >>> both = joined([{**one, "decode": [], "import_ms": 3}, {**two, "decode": []}])
    >>> [(run["commit"], run["sections"]) for run in both["runs"]]
    [('a', ['host']), ('b', ['decode'])]
    """
    whole = dict(results[0])
    taken: dict[str, int] = {}
    for i, result in enumerate(results):
        if (result["device"], result["quick"]) != (whole["device"], False):
            raise SystemExit(
                f"results to join must be of one kind of device and not quick; got {result['device']}, quick: {result['quick']}"
            )
        for section, keys in SECTIONS.items():
            if any(key in result for key in keys):
                whole.update({key: result[key] for key in keys if key in result})
                taken[section] = i
    whole["runs"] = [
        {**{key: result.get(key) for key in OF_RUN}, "sections": [section for section, of in taken.items() if of == i]}
        for i, result in enumerate(results)
    ]
    whole["summary"] = summary.of(whole)
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    arguments = parser.parse_args()
    whole = joined([json.loads(file.read_text(encoding="utf-8")) for file in arguments.files])
    arguments.out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
