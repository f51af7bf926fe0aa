"""The interpreter against a GPU: the same instructions and kernels, bit by bit where they are exact, else within the documented bound.

python benchmarks/compare_silicon.py [--interpreter-only]
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

import pagedattn as pa
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.ptx import floats, micro

Array = np.ndarray[Any, Any]
LANES = 1 << 14
Bound = Callable[[Array, Sequence[Array]], Array]


class Micro(NamedTuple):
    """A kernel of one or a few instructions; `bound` gives the largest permitted difference of each output, None: none at all."""

    name: str
    body: str
    inputs: Sequence[Array]
    outputs: Sequence[str]
    bound: Bound | None = None
    shared: int = 0
    target: str = "sm_80"


def words(seed: int) -> Array:
    x = np.random.default_rng(seed).integers(0, 2**32, LANES, np.uint32)
    x[: 2**8] = np.resize(np.array([0, 1, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], np.uint32), 2**8)
    return np.random.default_rng(seed + 100).permutation(x)


def any_floats(seed: int) -> Array:
    """Any bits: NaN, infinities and subnormals among them."""
    return words(seed).view(np.float32)


def near_one(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(LANES) * 2.0 ** rng.integers(-4, 5, LANES)).astype(np.float32)


def pairs(kind: str, seed: int, integers: bool = False) -> Array:
    rng = np.random.default_rng(seed)
    values = (rng.integers(-8, 9, 2 * LANES) if integers else rng.standard_normal(2 * LANES)).astype(np.float32)
    bits = floats.to_f16(values) if kind == "f16" else floats.to_bf16(values)
    return bits.view(np.uint32)


def ulps(count: float, absolute: float = 0.0) -> Bound:
    def bound(found: Array, _: Sequence[Array]) -> Array:
        return np.maximum(count * np.spacing(np.abs(found)), np.float32(absolute))

    return bound


def tensor(shape: str, kind: str, integers: bool) -> Micro:
    """One mma. Its bound is 2^-22 of |c| + sum |a b| for each k-step of 8, which the same kernel computes from absolute values."""
    counts = {"m16n8k16": (4, 2, 4), "m16n8k8": (2, 1, 4), "m8n8k4": (2, 2, 8)}[shape]
    names = iter(f"in{i}" for i in range(sum(counts)))
    a, b, c = ("{" + ", ".join(next(names) for _ in range(n)) + "}" for n in counts)
    d = "{" + ", ".join(f"out{i}" for i in range(counts[2])) + "}"
    body = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {d}, {a}, {b}, {c};"
    inputs = [pairs(kind, 10 + i, integers) for i in range(counts[0] + counts[1])]
    rng = np.random.default_rng(99)
    sums = (rng.integers(-99, 99, (counts[2], LANES)) if integers else rng.standard_normal((counts[2], LANES))).astype(np.float32)
    inputs += list(sums)
    outputs = ["f32"] * counts[2]
    positive = [np.abs(x) if x.dtype == np.float32 else x & np.uint32(0x7FFF7FFF) for x in inputs]
    masses = None if integers else micro.interpret(body, positive, outputs)

    def bound(found: Array, others: Sequence[Array]) -> Array:
        assert masses is not None
        which = next(i for i, x in enumerate(others) if x is found)
        return 2 * 2.0**-22 * masses[which]

    name = f"mma {shape} {kind}" + (" integers" if integers else "")
    return Micro(name, body, inputs, outputs, None if integers else bound)


def instructions() -> list[Micro]:
    a, b, c = words(0), words(1), words(2)
    x, y, z = any_floats(3), any_floats(4), any_floats(5)
    near, positive = near_one(6), np.abs(near_one(7))
    found = [tensor(s, k, i) for s in ("m16n8k16", "m16n8k8") for k in ("f16", "bf16") for i in (True, False)]
    found += [tensor("m8n8k4", "f16", i) for i in (True, False)]
    for trans in ("", ".trans"):
        body = f"""mov.u32 %tmp0, room; shl.b32 %tmp1, %lane, 4; add.u32 %tmp0, %tmp0, %tmp1;
        st.shared.v4.b32 [%tmp0], {{in0, in1, in2, in0}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{out0, out1, out2, out3}}, [%tmp0];
        movmatrix.sync.aligned.m8n8.trans.b16 out4, in1;"""
        found.append(Micro(f"ldmatrix.x4{trans}, movmatrix", body, [a, b, c], ["b32"] * 5, shared=512))
    for mode in ("rn", "rz"):
        for kind in ("f16x2", "bf16x2"):
            found.append(Micro(f"cvt.{mode}.{kind}.f32", f"cvt.{mode}.{kind}.f32 out0, in0, in1;", [x, near], ["b32"]))
    for kind in ("f16", "bf16"):
        body = f"cvt.rn.{kind}.f32 %half0, in0; cvt.u32.u16 out0, %half0;"
        found.append(Micro(f"cvt.rn.{kind}.f32", body, [x], ["b32"]))
    found.append(Micro("cvt.f32.f16", "cvt.u16.u32 %half0, in0; cvt.f32.f16 out0, %half0;", [a], ["f32"]))
    for mode in ("rni", "rzi", "rmi", "rpi"):
        found.append(Micro(f"cvt.{mode}.s32.f32", f"cvt.{mode}.s32.f32 out0, in0; cvt.{mode}.u32.f32 out1, in1;", [x, near], ["b32"] * 2))
    found.append(Micro("cvt.rn.f32.s32", "cvt.rn.f32.s32 out0, in0; cvt.rz.f32.u32 out1, in0;", [a], ["f32"] * 2))
    found.append(
        Micro(
            "cvt of bytes",
            "cvt.s32.s8 out0, in0; cvt.u32.u8 out1, in0; cvt.sat.s8.s32 out2, in0; cvt.sat.u8.s32 out3, in0;",
            [a],
            ["b32"] * 4,
        )
    )
    for mode in ("rn", "rz", "rm", "rp"):
        body = f"add.{mode}.f32 out0, in0, in1; mul.{mode}.f32 out1, in0, in1; fma.{mode}.f32 out2, in0, in1, in2;"
        found.append(Micro(f"add, mul, fma .{mode}.f32", body, [x, y, z], ["f32"] * 3))
    found.append(
        Micro(
            "add, mul, fma .ftz.f32",
            "add.ftz.f32 out0, in0, in1; mul.ftz.f32 out1, in0, in1; fma.rn.ftz.f32 out2, in0, in1, in2;",
            [x, y, z],
            ["f32"] * 3,
        )
    )
    found.append(
        Micro("div, rcp, sqrt .rn.f32", "div.rn.f32 out0, in0, in1; rcp.rn.f32 out1, in0; sqrt.rn.f32 out2, in0;", [x, y], ["f32"] * 3)
    )
    found.append(
        Micro(
            "min, max, setp .f32",
            "min.f32 out0, in0, in1; max.f32 out1, in0, in1; setp.leu.f32 %yes, in0, in1; selp.b32 out2, 1, 0, %yes;",
            [x, y],
            ["f32", "f32", "b32"],
        )
    )
    halves = [pairs("f16", i) for i in range(3)]
    found.append(
        Micro(
            "add, mul, fma .f16x2",
            "add.f16x2 out0, in0, in1; mul.f16x2 out1, in0, in1; fma.rn.f16x2 out2, in0, in1, in2;",
            halves,
            ["b32"] * 3,
        )
    )
    halves = [pairs("bf16", i) for i in range(3)]
    found.append(Micro("fma.rn.bf16x2", "fma.rn.bf16x2 out0, in0, in1, in2;", halves, ["b32"]))
    for name, source in (
        ("ex2", near),
        ("lg2", positive),
        ("rcp", near),
        ("rsqrt", positive),
        ("sqrt", positive),
        ("tanh", near),
    ):
        flush = ".ftz" if name != "tanh" else ""
        bound = ulps(floats.ULPS.get(name, 0) + 1, floats.ABSOLUTE.get(name, 0.0))
        found.append(Micro(f"{name}.approx{flush}.f32", f"{name}.approx{flush}.f32 out0, in0;", [source], ["f32"], bound))
    body = """prmt.b32 out0, in0, in1, in2; lop3.b32 out1, in0, in1, in2, 0xCA; bfe.s32 out2, in0, in1, in2; bfi.b32 out3, in0, in1, in2, 9;
    shf.l.wrap.b32 out4, in0, in1, in2; shf.r.clamp.b32 out5, in0, in1, in2;"""
    found.append(Micro("prmt, lop3, bfe, bfi, shf", body, [a, b, c], ["b32"] * 6))
    body = "bfind.u32 out0, in0; bfind.shiftamt.s32 out1, in0; popc.b32 out2, in0; brev.b32 out3, in0; clz.b32 out4, in0;"
    found.append(Micro("bfind, popc, brev, clz", body, [a], ["b32"] * 5))
    body = "or.b32 %tmp0, in1, 1; div.s32 out0, in0, %tmp0; rem.u32 out1, in0, %tmp0; mul.hi.s32 out2, in0, in1;"
    body += " mad.lo.s32 out3, in0, in1, in2; shl.b32 out4, in0, in2; shr.s32 out5, in0, in2;"
    found.append(Micro("div, rem, mul.hi, mad, shl, shr", body, [a, b, c], ["b32"] * 6))
    body = """shfl.sync.bfly.b32 out0, in0, 5, 31, -1; shfl.sync.up.b32 out1, in0, in1, 0, -1; shfl.sync.down.b32 out2, in0, 3, 0x181f, -1;
    shfl.sync.idx.b32 out3, in0, in1, 31, -1; setp.lt.s32 %yes, in0, 0;
    vote.sync.ballot.b32 out4, %yes, -1; redux.sync.add.s32 out5, in0, -1;"""
    found.append(Micro("shfl, vote, redux", body, [a, b], ["b32"] * 6))
    return found


def on_gpu(m: Micro, cupy: Any) -> list[Array]:
    """The outputs of a micro-kernel, from the PTX that the driver assembles."""
    kinds = [micro.input_kind(x) for x in m.inputs]
    module = cupy.cuda.function.Module()
    module.load(micro.text(m.body, kinds, m.outputs, m.target, m.shared).encode() + b"\0")
    arrays = [cupy.asarray(x) for x in m.inputs] + [cupy.zeros(LANES, micro.output_type(t)) for t in m.outputs]
    holders = [ctypes.c_uint64(x.data.ptr) for x in arrays]
    pointers = (ctypes.c_void_p * len(holders))(*(ctypes.addressof(h) for h in holders))
    function = module.get_function("micro").ptr
    cupy.cuda.driver.launchKernel(function, LANES // 32, 1, 1, 32, 1, 1, 0, 0, ctypes.addressof(pointers), 0)
    cupy.cuda.runtime.deviceSynchronize()
    return [cupy.asnumpy(x) for x in arrays[len(m.inputs) :]]


def difference(found: Sequence[Array], other: Sequence[Array], bound: Bound | None) -> tuple[int, float]:
    """How many elements differ, and the worst difference in units of its bound (infinite where none is permitted)."""
    differ, worst = 0, 0.0
    with np.errstate(all="ignore"):
        for ours, theirs in zip(found, other, strict=True):
            bits = ours.view(f"u{ours.itemsize}") != theirs.view(f"u{ours.itemsize}")
            if ours.dtype.kind == "f":
                bits &= ~(np.isnan(ours) & np.isnan(theirs))
            differ += int(bits.sum())
            if bits.any():
                if bound is None:
                    return int(bits.sum()), np.inf
                gap = np.abs(ours.astype(np.float64) - theirs)[bits] / np.maximum(bound(ours, found)[bits], 1e-300)
                worst = max(worst, float(np.nan_to_num(gap, nan=np.inf).max()))
    return differ, worst


def attention(device: Any, op: str, dtype: str, head_dim: int, heads: int, splits: Any) -> list[Array]:
    """A call of several sequences, all arrays as NumPy: out, lse, and the pool as append left it."""
    rng = np.random.default_rng(head_dim)
    where = pa.devices.get(device)
    kind = np.dtype(pa.dtypes.of(dtype).numpy)
    lengths = [200, 17, 64, 333]
    cache = pa.KVCache(64, num_kv_heads=2, head_dim=head_dim, block_len=16, dtype=dtype, device=where)
    cache.pool[:] = 255
    sequences = [cache.new_sequence() for _ in lengths]
    batch = cache.extend(sequences, lengths)
    k, v = (where.asarray(rng.standard_normal((sum(lengths), 2, head_dim), np.float32).astype(kind)) for _ in "kv")
    pa.append(k, v, cache, batch)
    batch = cache.batch(sequences) if op == "decode" else batch
    q = where.asarray(rng.standard_normal((batch.num_tokens, heads, head_dim), np.float32).astype(kind))
    out, lse = pa.paged_attention(q, cache, batch, return_lse=True, num_splits=splits)
    return [where.to_host(out).astype(np.float32), where.to_host(lse), where.to_host(cache.pool)]


def kernels() -> list[tuple[str, tuple[Any, ...]]]:
    rows = []
    for dtype in ("float16", "bfloat16"):
        for head_dim in (64, 96, 128, 192, 256):
            for op, heads, splits in (("decode", 8, None), ("decode", 22, None), ("decode", 8, 3), ("prefill", 4, None)):
                cut = "" if op == "prefill" else " flat" if splits is None else " cut"
                rows.append((f"{op}{cut} {dtype} d{head_dim} heads {heads}", (op, dtype, head_dim, heads, splits)))
    return rows


def bounds_of(unit: float) -> tuple[Bound | None, ...]:
    """Of out: one rounding, and weights that were rounded the other way. Of lse: decode adds rounded weights. Of the pool: none."""

    def out(x: Array, _: Sequence[Array]) -> Array:
        return 2 * unit * np.maximum(np.abs(x), 0.5)

    def lse(x: Array, _: Sequence[Array]) -> Array:
        return 2e-5 * np.maximum(np.abs(x), 1) + unit / 8

    return out, lse, None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreter-only", action="store_true", help="run without a GPU: shows that the interpreter has every case")
    only = parser.parse_args().interpreter_only
    cupy: Any = None
    if not only:
        import cupy
    failed = 0
    print(f"{'instruction':45} {'elements':>9} {'differ':>8} {'worst / bound':>14}")
    for m in instructions():
        ours = micro.interpret(m.body, m.inputs, m.outputs, m.target, m.shared)
        differ, worst = (0, 0.0) if only else difference(ours, on_gpu(m, cupy), m.bound)
        failed += worst > 1
        note = (
            "exact"
            if m.bound is None and not differ
            else "DIFFERS"
            if m.bound is None
            else f"{worst:.3f}" + (" TOO FAR" if worst > 1 else "")
        )
        print(f"{m.name:45} {LANES * len(m.outputs):9} {differ:8} {note:>14}", flush=True)
    gpu = None if only else pa.devices.get("cuda")
    ours = InterpreterDevice(gpu.arch.name if gpu else "sm_80")
    if gpu:
        ours.sm_count = gpu.sm_count  # the same cuts
    print(f"\n{'kernel':45} {'elements':>9} {'differ':>8} {'worst / bound':>14}")
    for name, case in kernels():
        found = attention(ours, *case)
        theirs = found if only else attention(gpu, *case)
        unit = 2.0**-11 if "bfloat16" not in name else 2.0**-8
        results = [difference([a], [b], bound) for a, b, bound in zip(found, theirs, bounds_of(unit), strict=True)]
        worst = max(w for _, w in results)
        failed += worst > 1
        print(
            f"{name:45} {sum(x.size for x in found[:2]):9} {sum(d for d, _ in results):8} {worst:14.3f}{' TOO FAR' if worst > 1 else ''}",
            flush=True,
        )
    print(f"\n{failed} rows beyond their bound" if failed else "\nall within their bounds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
