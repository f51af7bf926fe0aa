"""Kernel: one compiled spec, with its source, machine code and what the assembler says that it takes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from pagedattn.errors import ArgumentError
from pagedattn.params import EVICT_NORMAL, STRUCT_BYTES, AttentionParams
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.nvrtc import Compiled
    from pagedattn.spec import KernelSpec


class Usage(NamedTuple):
    """What ptxas reports: registers of a thread; bytes of spill stores and loads, of stack, and of static shared memory."""

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


def usage(log: str) -> Usage:
    """Read ptxas's report (--ptxas-options=-v). Functions that were not inlined count: registers by their maximum, bytes by their sum.

    >>> usage("ptxas . 8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\\nptxas info : Used 40 registers, 256 bytes smem")
    Usage(registers=40, spill_bytes=8, stack_bytes=8, shared_bytes=256)
    """

    def numbers(pattern: str) -> list[int]:
        return [int(n) for n in re.findall(rf"(\d+) {pattern}", log)]

    return Usage(
        max(numbers("registers"), default=0),
        sum(numbers("bytes spill stores")) + sum(numbers("bytes spill loads")),
        sum(numbers("bytes stack frame")),
        sum(numbers("bytes smem")),
    )


@dataclass(frozen=True, eq=False)
class Kernel:
    """A compiled spec; no GPU is needed to make one, and one to call it.

    Attributes
    ----------
    spec : KernelSpec
        What it was made from.
    source : str
        CUDA C++.
    compiled : Compiled
        What the compiler made of it.
    origin : str
        "store": read from the store. "compiled": compiled by this process and stored. "memory": compiled, and kept by this process only.
    ptx, log : str
        PTX, and what the compiler said.
    cubin : bytes
        Machine code (ELF) for `spec.arch`.
    seconds : float
        What compiling took, whenever that was.
    registers : int
        Of a thread.
    spill_bytes, stack_bytes : int
        Of a thread, in local memory.
    static_shared_bytes, shared_bytes : int
        Of a CTA: declared in the source, and in all with what the launch asks for.
    """

    launcher: ClassVar[Callable[[Kernel, bytes, int, Any], None]]  # the devices know how, and this module knows none: they put it here

    spec: KernelSpec
    source: str
    compiled: Compiled
    origin: str

    def __call__(self, params: Any, grid: int, stream: Any = None) -> None:
        """Launch it on the current GPU: the level below every operation. Nothing is checked but the struct's size, that a kernel which
        is not general is not asked for what it leaves out, and that factors and parts are there which it divides by.

        Parameters
        ----------
        params : record of dtype `pagedattn.AttentionParams`, or its bytes
            Addresses, strides, sizes and options, by name; what the kernel does not read stays 0. An `l2_policy` of 0 is taken for
            `params.EVICT_NORMAL`.
        grid : int
            CTAs; `pagedattn.explain` says how many a call takes.
        stream : optional
            None: the current one.

        Raises
        ------
        ArgumentError
            No struct, one of another size, that asks for what `spec.granted` rules out or lacks a factor or parts, or a grid below 1.
        DeviceFault
            The driver refuses the launch.
        """
        if isinstance(params, (np.void, np.ndarray)):
            packed = params.tobytes()
        elif isinstance(params, (bytes, bytearray, memoryview)):
            packed = bytes(params)
        else:
            raise ArgumentError(f"`params` must be a record of pagedattn.AttentionParams, or its bytes; got {type(params).__name__}.")
        if len(packed) != STRUCT_BYTES:
            raise ArgumentError(f"`params` must be one AttentionParams, {STRUCT_BYTES} bytes; got {len(packed)}.")
        asked = np.frombuffer(packed, AttentionParams)[0]
        for name, value in self.spec.granted.items():
            if asked[name] > value:  # 0 is as good as 1
                raise ArgumentError(
                    f"`params` of {self.name} must have {name} {value}, which its code takes for granted; got {asked[name]}. "
                    f"Compile its spec with {self._served_by(name)}."
                )
        if self.spec.splits == "parts" and asked["num_splits"] < 1:
            raise ArgumentError(f"`params` of {self.name} must have num_splits 1 or more, a query tile's parts; got {asked['num_splits']}.")
        op = self.spec.op
        divides = {
            "packs_factor": op == "decode" and asked["head_packs"] > 1,
            "cp_factor": op in ("decode", "prefill", "varlen") and asked["cp_size"] > 1,
            "splits_factor": self.spec.splits == "cut",
        }
        for name, needed in divides.items():
            if needed and not asked[name]:
                raise ArgumentError(f"`params` of {self.name} must have {name} and its shift, by which the kernel divides; got 0.")
        if not 1 <= (whole(grid) or 0) < 2**31:
            raise ArgumentError(f"`grid` must be a positive integer below 2**31; got {grid!r}.")
        if op == "decode" and not asked["l2_policy"]:  # no policy: that of a copy without one
            filled = bytearray(packed)
            np.frombuffer(filled, AttentionParams)["l2_policy"] = EVICT_NORMAL
            packed = bytes(filled)
        Kernel.launcher(self, packed, int(grid), stream)

    def _served_by(self, granted: str) -> str:
        """What a spec must have so that its code reads a parameter which this one's takes for granted."""
        if self.spec.op == "decode":
            return "general=True and fused=False"
        if granted == "adjust":
            return "general=True"
        return "op='prefill'" if self.spec.op == "varlen" and granted != "num_splits" else "splits='parts'"

    @property
    def name(self) -> str:
        """The spec's name, which is the entry point's."""
        return self.spec.name

    @property
    def cubin(self) -> bytes:
        return self.compiled.cubin

    @cached_property
    def ptx(self) -> str:
        return self.compiled.ptx.decode()

    @property
    def log(self) -> str:
        return self.compiled.log

    @property
    def seconds(self) -> float:
        return self.compiled.seconds

    @property
    def registers(self) -> int:
        return self._usage.registers

    @property
    def spill_bytes(self) -> int:
        return self._usage.spill_bytes

    @property
    def stack_bytes(self) -> int:
        return self._usage.stack_bytes

    @property
    def static_shared_bytes(self) -> int:
        return self._usage.shared_bytes

    @property
    def shared_bytes(self) -> int:
        return self.static_shared_bytes + self.spec.shared_bytes

    @cached_property
    def _usage(self) -> Usage:
        return usage(self.log)

    def __repr__(self) -> str:
        spills = f", {self.spill_bytes} bytes spilled" if self.spill_bytes else ""
        sizes = f"{self.registers} registers{spills}, {self.shared_bytes} bytes shared, {len(self.cubin)} bytes of code"
        return f"<Kernel {self.name}: {sizes}, {self.origin}>"

    def _repr_html_(self) -> str:
        rows = {
            "target": self.spec.arch,
            "threads of a CTA": self.spec.threads,
            "registers of a thread": self.registers,
            "spilled / stack": f"{self.spill_bytes} / {self.stack_bytes} bytes",
            "shared memory of a CTA": f"{self.static_shared_bytes} static + {self.spec.shared_bytes} dynamic bytes",
            "code": f"{len(self.cubin)} bytes, {self.source.count(chr(10))} lines of CUDA, {self.ptx.count(chr(10))} of PTX",
            "compiled in": f"{self.seconds:.2f} s ({self.origin})",
        }
        from html import escape  # here and not above: `import pagedattn` stays quick

        body = "".join(f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        return f"<table><caption><code>{escape(self.name)}</code></caption>{body}</table>"
