"""Instructions against formulas that share nothing with the interpreter: Python's integers and fractions, one lane after the other."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from pagedattn import ptx
from pagedattn.params import EVICT_FIRST
from pagedattn.ptx.micro import interpret

Array = np.ndarray[Any, Any]
LANES = 256
EDGES32 = [0, 1, 2, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x80000001, 0xFFFF, 0x10000]
EDGES_F = [
    0x00000000,
    0x80000000,
    0x00000001,
    0x80000001,
    0x007FFFFF,
    0x00800000,
    0x3F800000,
    0xBF800000,
    0x7F7FFFFF,
    0x7F800000,
    0xFF800000,
    0x7FC00000,
    0x3F800001,
    0x477FF000,
    0x477FEFFF,
    0x33800000,
]


def words(seed: int, edges: list[int] = EDGES32) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 2**32, LANES, np.uint32)
    x[: len(edges)] = edges
    return rng.permutation(x) if seed else x


def floats(seed: int) -> Array:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(LANES) * 2.0 ** rng.integers(-30, 30, LANES)).astype(np.float32)
    x[: len(EDGES_F)] = np.array(EDGES_F, np.uint32).view(np.float32)
    return rng.permutation(x) if seed else x


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> (bits - 1) else x


def floor_toward_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def bfe(x: int, start: int, length: int, sign: bool) -> int:
    start, length = start & 255, length & 255
    fill = (x >> min(start + length - 1, 31)) & 1 if sign and length else 0
    return sum((x >> (start + i) & 1 if i < length and start + i < 32 else fill) << i for i in range(32))


def bfi(a: int, b: int, start: int, length: int) -> int:
    start, length = start & 255, length & 255
    for i in range(min(length, 32)):
        if start + i < 32:
            b = b & ~(1 << (start + i)) | (a >> i & 1) << (start + i)
    return b


def prmt(a: int, b: int, selector: int) -> int:
    source, result = (b << 32 | a).to_bytes(8, "little"), []
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = source[nibble & 7]
        result.append((255 if byte & 128 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(result), "little")


M = 0xFFFFFFFF
INTEGER = {
    "add.u32 out0, in0, in1": lambda a, b, c: a + b,
    "sub.s32 out0, in0, in1": lambda a, b, c: a - b,
    "mul.lo.s32 out0, in0, in1": lambda a, b, c: a * b,
    "mul.hi.s32 out0, in0, in1": lambda a, b, c: signed(a) * signed(b) >> 32,
    "mul.hi.u32 out0, in0, in1": lambda a, b, c: a * b >> 32,
    "mad.lo.s32 out0, in0, in1, in2": lambda a, b, c: a * b + c,
    "min.s32 out0, in0, in1": lambda a, b, c: min(signed(a), signed(b)),
    "max.u32 out0, in0, in1": lambda a, b, c: max(a, b),
    "shl.b32 out0, in0, in1": lambda a, b, c: a << b if b < 32 else 0,
    "shr.u32 out0, in0, in1": lambda a, b, c: a >> b if b < 32 else 0,
    "shr.s32 out0, in0, in1": lambda a, b, c: signed(a) >> min(b, 31),
    "not.b32 out0, in0": lambda a, b, c: ~a,
    "neg.s32 out0, in0": lambda a, b, c: -a,
    "abs.s32 out0, in0": lambda a, b, c: abs(signed(a)),
    "popc.b32 out0, in0": lambda a, b, c: bin(a).count("1"),
    "clz.b32 out0, in0": lambda a, b, c: 32 - a.bit_length(),
    "brev.b32 out0, in0": lambda a, b, c: int(f"{a:032b}"[::-1], 2),
    "bfind.u32 out0, in0": lambda a, b, c: a.bit_length() - 1,
    "bfind.shiftamt.u32 out0, in0": lambda a, b, c: 32 - a.bit_length() if a else M,
    "bfind.s32 out0, in0": lambda a, b, c: (~a & M if a >> 31 else a).bit_length() - 1,
    "bfe.u32 out0, in0, in1, in2": lambda a, b, c: bfe(a, b, c, False),
    "bfe.s32 out0, in0, in1, in2": lambda a, b, c: bfe(a, b, c, True),
    "bfi.b32 out0, in0, in1, in2, 7": lambda a, b, c: bfi(a, b, c, 7),
    "prmt.b32 out0, in0, in1, in2": prmt,
    "lop3.b32 out0, in0, in1, in2, 0x96": lambda a, b, c: a ^ b ^ c,
    "lop3.b32 out0, in0, in1, in2, 0xCA": lambda a, b, c: a & b | ~a & c,
    "shf.l.wrap.b32 out0, in0, in1, in2": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.clamp.b32 out0, in0, in1, in2": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "xor.b32 out0, in0, 0x55": lambda a, b, c: a ^ 0x55,
    "setp.lt.s32 %yes, in0, in1;\nselp.b32 out0, 1, 2, %yes": lambda a, b, c: 1 if signed(a) < signed(b) else 2,
    "setp.hi.u32 %yes, in0, in1;\nselp.b32 out0, in0, in2, %yes": lambda a, b, c: a if a > b else c,
    "setp.eq.and.s32 %yes|%no, in0, in0, %p0;\nselp.b32 out0, 1, 2, %no": lambda a, b, c: 2,
    "cvt.s32.s8 out0, in0": lambda a, b, c: signed(a & 255, 8),
    "cvt.u32.u16 out0, in0": lambda a, b, c: a & 0xFFFF,
    "cvt.sat.s8.s32 out0, in0": lambda a, b, c: max(-128, min(127, signed(a))),
    "mov.b32 {%half0, %half1}, in0;\nmov.b32 out0, {%half1, %half0}": lambda a, b, c: a >> 16 | (a & 0xFFFF) << 16,
    "cvt.rn.f32.s32 %flt0, in0;\nmov.b32 out0, %flt0": lambda a, b, c: struct.unpack("<I", struct.pack("<f", signed(a)))[0],
}


@pytest.mark.parametrize("body", INTEGER)
def test_integer(body: str) -> None:
    a, b, c = words(0), words(1), words(2)
    b[::7] = np.random.default_rng(5).integers(0, 40, len(b[::7]))
    c[::5] = np.random.default_rng(6).integers(0, 40, len(c[::5]))
    prepared = "setp.ne.u32 %p0, in0, in0;\n" + body + ";"
    (found,) = interpret(prepared, [a, b, c], ["b32"])
    expected = [INTEGER[body](x, y, z) & M for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_division(kind: str) -> None:
    a, b = words(0), words(1)
    b[b == 0] = 3
    quotient, rest = interpret(f"div.{kind} out0, in0, in1;\nrem.{kind} out1, in0, in1;", [a, b], ["b32", "b32"])
    for x, y, q, r in zip(a.tolist(), b.tolist(), quotient.tolist(), rest.tolist(), strict=True):
        if kind == "s32":
            x, y = signed(x), signed(y)
        assert q == floor_toward_zero(x, y) & M
        assert r == (x - floor_toward_zero(x, y) * y) & M


def test_wide_products_and_64_bits() -> None:
    a, b = words(0), words(1)
    body = """mul.wide.s32 %wide0, in0, in1; mad.wide.u32 %wide1, in0, in1, %wide0;
    mul.hi.u64 out1, %wide0, %wide1; mul.hi.s64 out2, %wide0, %wide1; mov.b64 out0, %wide1;"""
    low, high, arithmetic = interpret(body, [a, b], ["b64", "b64", "b64"])
    top = 2**64
    for x, y, p, q, s in zip(a.tolist(), b.tolist(), low.tolist(), high.tolist(), arithmetic.tolist(), strict=True):
        first = signed(x) * signed(y) % top
        second = (x * y + first) % top
        assert p == second
        assert q == first * second >> 64
        assert s == (signed(first, 64) * signed(second, 64) >> 64) % top


def rounded(x: Fraction, bits: int, least: int, mode: str = "rn") -> Fraction:
    """To `bits` of significand, with 2**least the smallest subnormal."""
    if x == 0:
        return x
    exponent = math.floor(math.log2(abs(x))) if abs(x) < 2**900 else 0
    while Fraction(2) ** exponent > abs(x):
        exponent -= 1
    while Fraction(2) ** (exponent + 1) <= abs(x):
        exponent += 1
    unit = Fraction(2) ** max(exponent - bits + 1, least)
    n = x / unit
    if mode == "rn":
        return round(n) * unit
    return {"rz": math.trunc, "rm": math.floor, "rp": math.ceil}[mode](n) * unit


def same(found: float, expected: Fraction, largest: float) -> bool:
    if abs(expected) > largest:
        return math.isinf(found) and (found > 0) == (expected > 0)
    return Fraction(found) == expected


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
def test_float_rounding(mode: str) -> None:
    a, b, c = floats(0), floats(1), floats(2)
    with np.errstate(all="ignore"):
        c[::3] = (-(a.astype(np.float64) * b)[::3]).astype(np.float32)  # cancels all but the rounding
    body = f"""add.{mode}.f32 out0, in0, in1; mul.{mode}.f32 out1, in0, in1;
    fma.{mode}.f32 out2, in0, in1, in2; sub.{mode}.f32 out3, in0, in1;"""
    outs = interpret(body, [a, b, c], ["f32"] * 4)
    largest = float(np.finfo(np.float32).max)
    checked = 0
    for n in range(LANES):
        x, y, z = float(a[n]), float(b[n]), float(c[n])
        if not all(map(math.isfinite, (x, y, z))):
            continue
        fx, fy, fz = Fraction(x), Fraction(y), Fraction(z)
        for found, exact in zip(outs, (fx + fy, fx * fy, fx * fy + fz, fx - fy), strict=True):
            expected = rounded(exact, 24, -149, mode)
            if abs(expected) <= largest:
                assert Fraction(float(found[n])) == expected, (x, y, z)
                checked += 1
    assert checked > 3 * LANES // 2


def test_special_values() -> None:
    inf, nan = math.inf, math.nan
    a = np.resize(np.array([inf, -inf, nan, 0.0, -0.0, 1.0, 2.0**-140, -(2.0**-130)], np.float32), LANES)
    b = np.resize(np.array([1.0, inf, 2.0, nan, 3.0, nan, 0.5, 1.0], np.float32), LANES)
    body = """max.f32 out0, in0, in1;
    min.NaN.f32 out1, in0, in1;
    add.ftz.f32 out2, in0, 0f00000000;
    add.sat.f32 out3, in0, in1;
    setp.ltu.f32 %yes, in0, in1; selp.f32 out4, 0f3F800000, 0f00000000, %yes;
    setp.ne.f32 %yes, in0, in1; selp.f32 out5, 0f3F800000, 0f00000000, %yes;"""
    largest, least, flushed, saturated, less, differ = (x[:8].tolist() for x in interpret(body, [a, b], ["f32"] * 6))
    assert largest == [inf, inf, 2.0, 0.0, 3.0, 1.0, 0.5, 1.0]
    assert [math.isnan(x) for x in least] == [False, False, True, True, False, True, False, False]
    assert flushed[6:] == [0.0, 0.0]
    assert saturated[:2] == [1.0, 0.0]
    assert saturated[2:6] == [0.0, 0.0, 1.0, 0.0]
    assert less == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert differ == [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["f32", "NaN.f32", "f16x2", "bf16x2"])
def test_zeros_have_an_order(kind: str) -> None:
    """-0 is less than 0, whichever comes first."""
    minus = 0x80008000 if kind.endswith("x2") else 0x80000000
    a, b = (np.resize(np.array(x, np.uint32), LANES) for x in ([0, minus, 0, minus], [minus, 0, 0, minus]))
    least, largest = (x[:4].tolist() for x in interpret(f"min.{kind} out0, in0, in1; max.{kind} out1, in0, in1;", [a, b], ["b32"] * 2))
    assert least == [minus, minus, 0, minus]
    assert largest == [0, 0, 0, minus]


@pytest.mark.parametrize(("kind", "bits", "least", "largest"), [("f16", 11, -24, 65504.0), ("bf16", 8, -133, 3.3895313892515355e38)])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_16_bit_conversions(kind: str, bits: int, least: int, largest: float, mode: str) -> None:
    a, b = floats(0), floats(1)
    b[::2] = (b[::2].view(np.uint32) & np.uint32(0xFFFFE000) | np.uint32(0x1000)).view(np.float32)  # ties
    (packed,) = interpret(f"cvt.{mode}.{kind}x2.f32 out0, in0, in1;", [a, b], ["b32"])
    for source, found in ((b, packed & 0xFFFF), (a, packed >> 16)):
        values = (
            found.astype(np.uint16).view(np.float16).astype(float)
            if kind == "f16"
            else (found << 16).astype(np.uint32).view(np.float32).astype(float)
        )
        for x, y in zip(source.tolist(), values.tolist(), strict=True):
            if math.isnan(x):
                assert math.isnan(y)
            elif math.isinf(x):
                assert x == y
            else:
                expected = rounded(Fraction(x), bits, least, mode)
                if mode == "rn" or abs(expected) <= largest:
                    assert same(y, expected, largest), x


def test_f16_arithmetic() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal((2, LANES)).astype(np.float16) for _ in "abc")
    c[:, ::3] = -(a[:, ::3].astype(np.float32) * b[:, ::3]).astype(np.float16)
    pack = [np.ascontiguousarray(x.T).view(np.uint32).reshape(-1) for x in (a, b, c)]
    body = "fma.rn.f16x2 out0, in0, in1, in2;\nadd.f16x2 out1, in0, in1;\nmul.f16x2 out2, in0, in1;\nmax.f16x2 out3, in0, in1;"
    outs = [x.view(np.float16).reshape(-1, 2).T for x in interpret(body, pack, ["b32"] * 4)]
    for i in range(2):
        for n in range(LANES):
            x, y, z = (Fraction(float(v[i, n])) for v in (a, b, c))
            for found, exact in zip(outs, (x * y + z, x + y, x * y, max(x, y)), strict=True):
                assert Fraction(float(found[i, n])) == rounded(exact, 11, -24)


@pytest.mark.parametrize("mode", ["rni", "rzi", "rmi", "rpi"])
def test_float_to_int(mode: str) -> None:
    a = floats(3)
    (found,) = interpret(f"cvt.{mode}.s32.f32 out0, in0;", [a], ["b32"])
    function = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[mode]
    for x, y in zip(a.tolist(), found.tolist(), strict=True):
        expected = 0 if math.isnan(x) else max(-(2**31), min(2**31 - 1, function(x) if math.isfinite(x) else int(math.copysign(2**40, x))))
        assert signed(y) == expected


@pytest.mark.parametrize(
    ("name", "function"), [("ex2", lambda x: 2.0**x), ("lg2", math.log2), ("rcp", lambda x: 1 / x), ("rsqrt", lambda x: 1 / math.sqrt(x))]
)
def test_approximate(name: str, function: Any) -> None:
    a = np.linspace(0.01, 30, LANES).astype(np.float32)
    (found,) = interpret(f"{name}.approx.ftz.f32 out0, in0;", [a], ["f32"])
    expected = np.array([function(float(x)) for x in a])
    assert (np.abs(found - expected) <= np.spacing(np.abs(expected).astype(np.float32))).all()


def test_shuffles() -> None:
    a, b = words(0), words(1)
    body = """shfl.sync.bfly.b32 out0, in0, 5, 31, -1;
    shfl.sync.up.b32 out1|%yes, in0, 3, 0, -1;
    selp.b32 out4, 1, 0, %yes;
    shfl.sync.down.b32 out2, in0, 2, 0x181f, -1;
    shfl.sync.idx.b32 out3, in0, in1, 31, -1;"""
    fly, up, down, idx, inside = (x.reshape(-1, 32) for x in interpret(body, [a, b], ["b32"] * 5))
    source, places = a.reshape(-1, 32), b.reshape(-1, 32)
    for lane in range(32):
        assert (fly[:, lane] == source[:, lane ^ 5]).all()
        assert (up[:, lane] == source[:, lane - 3 if lane >= 3 else lane]).all()
        assert (inside[:, lane] == (lane >= 3)).all()
        segment_end = lane // 8 * 8 + 7
        assert (down[:, lane] == source[:, lane + 2 if lane + 2 <= segment_end else lane]).all()
        assert (idx[:, lane] == source[np.arange(len(source)), places[:, lane] & 31]).all()


def test_votes_and_reductions() -> None:
    a = words(0)
    body = """and.b32 %tmp0, in0, 1; setp.ne.u32 %yes, %tmp0, 0;
    vote.sync.ballot.b32 out0, %yes, -1;
    vote.sync.any.pred %no, %yes, -1; selp.b32 out1, 1, 0, %no;
    redux.sync.add.s32 out2, in0, -1;
    redux.sync.min.s32 out3, in0, -1;"""
    ballot, some, total, least = (x.reshape(-1, 32) for x in interpret(body, [a], ["b32"] * 4))
    for w, row in enumerate(a.reshape(-1, 32).tolist()):
        assert set(ballot[w].tolist()) == {sum((x & 1) << i for i, x in enumerate(row))}
        assert set(some[w].tolist()) == {int(any(x & 1 for x in row))}
        assert set(total[w].tolist()) == {sum(row) & M}
        assert set(least[w].tolist()) == {min(map(signed, row)) & M}


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("shape", ["m16n8k16", "m16n8k8"])
def test_mma(shape: str, kind: str) -> None:
    """A and B hold small integers, so that every sum is exact; the fragments are filled by the ISA's text (PTX ISA 9.7.14.5)."""
    steps = int(shape[6:]) // 8
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(-8, 9, (16, 8 * steps)), rng.integers(-8, 9, (8 * steps, 8)), rng.integers(-99, 99, (16, 8))

    def bits(x: int) -> int:
        return int(np.float16(x).view(np.uint16)) if kind == "f16" else int(np.float32(x).view(np.uint32)) >> 16

    frag_a, frag_b, frag_c = np.zeros((2 * steps, 32), np.uint32), np.zeros((steps, 32), np.uint32), np.zeros((4, 32), np.float32)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4 * steps):
            row = group if i % 4 < 2 else group + 8
            column = thread * 2 + (i & 1) + (8 if i >= 4 else 0)
            frag_a[i // 2, lane] |= bits(a[row, column]) << 16 * (i & 1)
        for i in range(2 * steps):
            frag_b[i // 2, lane] |= bits(b[thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]) << 16 * (i & 1)
        for i in range(4):
            frag_c[i, lane] = c[group if i < 2 else group + 8, thread * 2 + (i & 1)]
    regs_a = ", ".join(f"in{i}" for i in range(2 * steps))
    regs_b = ", ".join(f"in{i + 2 * steps}" for i in range(steps))
    regs_c = ", ".join(f"in{i + 3 * steps}" for i in range(4))
    body = f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{out0, out1, out2, out3}}, {{{regs_a}}}, {{{regs_b}}}, {{{regs_c}}};"
    outs = interpret(body, [*frag_a, *frag_b, *frag_c], ["f32"] * 4)
    expected = a @ b + c
    for lane in range(32):
        for i in range(4):
            assert outs[i][lane] == expected[(lane >> 2) + (8 if i >= 2 else 0), lane % 4 * 2 + (i & 1)]


@pytest.mark.parametrize("orders", [("row", "col"), ("col", "row"), ("row", "row"), ("col", "col")])
def test_mma_m8n8k4(orders: tuple[str, str]) -> None:
    rng = np.random.default_rng(1)
    a, b, c = rng.integers(-8, 9, (4, 8, 4)), rng.integers(-8, 9, (4, 4, 8)), rng.integers(-99, 99, (4, 8, 8))
    frag_a, frag_b, frag_c = np.zeros((2, 32), np.uint32), np.zeros((2, 32), np.uint32), np.zeros((8, 32), np.float32)

    def bits(x: int) -> int:
        return int(np.float16(x).view(np.uint16))

    for lane in range(32):
        pair, upper = lane % 16 // 4, 4 if lane >= 16 else 0
        for i in range(4):
            row, column = (lane % 4 + upper, i) if orders[0] == "row" else (i + upper, lane % 4)
            frag_a[i // 2, lane] |= bits(a[pair, row, column]) << 16 * (i & 1)
            row, column = (i, lane % 4 + upper) if orders[1] == "col" else (lane % 4, i + upper)
            frag_b[i // 2, lane] |= bits(b[pair, row, column]) << 16 * (i & 1)
        for i in range(8):
            frag_c[i, lane] = c[pair, (lane & 1) + (i & 2) + upper, (i & 4) + (lane & 2) + (i & 1)]
    outs_text = ", ".join(f"out{i}" for i in range(8))
    sums = ", ".join(f"in{i + 4}" for i in range(8))
    body = f"mma.sync.aligned.m8n8k4.{orders[0]}.{orders[1]}.f32.f16.f16.f32 {{{outs_text}}}, {{in0, in1}}, {{in2, in3}}, {{{sums}}};"
    outs = interpret(body, [*frag_a, *frag_b, *frag_c], ["f32"] * 8, target="sm_70")
    expected = a @ b + c
    for lane in range(32):
        pair, upper = lane % 16 // 4, 4 if lane >= 16 else 0
        for i in range(8):
            assert outs[i][lane] == expected[pair, (lane & 1) + (i & 2) + upper, (i & 4) + (lane & 2) + (i & 1)]


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_and_movmatrix(transposed: bool) -> None:
    matrix = np.arange(4 * 64, dtype=np.uint16).reshape(4, 8, 8)
    rows = matrix.reshape(32, 8).view(np.uint32)
    body = """mov.u32 %tmp0, room; shl.b32 %tmp1, %lane, 4; add.u32 %tmp0, %tmp0, %tmp1;
    st.shared.v4.b32 [%tmp0], {in0, in1, in2, in3};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4TRANS.shared.b16 {out0, out1, out2, out3}, [%tmp0];
    movmatrix.sync.aligned.m8n8.trans.b16 out4, out1;""".replace("TRANS", ".trans" if transposed else "")
    *found, moved = interpret(body, [np.ascontiguousarray(rows[:, i]) for i in range(4)], ["b32"] * 5, shared=512)
    for lane in range(32):
        for k in range(4):
            for i in range(2):
                row, column = lane // 4, 2 * (lane % 4) + i
                expected = matrix[k, column, row] if transposed else matrix[k, row, column]
                assert found[k][lane] >> 16 * i & 0xFFFF == expected
                if k == 1:
                    assert moved[lane] >> 16 * i & 0xFFFF == (matrix[1, row, column] if transposed else matrix[1, column, row])


def test_divergent_lanes_meet_again() -> None:
    a = words(0)
    body = """mov.u32 out0, 0;
    and.b32 %tmp0, in0, 7;
    LOOP: setp.eq.u32 %yes, %tmp0, 0;
    @%yes bra DONE;
    add.u32 out0, out0, 3; sub.u32 %tmp0, %tmp0, 1;
    bra LOOP;
    DONE: shfl.sync.bfly.b32 out1, out0, 1, 31, -1;
    setp.lt.u32 %yes, %lane, 16;
    @%yes mov.u32 out1, 7;
    @!%yes add.u32 out1, out1, 1;"""
    own, other = interpret(body, [a], ["b32"] * 2)
    expected = (a & 7) * 3
    assert (own == expected).all()
    swapped = expected.reshape(-1, 2)[:, ::-1].reshape(-1) + 1
    swapped.reshape(-1, 32)[:, :16] = 7
    assert (other == swapped).all()


def test_atomics_and_barriers() -> None:
    a = np.ones(256, np.uint32)
    body = """mov.u32 %tmp0, room; setp.eq.u32 %yes, %index, 0; mov.u32 %tmp1, %tid.x; setp.eq.u32 %yes, %tmp1, 0;
    @%yes st.shared.u32 [%tmp0], 5;
    bar.sync 0;
    atom.shared.add.u32 %tmp2, [%tmp0], in0;
    bar.sync 0;
    ld.shared.u32 out0, [%tmp0]; mov.u32 out1, %tmp2;"""
    total, before = interpret(body, [a], ["b32"] * 2, shared=16, threads=128)
    assert set(total.tolist()) == {5 + 128}
    assert sorted(before[:128].tolist()) == list(range(5, 133))


HANDED_ON = """mov.u32 %tmp0, room; mov.u32 %tmp1, %tid.x; setp.eq.u32 %yes, %tmp1, 0;
    @%yes mbarrier.init.shared.b64 [%tmp0], 4;
    bar.sync 0;
    shl.b32 %tmp2, %tmp1, 2; add.u32 %tmp2, %tmp2, %tmp0;
    st.shared.u32 [%tmp2+16], in0;
    SYNC
    setp.eq.u32 %yes, %lane, 0;
    @%yes mbarrier.arrive.shared.b64 %wide0, [%tmp0];
    ASK: mbarrier.test_wait.parity.shared.b64 %yes, [%tmp0], 0;
    @!%yes bra ASK;
    xor.b32 %tmp1, %tmp1, 32; shl.b32 %tmp2, %tmp1, 2; add.u32 %tmp2, %tmp2, %tmp0;
    ld.shared.u32 out0, [%tmp2+16];"""


def handed_on(**changes: str) -> tuple[np.ndarray, np.ndarray]:
    """Warps read what their neighbours wrote, after all have arrived at an mbarrier."""
    a, body = words(0), HANDED_ON
    for name, text in {"SYNC": "bar.warp.sync -1;", **changes}.items():
        body = body.replace(name, text)
    (found,) = interpret(body, [a], ["b32"], shared=16 + 4 * 128, threads=128)
    return a, found


def test_mbarriers_order_what_warps_do() -> None:
    a, found = handed_on()
    assert (found == a.reshape(-1, 2, 32)[:, ::-1].reshape(-1)).all()
    with pytest.raises(ptx.Fault, match="race: a barrier must lie between"):
        handed_on(SYNC="")
    with pytest.raises(ptx.Fault, match=r"unwritten: mbarrier\.init must come before"):
        handed_on(**{"@%yes mbarrier.init.shared.b64 [%tmp0], 4;": ""})


# A warp's 16 bytes a lane, from x to shared memory by COPY and on to y.
THROUGH_SHARED = """.version 8.0
.target sm_80
.visible .entry f(.param .u64 x, .param .u64 y) {
.reg .b32 %r<9>; .reg .b64 %d<6>; .shared .align 16 .b8 room[512];
ld.param.u64 %d0, [x]; ld.param.u64 %d1, [y];
mov.u32 %r0, %tid.x; shl.b32 %r1, %r0, 4; mov.u32 %r2, room; add.u32 %r2, %r2, %r1;
cvt.u64.u32 %d2, %r1; add.s64 %d3, %d0, %d2; add.s64 %d4, %d1, %d2;
COPY
ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r2];
st.global.v4.u32 [%d4], {%r4, %r5, %r6, %r7};
ret; }"""


def test_cp_async_zero_fill_and_groups() -> None:
    source = np.arange(32 * 4, dtype=np.uint32)
    text = THROUGH_SHARED.replace(
        "COPY",
        """and.b32 %r3, %r0, 1; shl.b32 %r3, %r3, 4;
        cp.async.cg.shared.global [%r2], [%d3], 16, %r3;
        cp.async.commit_group; cp.async.commit_group; cp.async.wait_group WAIT;""",
    )
    out = np.zeros_like(source)
    ptx.run(text.replace("WAIT", "1"), 1, 32, [source, out])
    expected = source.reshape(32, 4).copy()
    expected[::2] = 0
    assert (out.reshape(32, 4) == expected).all()
    with pytest.raises(
        ptx.Fault, match=r"pending copy: a read must follow the wait for the cp\.async that warp 0 lane 0 issued at PTX line 9"
    ):
        ptx.run(text.replace("WAIT", "2"), 1, 32, [source, out])


def test_cp_async_with_a_cache_policy() -> None:
    source = np.arange(32 * 4, dtype=np.uint32)
    text = THROUGH_SHARED.replace(
        "COPY",
        f"""mov.u64 %d5, {EVICT_FIRST};
        cp.async.cg.shared.global.L2::cache_hint.L2::128B [%r2], [%d3], 16, %d5;
        cp.async.commit_group; cp.async.wait_group 0;""",
    )
    out = np.zeros_like(source)
    ptx.run(text, 1, 32, [source, out])
    assert (out == source).all()
    with pytest.raises(ptx.UnknownInstruction, match=r"a cache hint wants a policy"):
        ptx.run(text.replace("16, %d5", "16, %r3"), 1, 32, [source, out])


LOCAL = """.version 8.0
.target sm_80
.visible .entry f(.param .u64 x) {
.reg .b32 %r<4>; .reg .b64 %d<6>; .local .align 16 .b8 depot[64];
ld.param.u64 %d0, [x]; mov.u32 %r0, %tid.x; mul.wide.u32 %d1, %r0, 4; add.s64 %d0, %d0, %d1;
mov.u64 %d2, depot; add.s64 %d3, %d2, OFFSET;
st.local.u32 [%d3], %r0;
cvta.local.u64 %d4, %d3; ld.u32 %r1, [%d4];
st.global.u32 [%d0], %r1;
ret; }"""


def test_local_memory() -> None:
    out = np.zeros(64, np.uint32)
    ptx.run(LOCAL.replace("OFFSET", "60"), 1, 64, [out])
    assert (out == np.arange(64)).all()
    with pytest.raises(ptx.Fault, match="local overrun: local memory has 64 bytes; got an access of 4 at offset 64"):
        ptx.run(LOCAL.replace("OFFSET", "64"), 1, 64, [out])


def test_global_faults() -> None:
    out = np.zeros(63, np.uint32)
    body = LOCAL.replace("OFFSET", "0")
    with pytest.raises(ptx.Fault, match=r"out of bounds: .* 4 bytes past the end of `x` \(252 bytes\)") as caught:
        ptx.run(body, 1, 64, [out])
    assert (caught.value.cta, caught.value.warp, caught.value.lanes) == (0, 1, (31,))
    with pytest.raises(ptx.Fault, match="misaligned"):
        ptx.run(body, 1, 32, [np.zeros(200, np.uint8)[2:]])
    code = ptx.Code(body)
    with pytest.raises(ptx.Fault, match=r"read-only: `x` is input"):
        ptx.launch(code, 1, 32, out.ctypes.data.to_bytes(8, "little"), ptx.GlobalMemory({"x": out}, ()))
    with pytest.raises(ptx.Fault, match="null pointer"):
        ptx.launch(code, 1, 32, bytes(8), ptx.GlobalMemory({"x": out}))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("foo.u32 %tmp0, %tmp1", "foo"),
        ("add.cc.u32 %tmp0, %tmp1, %tmp2", "cc"),
        ("cvt.rn.satfinite.e4m3x2.f32 %half0, %flt0, %flt1", ""),
        (
            "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%tmp0, %tmp1}, {%tmp0, %tmp1}, {%tmp2}, {%tmp3, %tmp4}",
            "mma",
        ),
        ("ld.global.b128 %tmp0, [%at]", ""),
    ],
)
def test_an_unknown_instruction_is_named(line: str, why: str) -> None:
    with pytest.raises(
        ptx.UnknownInstruction, match=rf"no definition of `{line.split(' ')[0].replace('.', '[.]')}.*PTX line \d+"
    ) as caught:
        interpret(line + ";", [np.zeros(32, np.uint32)], [])
    assert why in str(caught.value)
