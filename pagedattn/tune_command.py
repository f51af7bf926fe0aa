"""`pagedattn tune`: its options, and what they ask for."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pagedattn.argument_types import names, numbers


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything but --json."""
    parser.add_argument("--only", type=names, metavar="OP,...", help="decode, prefill; default: both")
    parser.add_argument("--head-dim", type=numbers, metavar="D,...", help="default: all")
    parser.add_argument("--kv-dtype", type=names, metavar="T,...", help="what the cache stores: float16, int8, int4; default: all")
    parser.add_argument("--group", type=numbers, metavar="N,...", help="query heads of a KV head; default: 4, and 16 for decode")
    parser.add_argument("--quick", action="store_true", help="only the candidates nearest to the shipped row")
    parser.add_argument("--seconds", type=float, metavar="N", help="begin no further row after N seconds; default: measure all")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes that compile; default: one per core")
    parser.add_argument("--device", help="cuda or cuda:N; with --show others too; default: a GPU if one is usable")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="keep nothing")
    how.add_argument("--show", action="store_true", help="measure nothing: print the table in use, and where each row comes from")
    how.add_argument("--reset", action="store_true", help="measure nothing: remove what was kept for this GPU")


def run(arguments: argparse.Namespace) -> Any:
    """What is to be printed: text, or with --json plain data."""
    from pagedattn.tune import reset, table, tune

    if arguments.reset:
        path = reset(arguments.device)
        if arguments.json:
            return {"removed": None if path is None else str(path)}
        return "no rows were tuned for this GPU: nothing to remove" if path is None else f"{path} removed"
    wanted = {"ops": arguments.only, "head_dims": arguments.head_dim, "kv_dtypes": arguments.kv_dtype, "groups": arguments.group}
    if arguments.show:
        found: Any = table(arguments.device, **wanted)
    else:
        found = tune(
            arguments.device,
            **wanted,
            quick=arguments.quick,
            seconds=arguments.seconds,
            dry_run=arguments.dry_run,
            jobs=arguments.jobs,
            progress=sys.stderr.isatty() and not arguments.json,
        )
    return found.to_dict() if arguments.json else found
