"""An interpreter of PTX in NumPy: the very kernels that a GPU runs, with a sanitizer's checks and a profiler's counts."""

from __future__ import annotations

from pagedattn.ptx.code import Code
from pagedattn.ptx.counts import Counts
from pagedattn.ptx.faults import Fault, Line, ParseError, UnknownInstruction
from pagedattn.ptx.machine import launch, run
from pagedattn.ptx.memory import GlobalMemory
from pagedattn.ptx.parse import parse
from pagedattn.ptx.program import Program

__all__ = ["Code", "Counts", "Fault", "GlobalMemory", "Line", "ParseError", "Program", "UnknownInstruction", "launch", "parse", "run"]
