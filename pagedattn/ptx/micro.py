"""Kernels of a few instructions: inputs by lane, outputs by lane; the same text runs on the interpreter and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pagedattn.ptx.machine import run

LETTERS = {"b16": "h", "b32": "r", "b64": "d", "f32": "f", "f64": "e"}
WIDTH = {"b16": 2, "b32": 4, "b64": 8, "f32": 4, "f64": 8}


def text(body: str, inputs: Sequence[str], outputs: Sequence[str], target: str = "sm_80", shared: int = 0) -> str:
    """PTX of a kernel `micro`: in{i} and out{i} are registers of the types named; one element of each array for each thread of the grid.

    `body` may use %lane, %tmp0 .. 9 (.b32), %wide0 .. 9 (.b64), %half0 .. 9 (.b16), %flt0 .. 9 (.f32), %yes, %no (.pred),
    and `room`, the shared memory.
    """
    names = [f"in{i}" for i in range(len(inputs))] + [f"out{i}" for i in range(len(outputs))]
    lines = [
        ".version 8.0",
        f".target {target}",
        ".address_size 64",
        f".visible .entry micro({', '.join(f'.param .u64 {n}_p' for n in names)})",
        "{",
    ]
    lines += [".reg .pred %yes, %no, %p<4>;", ".reg .b32 %lane, %index, %tmp<10>, %cta, %size;", ".reg .b64 %at, %base, %wide<10>;"]
    lines += [".reg .b16 %half<10>;", ".reg .f32 %flt<10>;", ".reg .f64 %dbl<4>;"]
    lines += [f".reg .{t} {n};" for t, n in zip([*inputs, *outputs], names, strict=True)]
    if shared:
        lines.append(f".shared .align 128 .b8 room[{shared}];")
    lines += [
        "mov.u32 %index, %tid.x;",
        "mov.u32 %cta, %ctaid.x;",
        "mov.u32 %size, %ntid.x;",
        "mad.lo.s32 %index, %cta, %size, %index;",
        "and.b32 %lane, %index, 31;",
    ]

    def place(name: str, kind: str) -> list[str]:
        return [f"ld.param.u64 %base, [{name}_p];", f"mul.wide.u32 %at, %index, {WIDTH[kind]};", "add.s64 %at, %base, %at;"]

    for name, kind in zip(names[: len(inputs)], inputs, strict=True):
        lines += [*place(name, kind), f"ld.global.{kind} {name}, [%at];"]
    lines += body.strip().splitlines()
    for name, kind in zip(names[len(inputs) :], outputs, strict=True):
        lines += [*place(name, kind), f"st.global.{kind} [%at], {name};"]
    return "\n".join([*lines, "ret;", "}"]) + "\n"


def interpret(
    body: str, inputs: Sequence[np.ndarray[Any, Any]], outputs: Sequence[str], target: str = "sm_80", shared: int = 0, threads: int = 0
) -> list[np.ndarray[Any, Any]]:
    """Run such a kernel in the interpreter; outputs are unsigned integers, or floats for .f32 and .f64."""
    arrays = [np.ascontiguousarray(x) for x in inputs]
    lanes = len(arrays[0])
    made = [np.zeros(lanes, output_type(t)) for t in outputs]
    source = text(body, [input_kind(x) for x in arrays], outputs, target, shared)
    threads = threads or 32
    run(source, lanes // threads, threads, [*arrays, *made])
    return made


def input_kind(x: np.ndarray[Any, Any]) -> str:
    return {"f4": "f32", "f8": "f64"}.get(x.dtype.str[1:], f"b{8 * x.itemsize}")


def output_type(kind: str) -> str:
    return {"f32": "f4", "f64": "f8"}.get(kind, f"u{WIDTH[kind]}")
