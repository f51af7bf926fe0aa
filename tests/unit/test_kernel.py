"""Kernel: what is read from ptxas's report, how it shows itself, and which structs it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pagedattn import build
from pagedattn.errors import ArgumentError
from pagedattn.kernel import Kernel, Usage, usage
from pagedattn.nvrtc import Compiled
from pagedattn.params import EVICT_FIRST, EVICT_NORMAL, AttentionParams
from pagedattn.spec import KernelSpec

ONE = """ptxas info    : 81 bytes gmem, 168 bytes cmem[4]
ptxas info    : Compiling entry function 'decode' for 'sm_80'
ptxas info    : Function properties for decode
ptxas         .     16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 256 bytes smem, 448 bytes cmem[0], 32 bytes cmem[2]"""
CALLEE = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'f' for 'sm_90'
ptxas info    : Function properties for f
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Function properties for _Z3barf
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        pytest.param(ONE, Usage(168, 32, 16, 256), id="one function"),
        pytest.param(CALLEE, Usage(8, 8, 8, 0), id="a function that was not inlined spills"),
        pytest.param("", Usage(0, 0, 0, 0), id="no report"),
    ],
)
def test_usage(log: str, expected: Usage) -> None:
    assert usage(log) == expected


def test_kernel() -> None:
    spec = KernelSpec(op="decode")
    kernel = Kernel(spec, "int a;\n", Compiled(b"\x7fELF", b"// <ptx>\n", ONE, 0.25), "store")
    assert (kernel.cubin, kernel.ptx, kernel.log, kernel.seconds) == (b"\x7fELF", "// <ptx>\n", ONE, 0.25)
    assert (kernel.name, kernel.registers, kernel.spill_bytes, kernel.stack_bytes) == (spec.name, 168, 32, 16)
    assert kernel.shared_bytes == 256 + spec.shared_bytes
    assert (
        repr(kernel) == f"<Kernel {spec.name}: 168 registers, 32 bytes spilled, {kernel.shared_bytes} bytes shared, 4 bytes of code, store>"
    )
    shown = kernel._repr_html_()
    assert f"<code>{spec.name}</code>" in shown
    assert "0.25 s (store)" in shown


@pytest.mark.parametrize(
    ("fields", "asked", "text"),
    [
        ({}, {"adjust": 1}, "must have adjust 0, .*; got 1. Compile its spec with general=True and fused=False"),
        ({}, {"head_packs": 2}, "must have head_packs 1, .*; got 2"),
        ({"splits": "cut"}, {"head_packs": 1, "cp_size": 4}, "must have cp_size 1, .*; got 4"),
        ({"general": True, "fused": True}, {"adjust": 1, "cp_size": 4}, "must have cp_size 1, .*; got 4"),
        ({"op": "prefill"}, {"adjust": 1}, "must have adjust 0, .*; got 1. Compile its spec with general=True"),
        ({"op": "varlen"}, {"adjust": 1}, "must have adjust 0, .*; got 1"),
        ({"op": "prefill"}, {"num_splits": 2}, "must have num_splits 1, .*; got 2. Compile its spec with splits='parts'"),
        ({"op": "prefill"}, {"cp_size": 4, "cp_factor": 9}, "must have cp_size 1, .*; got 4. Compile its spec with splits='parts'"),
        ({"op": "prefill", "splits": "parts"}, {"adjust": 1, "num_splits": 2}, "must have adjust 0, .* with general=True"),
        ({"op": "prefill", "splits": "parts"}, {"num_splits": 2, "head_packs": 3, "cp_size": 4, "cp_factor": 9}, ""),
        ({"op": "prefill", "splits": "parts"}, {"num_splits": 1, "head_packs": 3, "cp_size": 4}, "must have cp_factor and its shift"),
        ({"op": "prefill", "splits": "parts"}, {}, "must have num_splits 1 or more, a query tile's parts; got 0"),
        ({"op": "varlen", "splits": "parts", "general": True}, {"num_splits": -2}, "must have num_splits 1 or more, .*; got -2"),
        ({"op": "prefill", "general": True}, {"adjust": 1, "num_splits": 1}, ""),
        ({"op": "prefill", "general": True}, {"num_splits": 2}, "must have num_splits 1, .* with splits='parts'"),
        ({"op": "varlen", "splits": "parts"}, {"num_splits": 2}, ""),
        ({"op": "varlen"}, {"num_splits": 2}, "must have num_splits 1, .*; got 2. Compile its spec with splits='parts'"),
        ({"op": "varlen", "splits": "parts"}, {"cp_size": 2}, "must have cp_size 1, .*; got 2. Compile its spec with op='prefill'"),
        ({"op": "append"}, {"head_packs": 2, "cp_size": 4}, ""),
        ({"general": True}, {"adjust": 1, "head_packs": 2, "packs_factor": 9, "cp_size": 4, "cp_factor": 9}, ""),
        ({"general": True}, {"head_packs": 2}, "must have packs_factor and its shift, by which the kernel divides; got 0"),
        ({"general": True}, {"cp_size": 4}, "must have cp_factor and its shift"),
        ({"splits": "cut"}, {"num_splits": 4}, "must have splits_factor and its shift"),
        ({"splits": "cut"}, {"num_splits": 4, "splits_factor": 9}, ""),
        ({}, {"head_packs": 1, "cp_size": 1, "window_size": 7}, ""),
        ({}, {}, ""),
    ],
)
def test_a_struct_that_the_code_cannot_serve_is_refused(
    fields: dict[str, Any], asked: dict[str, int], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[bytes] = []
    monkeypatch.setattr(Kernel, "launcher", staticmethod(lambda kernel, packed, grid, stream: launched.append(packed)))
    kernel = Kernel(KernelSpec(**{"op": "decode", **fields}), "", Compiled(b"", b"", "", 0.0), "memory")
    params = np.zeros((), AttentionParams)
    for name, value in asked.items():
        params[name] = value
    if text:
        with pytest.raises(ArgumentError, match=text):
            kernel(params, 1)
    else:
        kernel(params, 1)
    if kernel.spec.op == "decode":
        params["l2_policy"] = EVICT_NORMAL  # what 0 stands for
    assert launched == ([] if text else [params.tobytes()])


@pytest.mark.parametrize(("op", "asked", "told"), [("decode", EVICT_FIRST, EVICT_FIRST), ("decode", 0, EVICT_NORMAL), ("append", 0, 0)])
def test_a_struct_without_a_policy_gets_the_usual_one(op: str, asked: int, told: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[bytes] = []
    monkeypatch.setattr(Kernel, "launcher", staticmethod(lambda kernel, packed, grid, stream: launched.append(packed)))
    params = np.zeros((), AttentionParams)
    params["l2_policy"], params["q"] = asked, 512
    Kernel(KernelSpec(op), "", Compiled(b"", b"", "", 0.0), "memory")(params, 1)
    (found,) = np.frombuffer(launched[0], AttentionParams)
    assert (int(found["l2_policy"]), int(found["q"]), int(params["l2_policy"])) == (told, 512, asked)


def test_no_struct_and_no_spec_are_refused() -> None:
    kernel = Kernel(KernelSpec("decode"), "", Compiled(b"", b"", "", 0.0), "memory")
    with pytest.raises(ArgumentError, match=r"`params` must be a record of pagedattn.AttentionParams, or its bytes; got NoneType"):
        kernel(None, 1)
    with pytest.raises(ArgumentError, match=r"`spec` must be a KernelSpec; got \[1\]"):
        build.compile([1])  # type: ignore[arg-type]
