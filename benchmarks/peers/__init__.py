"""Other attention kernels: what they are asked, and which of them are here. None is required; what is not installed is said so."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from benchmarks.work_table import Workload

MODULES = ("sdpa", "flashinfer", "flash_attn")  # of this folder; one that does not import is not installed


class UnfitError(Exception):
    """A peer that cannot do a row; the text says why."""


class Form(NamedTuple):
    """One way to ask a peer for a row: `call(i)` computes layer i, `rows` makes (tokens, heads, head_dim) of what it returns."""

    name: str
    call: Callable[[int], Any]
    rows: Callable[[Any], Any]


class Peer(NamedTuple):
    """Something that computes attention; `forms(work)` are the ways to ask it, of which the fastest counts. `sm80`: its kernels use
    nothing newer than cp.async and mma.sync.
    """

    name: str
    version: str
    sm80: bool
    forms: Callable[[Workload], list[Form]]


def available() -> tuple[list[Peer], dict[str, str]]:
    """The peers of modules that import, and for the others why not."""
    found, missing = [], {}
    for name in MODULES:
        try:
            found += import_module(f"{__name__}.{name}").peers()
        except ImportError as error:
            missing[name] = f"not installed: {error}"
    return found, missing
