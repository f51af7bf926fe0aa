"""Code: a program made ready to run; its blocks become Python functions when they are first reached."""

from __future__ import annotations

from typing import Any

import numpy as np

from pagedattn.ptx import blocks as basic
from pagedattn.ptx import isa
from pagedattn.ptx.accesses import interleave
from pagedattn.ptx.parse import parse
from pagedattn.ptx.program import Instruction, Program, Symbol
from pagedattn.ptx.shared import START


class Code:
    """A program made ready to run; blocks become Python functions when they are first reached. Keep it: launches share it.

    Examples
    --------
    >>> from pagedattn.ptx import GlobalMemory, launch
    >>> code = Code('''.version 8.0
    ... .target sm_80
    ... .visible .entry f(.param .u64 out) {
    ...     .reg .b32 %r<2>;
    ...     .reg .b64 %rd<4>;
    ...     ld.param.u64 %rd1, [out];
    ...     mov.u32 %r1, %tid.x;
    ...     mul.wide.u32 %rd2, %r1, 4;
    ...     add.s64 %rd3, %rd1, %rd2;
    ...     st.global.u32 [%rd3], %r1;
    ...     ret;
    ... }''')
    >>> out = np.zeros(32, np.uint32)
    >>> launch(code, 1, 32, int(out.ctypes.data).to_bytes(8, "little"), GlobalMemory({"out": out})).thread_instructions
    192
    >>> int(out.sum())
    496
    """

    def __init__(self, program: Program | str, entry: str | None = None) -> None:
        self.program = parse(program, entry) if isinstance(program, str) else program
        self.blocks = basic.split(self.program)
        self.coder = isa.Coder(self.program)
        self.coder.names.update(guarded=basic.guarded, interleave=interleave)
        self.places = {i.line: ", inlined at ".join(map(str, i.lines)) for i in self.program.instructions if i.lines}
        self._place_variables()

    def _place_variables(self) -> None:
        """Offsets of variables: static shared memory, then the launch's own; local memory; module variables."""
        self.symbols: dict[str, int] = {}
        self.shared_bytes = self.local_bytes = 0
        module: dict[str, tuple[int, bytes]] = {}
        size = 0
        dynamic: list[tuple[str, int]] = []
        for name, v in self.program.variables.items():
            if v.space == "shared" and v.size < 0:
                dynamic.append((name, v.align))
            elif v.space == "shared":
                self.shared_bytes = _up(self.shared_bytes, v.align)
                self.symbols[name] = START + self.shared_bytes
                self.shared_bytes += v.size
            elif v.space == "local":
                self.local_bytes = _up(self.local_bytes, v.align)
                self.symbols[name] = self.local_bytes
                self.local_bytes += v.size
            else:
                size = _up(size, v.align)
                module[name] = size, v.data
                size += v.size
        narrow = any(
            i.op[0] in ("ld", "st") and "param" not in i.op and isa.TYPES.get(i.op[-1]) in ("u1", "u2", "i1", "i2")
            for i in self.program.instructions
        )
        self.fine_bytes = self.shared_bytes if narrow else 0  # of shared memory, that are looked at one by one
        for name, align in dynamic:
            self.shared_bytes = _up(self.shared_bytes, align)
            self.symbols[name] = START + self.shared_bytes
        for name, (offset, _) in self.program.params.items():
            self.symbols[name] = offset
        used = {x.name for i in self.program.instructions for x in _symbols(i)}
        self.module = np.zeros(_up(size, 16) if used & module.keys() else 0, np.uint8)
        for name, (at, data) in module.items():
            if self.module.size:
                self.module[at : at + len(data)] = np.frombuffer(data, np.uint8)
                self.symbols[name] = self.module.ctypes.data + at

    def function(self, b: basic.Block) -> Any:
        if b.run is None:
            b.run = basic.compile_block(self.program, b, self.coder)
        return b.run


def _up(n: int, align: int) -> int:
    return (n + align - 1) // align * align


def _symbols(i: Instruction) -> list[Any]:
    found = []
    for x in i.operands:
        base = getattr(x, "base", x)
        if isinstance(base, Symbol):
            found.append(base)
    return found
