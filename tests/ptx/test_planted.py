"""Faults planted in copies of real kernels: the interpreter finds each, and names the line."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import nvrtc, ptx, render
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.spec import KernelSpec

SOURCE, EPILOGUE, MAINLOOP = "prefill/source_sm80.cuh", "prefill/epilogue.cuh", "prefill/mainloop_sm80.cuh"
GMEM, DECODE, FLAT, SWIZZLE = "iterator/gmem_sm80.cuh", "decode/mainloop_sm80.cuh", "decode/merge_flat.cuh", "smem/swizzle.cuh"
DECODE70, GMEM70, IMPL70 = "decode/mainloop_sm70.cuh", "iterator/gmem_warp_sm70.cuh", "decode/impl_m8n8.cuh"
MAINLOOP70, TILES70, SOFTMAX = "prefill/mainloop_sm70.cuh", "prefill/source_sm70.cuh", "prefill/softmax.cuh"
BARRIERS, CODES, CODE_ROWS = "prefill/tile_barriers.cuh", "prefill/source_quant_sm80.cuh", "prefill/code_rows.cuh"
KERNEL = "kernel.cu"


class Plant(NamedTuple):
    """A change of one file of a kernel's source, and what must be said about it: `line` stands in the file `at`."""

    id: str
    op: str
    file: str
    old: str
    new: str
    kind: str
    at: str
    line: str
    target: str = "sm_80"
    head_dim: int = 128
    kv_dtype: str | None = None


MEET = "        if (!kApart) {\n            cp_async_wait_group<0>();\n            __syncthreads();\n        }\n"
COPY = "        Fetch<kKeyData>(left > 0);\n"
WAIT = "        Barriers::template Wait<Index>("
PLANTS = (
    Plant(
        "dropped barrier",
        "prefill",
        SOURCE,
        "            __syncthreads();\n",
        "",
        "race",
        MAINLOOP,
        "Impl::ComputeQK(",
        head_dim=64,
    ),
    Plant(
        "dropped wait",
        "prefill",
        SOURCE,
        "            cp_async_wait_group<0>();\n            __sync",
        "            __sync",
        "pending copy",
        MAINLOOP,
        "Impl::ComputeQK(",
        head_dim=64,
    ),
    Plant(
        "copy before the barrier",
        "prefill",
        SOURCE,
        f"{MEET}{COPY}",
        f"{COPY}{MEET}",
        "race",
        SOURCE,
        "gmem_.template Copy<false, Index>(",
        head_dim=64,
    ),
    Plant(
        "K not waited for",
        "prefill",
        SOURCE,
        WAIT,
        WAIT.replace("Barriers", "if (Index == kValueData) Barriers"),
        "race",
        MAINLOOP,
        "Impl::ComputeQK(",
    ),
    Plant(
        "V not waited for",
        "prefill",
        SOURCE,
        WAIT,
        WAIT.replace("Barriers", "if (Index == kKeyData) Barriers"),
        "race",
        SOURCE,
        "gmem_.template Copy<false, Index>(",
    ),
    Plant(
        "arrival before the copies",
        "prefill",
        SOURCE,
        "            cp_async_wait_group<0>();\n            Barriers",
        "            Barriers",
        "pending copy",
        MAINLOOP,
        "Impl::ComputeQK(",
    ),
    Plant(
        "arrival for lanes that are not there yet",
        "prefill",
        BARRIERS,
        "        __syncwarp();\n",
        "",
        "race",
        MAINLOOP,
        "Impl::ComputeQK(",
    ),
    Plant(
        "K from codes not waited for",
        "prefill",
        CODES,
        "        Barriers::template Wait<kKeyData>(",
        "        if (kSlots > 2) Barriers::template Wait<kKeyData>(",
        "race",
        MAINLOOP,
        "Impl::ComputeQK(",
        kv_dtype="int8",
    ),
    Plant(
        "V from codes not waited for",
        "prefill",
        CODES,
        "{ Barriers::template Wait<kValueData>(slot_ == 0); }",
        "{}",
        "race",
        MAINLOOP,
        "::ComputePV(",
        kv_dtype="int4",
    ),
    Plant(
        "codes not waited for",
        "prefill",
        CODES,
        "            cp_async_wait_group<1>();\n",
        "",
        "pending copy",
        CODE_ROWS,
        "ld_shared(",
        kv_dtype="int8",
    ),
    Plant(
        "codes that another lane sent for",
        "prefill",
        CODES,
        "            cp_async_wait_group<1>();\n            __syncwarp();\n",
        "            cp_async_wait_group<1>();\n",
        "race",
        CODE_ROWS,
        "ld_shared(param",
        kv_dtype="int8",
    ),
    Plant(
        "the only place for tiles reused too early",
        "prefill",
        CODES,
        "            __syncthreads();\n            End",
        "            End",
        "race",
        CODE_ROWS,
        "st_shared_v4(",
        "sm_86",
        kv_dtype="int8",
    ),
    Plant(
        "one row too far",
        "prefill",
        EPILOGUE,
        "query.row0 + token) * p",
        "query.row0 + token + 1) * p",
        "out of bounds",
        EPILOGUE,
        "= v[i];",
    ),
    Plant(
        "off by half a chunk",
        "prefill",
        GMEM,
        "? lane_ * kChunkBytes : 0);",
        "? lane_ * kChunkBytes + 8 : 0);",
        "misaligned",
        SOURCE,
        "gmem_.Prefetch(",
    ),
    Plant(
        "rows of another warp",
        "prefill",
        EPILOGUE,
        "SmemLayout::offset(warp_row + Map::row(lane)",
        "SmemLayout::offset(Map::row(lane)",
        "race",
        EPILOGUE,
        "(smem_q + at) = Pair<T>::pack(",
    ),
    Plant(
        "query not loaded",
        "prefill",
        MAINLOOP,
        "prefetch_query<Impl, kWarps>(",
        "if (p.head_packs > 99) prefetch_query<Impl, kWarps>(",
        "unwritten",
        MAINLOOP,
        "Impl::ComputeQK(",
    ),
    Plant(
        "half a shuffle",
        "prefill",
        SOFTMAX,
        "l += __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[0])",
        "if (threadIdx.x & 16) l += __shfl_xor_sync(kFullWarp, l, Map::kRowLanes[0])",
        "missing lanes",
        SOFTMAX,
        "if (threadIdx.x & 16)",
    ),
    Plant(
        "half a barrier",
        "prefill",
        EPILOGUE,
        "    __syncwarp();  // this warp's readers",
        "    if (thread < 32) __syncthreads();\n    __syncwarp();  //",
        "barrier divergence",
        EPILOGUE,
        "if (thread < 32)",
    ),
    Plant(
        "endless loop",
        "prefill",
        KERNEL,
        "    store_output<Parts>(p, ",
        "    while (p.head_packs < 99) __syncwarp();\n    store_output<Parts>(p, ",
        "step limit",
        KERNEL,
        "while (p.head_packs",
    ),
    Plant(
        "dropped warp barrier",
        "decode",
        DECODE,
        "                    __syncwarp();\n                }\n\n                const int from",
        "                }\n\n                const int from",
        "race",
        DECODE,
        "Impl::ComputeQK(",
    ),
    Plant(
        "tile overwritten too early",
        "decode",
        DECODE,
        "                    __syncwarp();  // the tile is used up; with none left, the ring may become the piece's place\n",
        "",
        "race",
        DECODE,
        "finish(state, place, first)",
    ),
    Plant(
        "decode without waiting",
        "decode",
        DECODE,
        "                    cp_async_wait_group<kStages - 1>();\n",
        "",
        "pending copy",
        DECODE,
        "Impl::ComputeQK(",
    ),
    Plant(
        "ring reused too early",
        "decode",
        DECODE,
        "                __syncwarp();  // the ring",
        "                // the ring",
        "race",
        KERNEL,
        "StorePiece(",
        kv_dtype="int8",
    ),
    Plant(
        "pieces merged too early",
        "decode",
        FLAT,
        "        __syncthreads();\n        const Runs",
        "        const Runs",
        "race",
        "decode/runs.cuh",
        "part[lane].b >= 0",
    ),
    Plant(
        "V where a warp still reads K",
        "decode",
        DECODE70,
        "                __syncwarp();  // V may stand where K stood\n",
        "",
        "race",
        GMEM70,
        "st_shared_v4(",
        "sm_75",
    ),
    Plant(
        "K where a warp still reads V",
        "decode",
        DECODE70,
        "                __syncwarp();  // K may stand where V stood; with no tile left, the slot may become the piece's place\n",
        "",
        "race",
        "decode/pieces.cuh",
        "StorePair(piece",
        "sm_70",
    ),
    Plant(
        "P read too early", "decode", IMPL70, "        __syncwarp();  // P is there\n", "", "race", IMPL70, "ld_shared(frag_p[n]", "sm_70"
    ),
    Plant(
        "K read too early",
        "prefill",
        MAINLOOP70,
        "        __syncthreads();  // K is there, and the last V is used up\n",
        "",
        "race",
        MAINLOOP70,
        "Impl::ComputeQK(",
        "sm_70",
    ),
    Plant(
        "V read too early",
        "prefill",
        MAINLOOP70,
        "        __syncthreads();  // V is there, and K is used up\n",
        "",
        "race",
        MAINLOOP70,
        "Impl::ComputePV(",
        "sm_75",
    ),
    Plant(
        "V where K is still read",
        "prefill",
        MAINLOOP70,
        "            __syncthreads();  // K is used up\n",
        "",
        "race",
        TILES70,
        "gmem_v_.Save(",
        "sm_70",
        256,
    ),
    Plant(
        "K where V is still read",
        "prefill",
        MAINLOOP70,
        "            __syncthreads();  // V is used up\n",
        "",
        "race",
        TILES70,
        "gmem_k_.Save(",
        "sm_75",
    ),
)


class Planted(InterpreterDevice):
    """Runs a changed kernel in place of the shipped one."""

    def __init__(self, plant: Plant | None) -> None:
        super().__init__(plant.target if plant else "sm_80")
        self.plant = plant
        self.text = ""

    def program(self, spec: KernelSpec) -> ptx.Code:
        plant = self.plant
        if plant is None or spec.op != plant.op:
            return super().program(spec)
        source, headers = render.render(spec), dict(render.headers())
        text = source if plant.file == KERNEL else headers[plant.file].decode()
        assert text.count(plant.old) == 1, f"{plant.file} must hold once what {plant.id!r} changes"
        text = text.replace(plant.old, plant.new)
        if plant.file == KERNEL:
            source = text
        else:
            headers[plant.file] = text.encode()
        self.text = source if plant.at == KERNEL else headers[plant.at].decode()
        return ptx.Code(nvrtc.compile(source, spec.name, spec.arch, headers).ptx.decode())


def attend(device: InterpreterDevice, op: str, tokens: int = 200, head_dim: int = 128, kv_dtype: str | None = None) -> None:
    """One sequence of several tiles, prefill or decode."""
    rng = np.random.default_rng(0)
    cache = pa.KVCache(16, num_kv_heads=1, head_dim=head_dim, block_len=16, kv_dtype=kv_dtype, device=device)
    cache.pool[:] = 0
    sequence = cache.new_sequence()
    batch = cache.extend([sequence], [tokens])
    if op == "decode":
        batch = cache.batch([sequence])
    q: Any = device.asarray(rng.standard_normal((batch.num_tokens, 4, head_dim)).astype(np.float16))
    pa.paged_attention(q, cache, batch)


@pytest.mark.parametrize("op", ["prefill", "decode"])
def test_the_kernels_as_they_are_have_no_fault(op: str) -> None:
    attend(Planted(None), op)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: p.id)
def test_planted(plant: Plant) -> None:
    device = Planted(plant)
    device.max_steps = 60_000
    with pytest.raises(pa.DeviceFault) as caught:
        attend(device, plant.op, head_dim=plant.head_dim, kv_dtype=plant.kv_dtype)
    fault = caught.value.__cause__
    assert isinstance(fault, ptx.Fault)
    assert fault.kind == plant.kind, fault
    name = f"kernels/{plant.at}"
    lines = [line.line for line in fault.lines if line.file == name or (plant.at == KERNEL and line.file.endswith(".cu"))]
    text = device.text.splitlines()
    assert any(plant.line in text[line - 1] for line in lines), f"{fault}\n{[text[line - 1] for line in lines]}"
    assert fault.cta >= 0
    assert fault.lanes
    assert fault.instruction in str(fault)


SWIZZLES = (
    Plant("no swizzle", "prefill", SWIZZLE, "return kWholeLines ? row & 7 : (row >> 1) & 3;", "return row * 0;", "", SWIZZLE, ""),
    Plant(
        "none for quad pairs",
        "prefill",
        "smem/quad_pair.cuh",
        "return kWholeLines ? (row & 3) | half << 2 : (row & 2) | half;",
        "return half * 0;",
        "",
        "smem/quad_pair.cuh",
        "",
        "sm_70",
    ),
)


@pytest.mark.parametrize("plant", SWIZZLES, ids=lambda p: p.id)
def test_a_wrong_swizzle_is_seen_in_the_banks(plant: Plant) -> None:
    counts = []
    for device in (InterpreterDevice(plant.target), Planted(plant)):
        device.counting = True
        attend(device, "prefill")
        counts.append(device.launches[-1])
    reads, writes = ("ldmatrix", "cp.async") if plant.target == "sm_80" else ("ld.shared.v4", "st.shared.v4")
    assert counts[0].conflicts(reads) == 0
    assert counts[1].conflicts(reads) > 0
    assert counts[1].conflicts(writes) == 0
    worst = max((s for s in counts[1].shared_sites.values() if s.width == 16), key=lambda s: s.conflicts)
    assert any(line.file == f"kernels/ptx/{'ldmatrix' if plant.target == 'sm_80' else 'memory'}.cuh" for line in worst.lines)


def test_a_target_below_the_instructions() -> None:
    source = pa.compile(KernelSpec(op="prefill", arch="sm_80")).ptx.replace(".target sm_80", ".target sm_75")
    with pytest.raises(ptx.Fault, match=r"target: mbarrier\.\S+ needs sm_80; the target is sm_75") as caught:
        ptx.Code(source)
    assert caught.value.lines[0].file == "kernels/ptx/mbarrier.cuh"
