"""The table of attention cases on the interpreter: the kernels that a GPU runs, every shipped spec, on shapes small enough for a laptop."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch, reference, spec, tuning
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.dispatch import Launch
from pagedattn.shipped import shipped
from tests.attention import test_attention
from tests.attention.cases import CASES, Case, Lengths

DECODE: Lengths = ((1, 1), (1, 16), (1, 17), (1, 150), (0, 5), (1, 65))
PREFILL: Lengths = ((2, 2), (16, 17), (65, 130), (33, 64))
# Rows of the table that are about something else than the kernel that runs; they stay small.
OPTIONS = (
    "full",
    "full-window7",
    "softcap1",
    "softcap0.001",
    "softcap1e+06",
    "sinks",
    "sinks-window1",
    "scale",
    *(f"steps-block{block_len}" for block_len in (16, 32, 64, 256)),
    "large-values-decode-f16-int4",
    "mixed-d96-block16",
    "mixed-d192-block16",
    "mixed-no-lse",
    "one-token",
    "no-queries",
    "empty",
    "layers",
    "out-given",
    "out-strided",
    "fused",
    "append-fused",
    "decode-group3",
    "prefill-group3",
    "decode-group20",
    "decode-group20-d192",
    "splits-fixed256",
    "splits-64",
    "splits-window",
    "splits-softcap",
    "decode-ramp60",
    "decode-ramp-60",
    "decode-ramp-splits",
    "rope-decode",
    "rope-prefill",
    "rope-group20-d192",
    "rope-all",
    "rope-odd-half",
    "rope-dynamic",
    "rope-window-splits",
    "mrope",
    "biases",
    "alibi",
    "alibi-full",
    "alibi-softcap",
    "alibi-splits",
    "mask-random",
    "mask-full",
    "mask-window",
    *(f"mask-{name}" for name in ("documents", "d256", "ends", "group8", "columns", "rows")),
    *(f"mask-{name}-int4" for name in ("documents", "random")),
    *(f"{name}-int8" for name in ("alibi-rope", "mask-tree", "rope-all", "rope-d96-bf16", "rope-prefill")),
    *(f"{name}-int4" for name in ("alibi-group20", "alibi-softcap", "rope-decode", "mrope", "rope-d256", "rope-window-splits")),
)


def specs() -> list[Case]:
    """A case for every decode and prefill kernel of the shipped set; the new rows are appended by the kernel for that."""
    cases = []
    for dtype in ("float16", "bfloat16"):
        for kv_dtype in spec.KV_DTYPES:
            for dim in (64, 96, 128, 192, 256):
                name, why = f"d{dim}-{dtype}{'-' + kv_dtype if kv_dtype else ''}", "every shipped spec"
                common = {"head_dim": dim, "dtype": dtype, "kv_dtype": kv_dtype, "block_len": 16, "num_kv_heads": 1, "append": True}
                for pack in spec.decode_heads(dim, kv_dtype or dtype):
                    heads = {8: 4, 16: 11}[pack]
                    for splits, cuts in (("flat", {}), ("cut", {"num_splits": 3})):
                        kind = {"num_heads": heads, **common}
                        cases.append(Case(f"{splits}-h{pack}-{name}", why, DECODE, keywords=cuts, **kind))
                        capped = {"softcap": 20.0, **cuts}
                        cases.append(Case(f"{splits}-h{pack}-{name}-general", why, DECODE[1:5], keywords=capped, **kind))
                cases.append(Case(f"prefill-{name}", why, PREFILL, num_heads=2, **common))
    return cases


@pytest.mark.parametrize("case", specs(), ids=lambda case: case.id)
def test_spec(case: Case) -> None:
    test_attention.test_case(case, "interpreter")


# sm_86 has smaller tiles throughout; sm_90 has those of sm_80 nearly everywhere.
OTHER_TARGETS = [
    (c, t) for c in specs() if c.dtype == "float16" for t in ("sm_86", "sm_90") if c.head_dim == 128 or (t == "sm_86" and not c.kv_dtype)
]


@pytest.mark.parametrize(("case", "target"), OTHER_TARGETS, ids=lambda x: getattr(x, "id", x))
def test_target(case: Case, target: str) -> None:
    test_attention.test_case(case, f"interpreter:{target}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_row_for_long_sequences(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel on sequences that are not long, which is enough to find what is wrong with it."""
    monkeypatch.setattr(tuning, "LONG_TILES", 0)
    names = []
    run = InterpreterDevice.launch

    def launch(self: InterpreterDevice, launched: Launch, *arguments: object) -> None:
        names.append(launched.spec.name)
        run(self, launched, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(InterpreterDevice, "launch", launch)
    (case,) = (c for c in specs() if c.id == f"prefill-d128-{dtype}")
    test_attention.test_case(case, "interpreter:sm_90")
    assert any("_q256_" in name for name in names)


# The SM70 family has a main loop of its own, and on sm_70 an mma and layouts of its own.
SM70_TARGETS = ("sm_70", "sm_75")
SM70_OPTIONS = (
    "full-window7",
    "full-prefill",
    "window64",
    "softcap1",
    "softcap1e+06",
    "sinks-window1",
    "mixed-d96-block16",
    "mixed-d192-block16",
    "mixed-no-lse",
    "prefill-group3",
    "prefill-ramp60",
    "alibi-softcap",
    "mask-random",
    "mask-window",
    *(f"mask-{name}" for name in ("documents", "d96", "d256", "ends", "group8", "columns", "rows", "rows-d256")),
    "layers",
    "out-strided",
    "fused",
)


def sm70_decode() -> list[tuple[Case, str]]:
    """A case for every decode kernel of sm_70 and sm_75; of a cut's only those of head_dim 128, as the main loop is that of a flat list."""
    wanted = [_decode_id(s) for s in shipped(["sm_75"], ops=["decode"])]
    cases = {c.id: c for c in specs()}
    return [
        (cases[name], target)
        for target in SM70_TARGETS
        for name in wanted
        if (name.startswith("flat") or "-d128-" in name) and int(name.split("-h")[1].split("-")[0]) in _packs(cases[name], target)
    ]


def _rows_of(s: spec.KernelSpec) -> str:
    return f"d{s.head_dim}-{s.dtype}{'-' + str(s.kv_dtype) if s.quantised else ''}"


def _decode_id(s: spec.KernelSpec) -> str:
    return f"{s.splits}-h{s.heads}-{_rows_of(s)}{'-general' if s.general else ''}"


def _packs(case: Case, target: str) -> tuple[int, ...]:
    return spec.decode_heads(case.head_dim, case.kv_dtype or case.dtype, arch.parse(target).mma)


@pytest.mark.parametrize(("case", "target"), sm70_decode(), ids=lambda x: getattr(x, "id", x))
def test_sm70_decode(case: Case, target: str) -> None:
    device = InterpreterDevice(target)
    device.history = []
    lengths = ((1, 1), (1, 17), (0, 5), (1, 150), (1, 64))
    test_attention.test_case(dataclasses.replace(case, lengths=lengths), device)
    assert len(device.history) == 2  # append, decode


SM70_DECODE_OPTIONS = (
    "window7",
    "softcap1",
    "softcap1e+06",
    "softcap1-int8",
    "sinks-window1",
    "scale-int4",
    "mixed-d96-block16-int4",
    "mixed-no-lse",
    "one-token",
    "layers-int8",
    "out-strided",
    "fused",
    "append-fused",
    "decode-group20",
    "decode-group20-int4",
    "splits-fixed256",
    "splits-window-int8",
    "splits-group20",
    "decode-ramp60",
    "decode-ramp-60-int4",
    "decode-ramp-splits",
    "offset-decode-f16-int4",
    "large-values-decode-f16-int8",
    "small-values-decode-f16-int4",
)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in SM70_DECODE_OPTIONS], ids=lambda case: case.id)
@pytest.mark.parametrize("target", SM70_TARGETS)
def test_sm70_decode_options(case: Case, target: str) -> None:
    lengths = tuple((min(q, 1), min(k, 220)) for q, k in case.lengths)
    test_attention.test_case(dataclasses.replace(case, lengths=lengths, dtype="float16"), f"interpreter:{target}")


@pytest.mark.parametrize("case", [c for c in specs() if c.dtype == "float16" and c.id.startswith("prefill")], ids=lambda case: case.id)
@pytest.mark.parametrize("target", SM70_TARGETS)
def test_sm70_prefill(case: Case, target: str) -> None:
    test_attention.test_case(case, f"interpreter:{target}")


@pytest.mark.parametrize("case", [c for c in CASES if c.id in SM70_OPTIONS], ids=lambda case: case.id)
@pytest.mark.parametrize("target", SM70_TARGETS)
def test_sm70_prefill_options(case: Case, target: str) -> None:
    lengths = tuple((min(q, 40), min(k, 40 if q > 40 else 250)) for q, k in case.lengths if q > 1)
    test_attention.test_case(dataclasses.replace(case, lengths=lengths, dtype="float16"), f"interpreter:{target}")


@pytest.mark.parametrize("keywords", [{}, {"window_size": 600}], ids=["", "window"])
@pytest.mark.parametrize("target", ["sm_80", *SM70_TARGETS])
def test_prefill_in_parts(target: str, keywords: dict[str, int]) -> None:
    """Few query tiles on a GPU of many multiprocessors: several CTAs share a tile's keys, and one of them adds the parts up."""
    device = InterpreterDevice(target)
    device.sm_count = 32
    case = Case("parts", "a window may leave parts without keys", ((40, 1100), (3, 70)), num_heads=2, num_kv_heads=1, keywords=keywords)
    device.history = []
    test_attention.test_case(case, device)
    (counts,) = device.history
    assert counts.ctas >= 2 * len(case.lengths)  # both heads of a sequence share its only tile


PREFILL_KINDS = {"parts": {}, "parts-general": {"softcap": 5000.0}, "whole-general": {"softcap": 20.0}}  # "whole": specs()


@pytest.mark.parametrize("kind", PREFILL_KINDS)
@pytest.mark.parametrize("kv_dtype", spec.KV_DTYPES)
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_every_kind_of_prefill(dim: int, kv_dtype: str | None, kind: str) -> None:
    device, keywords, splits = InterpreterDevice(), PREFILL_KINDS[kind], kind.partition("-")[0]
    device.sm_count, device.history = 8 if splits == "parts" else 1, []
    lengths = ((33, 1100),) if splits == "parts" else ((33, 150), (20, 90))
    case = Case(splits, "a tile of every kernel", lengths, head_dim=dim, kv_dtype=kv_dtype, num_heads=1, num_kv_heads=1, keywords=keywords)
    test_attention.test_case(case, device)
    (counts,) = device.history
    assert counts.ctas >= 2
    assert f"_{splits}_{'general_' if keywords else ''}sm80" in counts.kernel


@pytest.mark.parametrize(("scale", "cap", "bound"), [(1e-3, 50.0, 2.5e-5), (1e-3, 95.0, 5e-7), (5.0, 500.0, 5e-7)])
def test_small_scores_under_a_cap(scale: float, cap: float, bound: float) -> None:
    """Within 5e-7 of the cap; where that is much, tanh has more digits. With one key in view, the log-sum-exp is that key's score."""
    cache = pa.KVCache(1, num_kv_heads=1, head_dim=64, device="interpreter")
    batch = cache.extend([cache.new_sequence()], [40])
    q, k, v = np.random.default_rng(0).standard_normal((3, 40, 1, 64)).astype(np.float16)
    q *= np.float16(1 if scale < 1 else 2**-10)
    rows, keys, values = map(cache.device.asarray, (q, k, v))
    options = {"softcap": cap, "softmax_scale": scale, "window_size": 1}
    _, lse = pa.paged_attention(rows, cache, batch, k=keys, v=values, return_lse=True, **options)
    scores = scale * np.einsum("thd,thd->th", q.astype(np.float64), k.astype(np.float64))
    assert np.abs(scores).max() < 0.2
    np.testing.assert_allclose(lse, cap * np.tanh(scores / cap), rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("lengths", "keywords"),
    [
        (((32, 160),), {"window_size": 95}),  # one row of 32, the last, does not keep the first key of the second tile
        (((40, 102),), {}),
        (((40, 63),), {"causal": False}),  # all but the tile's last key
    ],
    ids=["window", "diagonal", "end"],
)
@pytest.mark.parametrize("target", SM70_TARGETS)
def test_one_key_of_a_tile_is_cut(target: str, lengths: tuple[tuple[int, int], ...], keywords: dict[str, Any]) -> None:
    case = Case("cut", "", lengths, head_dim=64, num_heads=1, num_kv_heads=1, keywords=keywords)
    test_attention.test_case(case, f"interpreter:{target}")


@pytest.mark.parametrize(
    ("dim", "kv_dtype", "tokens", "softcap"),
    [(64, None, 20, None), (64, "int8", 20, None), (128, None, 20, None), (64, None, 100, 1e6), (128, "int8", 100, 1e6)],
)
def test_scores_far_below_zero(dim: int, kv_dtype: str | None, tokens: int, softcap: float | None) -> None:
    """The half of a cut tile in which a warp's rows keep no key must not count as scores of 0; nor a tile, where scores are adjusted."""
    v = np.random.default_rng(0).standard_normal((tokens, 1, dim)).astype(np.float16)
    cache = pa.KVCache(2, num_kv_heads=1, head_dim=dim, kv_dtype=kv_dtype, device="interpreter")
    batch = cache.extend([cache.new_sequence()], [tokens])
    q = np.full((tokens, 1, dim), 8, np.float16)
    out, lse = pa.paged_attention(
        cache.device.asarray(q), cache, batch, k=cache.device.asarray(-q), v=cache.device.asarray(v), softcap=softcap, return_lse=True
    )
    seen = np.arange(1, tokens + 1)[:, None]
    np.testing.assert_allclose(lse, np.log(seen) - 64 * dim**0.5, atol=1e-3)
    mean = np.cumsum(v.astype(np.float64), axis=0) / seen[:, None]
    np.testing.assert_allclose(out, mean, atol=0.02 if kv_dtype else 2e-3)


@pytest.mark.parametrize("case", [c for c in CASES if c.id in OPTIONS], ids=lambda case: case.id)
def test_options(case: Case) -> None:
    lengths = tuple((min(q, 40), min(k, 40 if q > 40 else 400)) for q, k in case.lengths)
    test_attention.test_case(dataclasses.replace(case, lengths=lengths), "interpreter")


@pytest.mark.parametrize("target", ["sm_70", "sm_75"])
@pytest.mark.parametrize("name", ["alibi", "alibi-group20-int4", "rope-all-int8"])
def test_changes_in_the_other_family(name: str, target: str) -> None:
    case = next(c for c in CASES if c.id == name)
    test_attention.test_case(dataclasses.replace(case, lengths=((1, 70), (1, 1), (0, 20), (1, 129))), f"interpreter:{target}")


@pytest.mark.parametrize("target", ["sm_80", "sm_70"])
def test_last_sequence_is_empty(target: str) -> None:
    """Decode looks one tile ahead, past its last segment: not before a block table whose first row it stands on."""
    case = Case("ends-empty", "tiles of two blocks", ((1, 5), (0, 0)), head_dim=64, block_len=16, kv_dtype="int8")
    test_attention.test_case(case, f"interpreter:{target}")


def test_options_are_rows_of_the_table() -> None:
    assert {*OPTIONS, *SM70_OPTIONS, *SM70_DECODE_OPTIONS} - {c.id for c in CASES} == set()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_gather(dim: int, dtype: str) -> None:
    cache = pa.KVCache(9, num_kv_heads=2, head_dim=dim, block_len=16, dtype=dtype, device="interpreter")
    rows = np.random.default_rng(0).integers(0, 2**16, (2, 60, 2, dim), np.uint16).view(pa.dtypes.of(dtype).numpy)
    batch = cache.extend([cache.new_sequence() for _ in range(3)], [20, 1, 39])
    pa.append(rows[0], rows[1], cache, batch)
    for found, wanted in zip(pa.gather(cache, batch), rows, strict=True):
        np.testing.assert_array_equal(found.view(np.uint16), wanted.view(np.uint16))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
def test_merge(dim: int, dtype: str) -> None:
    device = InterpreterDevice()
    rng = np.random.default_rng(dim)
    kind = pa.dtypes.of(dtype).numpy
    outs = [device.asarray(rng.standard_normal((5, 3, dim)).astype(kind)) for _ in range(3)]
    lses = [device.asarray(rng.standard_normal((5, 3)).astype(np.float32)) for _ in range(3)]
    lses[0][2] = -np.inf
    out, lse = device.empty((5, 3, dim), kind), device.empty((5, 3), np.float32)
    device.merge(outs, lses, out, lse)
    expected, expected_lse = reference.merge(outs, lses)
    np.testing.assert_allclose(out.astype(np.float64), expected, rtol=2.0 ** -(10 if dtype == "float16" else 7), atol=2e-5)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-6, atol=1e-5)


def test_every_shipped_spec_is_run() -> None:
    """What the tests above name is what dispatch would take, for each of the shipped kernels."""
    ids = {c.id for c in specs()}
    for s in shipped(["sm_80"]):
        if s.op == "decode" and not s.fused:  # else tests/attention/test_fused.py's
            assert _decode_id(s) in ids
        elif s.op == "prefill":
            assert f"prefill-{_rows_of(s)}" in ids
            assert f"{s.splits}{'-general' if s.general else ''}" in {"whole", *PREFILL_KINDS}
    run = {(c.id, target) for c, target in sm70_decode()}
    for s in shipped(SM70_TARGETS, ops=["decode"]):
        assert s.splits == "cut" or (_decode_id(s), s.arch) in run


@pytest.mark.parametrize("kv_dtype", [None, "int8", "int4"])
def test_a_score_that_outgrows_the_others_is_seen_wherever_it_stands(kv_dtype: str | None) -> None:
    """One key of the second tile or step, by one head: of every score that a lane holds, one. Unseen, its probability is infinite."""
    places = [(key, head) for key in range(32, 36) for head in (0, 1, 8, 9)]
    rng = np.random.default_rng(0)
    cache = pa.KVCache(16 * len(places), num_kv_heads=1, head_dim=64, block_len=16, kv_dtype=kv_dtype, device="interpreter")
    sequences = [cache.new_sequence() for _ in places]
    k = np.zeros((len(places), 70, 1, 64), np.float16)
    v = rng.standard_normal(k.shape).astype(np.float16)
    q = np.zeros((len(places), 16, 64), np.float16)
    for i, (key, head) in enumerate(places):
        k[i, key], q[i, head] = 3, 1  # a score of 64 * 3 / 8, where all others are 0
    pa.append(k.reshape(-1, 1, 64), v.reshape(-1, 1, 64), cache, cache.extend(sequences, [70] * len(places)))
    out = pa.paged_attention(q, cache, cache.batch(sequences))
    for i, (key, head) in enumerate(places):
        assert np.abs(out[i, head] - v[i, key, 0]).max() < (0.3 if kv_dtype == "int4" else 0.03), (key, head)


@pytest.mark.parametrize("kv_dtype", ["int8", "int4"])
def test_scales_grow_within_a_segment(kv_dtype: str) -> None:
    """V grows from 1 to 60,000 behind the first 64 keys; later scores are higher, but not by what moves the reference: scales must."""
    rng = np.random.default_rng(0)
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=64, kv_dtype=kv_dtype, device="interpreter")
    k, v = np.zeros((200, 1, 64), np.float16), rng.uniform(-1, 1, (200, 1, 64)).astype(np.float16)
    k[64:], v[64:] = 0.3, v[64:] * np.float16(60000)
    sequence = cache.new_sequence()
    pa.append(k, v, cache, cache.extend([sequence], [200]))
    batch = cache.batch([sequence])
    q = np.ones((1, 4, 64), np.float16)
    dense_k, dense_v = (x.astype(np.float64) for x in pa.gather(cache, batch))
    expected = reference.attention(q.astype(np.float64), dense_k, dense_v).out
    found = pa.paged_attention(q, cache, batch, num_splits="fixed:2048")  # one segment, which one warp has
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("window_size", [None, 40])
@pytest.mark.parametrize("kv_dtype", [None, "int8", "int4"])
def test_unused_rows_change_no_bit(kv_dtype: str | None, window_size: int | None) -> None:
    """Rows past the end hold NaN, or large numbers that a scale could be; nor do keys before the window count."""
    shape = pa.BlockLayout(2, 64, 32, 1, "float16", kv_dtype)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 110, 2, 64)).astype(np.float16)
    q = rng.standard_normal((3, 16, 64)).astype(np.float16)
    bits = []
    for byte in (0xFF, 0x7B, 0x00):  # float16: NaN, 61280, 0
        pool = np.full((8, shape.block_bytes), byte, np.uint8)
        cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=32, kv_dtype=kv_dtype, device="interpreter", pool=pool)
        sequences = [cache.new_sequence() for _ in range(3)]
        pa.append(k, v, cache, cache.extend(sequences, [70, 35, 5]))
        bits.append(pa.paged_attention(q, cache, cache.batch(sequences), window_size=window_size).view(np.uint16))
    np.testing.assert_array_equal(bits[1], bits[0])
    np.testing.assert_array_equal(bits[2], bits[0])
