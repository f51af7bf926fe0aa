"""Program: one entry point of PTX as data: registers, variables, parameters, instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from pagedattn.ptx.faults import Line

# PTX ISA 5.2: fundamental types -> how the machine holds a register of it (a NumPy type)
KINDS = {
    "pred": "?",
    "b8": "u1",
    "u8": "u1",
    "s8": "u1",
    "b16": "u2",
    "u16": "u2",
    "s16": "u2",
    "f16": "u2",
    "bf16": "u2",
    "b32": "u4",
    "u32": "u4",
    "s32": "u4",
    "f16x2": "u4",
    "bf16x2": "u4",
    "f32": "f4",
    "b64": "u8",
    "u64": "u8",
    "s64": "u8",
    "f64": "f8",
}
BYTES = {"?": 1, "u1": 1, "u2": 2, "u4": 4, "u8": 8, "f4": 4, "f8": 8}


class Reg(NamedTuple):
    """A virtual register."""

    number: int
    kind: str


class Imm(NamedTuple):
    """A constant: an int, or a float with its bits."""

    value: int | float


class Special(NamedTuple):
    """%tid.x and the like."""

    name: str


class Symbol(NamedTuple):
    """The address of a variable, or a label."""

    name: str
    offset: int = 0


class Address(NamedTuple):
    """[base + offset]."""

    base: Reg | Symbol | Imm
    offset: int


Operand = Reg | Imm | Special | Symbol | Address | tuple  # type: ignore[type-arg]  # a tuple is {a, b, ...}; d|p is a tuple that begins with "|"


@dataclass(slots=True, eq=False)
class Instruction:
    """One instruction; `op` is the opcode split at its dots, `guard` the predicate's register and whether it is negated."""

    op: tuple[str, ...]
    operands: list[Operand]
    guard: tuple[Reg, bool] | None
    text: str
    line: int
    lines: tuple[Line, ...]


class Variable(NamedTuple):
    """A variable in shared, local, constant or global memory; `data` holds initial bytes."""

    space: str
    align: int
    size: int
    data: bytes


@dataclass(slots=True, eq=False)
class Program:
    """One entry point.

    Attributes
    ----------
    name, target : str
        The entry point; "sm_80".
    kinds : list of str
        The NumPy type of each register.
    names : list of str
        What PTX calls each register.
    instructions : list of Instruction
    labels : dict
        Label -> index of the instruction that follows.
    variables : dict
        Shared, local, constant and global variables; a size of -1 is the launch's dynamic shared memory.
    params : dict
        Parameter -> (offset, bytes) in the launch's parameter block.
    """

    name: str
    target: str
    kinds: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    params: dict[str, tuple[int, int]] = field(default_factory=dict)
    param_bytes: int = 0

    @property
    def target_number(self) -> int:
        return int(re.sub(r"\D", "", self.target.split(",")[0]))
