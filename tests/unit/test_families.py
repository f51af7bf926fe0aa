"""Which family's source a target gets, what may be asked for instead, and what is refused; budgets against the documented limits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch, devices, dispatch, nvrtc, tuning
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.explain import explain_shape
from pagedattn.footprint import STATIC_SHARED_BYTES
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec


@pytest.mark.parametrize(
    ("target", "family", "mma"),
    [("sm_70", "sm70", "m8n8k4"), ("sm_75", "sm70", "m16n8k8"), ("sm_80", "sm80", "m16n8k16"), ("sm_121", "sm80", "m16n8k16")],
)
@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_a_target_gets_its_family(op: str, target: str, family: str, mma: str) -> None:
    spec = KernelSpec(op=op, arch=target)
    assert (spec.family, spec.mma) == (family, mma)
    assert (mma in spec.name) == (family == "sm70")
    assert spec.generation == arch.parse(target)
    assert KernelSpec(op="append", arch=target).mma is None


@pytest.mark.parametrize(("mma", "like"), [(None, "sm_75"), ("m16n8k8", "sm_75"), ("m8n8k4", "sm_70")])
@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_the_old_source_for_a_new_target_has_the_tiles_of_the_old(op: str, mma: str | None, like: str) -> None:
    spec, old = KernelSpec(op=op, arch="sm_90", family="sm70", mma=mma), KernelSpec(op=op, arch=like)
    fields = ("family", "mma", "cta_s", "cta_q", "stages", "warps", "min_ctas", "heads", "splits", "shared_bytes", "shared_pieces")
    assert [getattr(spec, f) for f in fields] == [getattr(old, f) for f in fields]
    assert spec.name == old.name.replace(old.arch.replace("_", ""), "sm90")


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        (
            {"arch": "sm_75", "dtype": "bfloat16"},
            pa.UnsupportedError,
            "bfloat16 needs the SM80 family, .*; got sm_75",
        ),
        (
            {"arch": "sm_90", "family": "sm70", "dtype": "bfloat16"},
            pa.UnsupportedError,
            "got sm_90 with the SM70 family",
        ),
        ({"arch": "sm_75", "family": "sm80"}, pa.UnsupportedError, "family 'sm80' needs sm_80 and up .*; got sm_75. Leave `family` None"),
        ({"arch": "sm_70", "mma": "m16n8k8"}, pa.UnsupportedError, r"mma\.m16n8k8 needs sm_75 and up; got sm_70. Leave `mma` None"),
        ({"arch": "sm_80", "family": "sm80", "mma": "m8n8k4"}, pa.ArgumentError, "`mma` of family 'sm80' must be 'm16n8k16'; got 'm8n8k4'"),
        ({"arch": "sm_75", "family": "sm70", "mma": "m16n8k16"}, pa.ArgumentError, "must be 'm8n8k4' or 'm16n8k8'; got 'm16n8k16'"),
        ({"family": "sm60"}, pa.ArgumentError, r"`family` must be one of \('sm70', 'sm80'\) or None; got 'sm60'"),
        ({"mma": "m8n8k16"}, pa.ArgumentError, "`mma` must be one of .*; got 'm8n8k16'"),
        ({"op": "append", "mma": "m16n8k16"}, pa.ArgumentError, "`mma` means nothing for op 'append'"),
        ({"arch": "sm_75", "stages": 2}, pa.ArgumentError, "`stages` of the SM70 family's decode must be 1; got 2"),
        ({"arch": "sm_70", "head_dim": 256, "heads": 16}, pa.UnsupportedError, "must be of 8 heads for head_dim 256 in float16"),
        ({"arch": "sm_75", "warps": 16, "head_dim": 256}, pa.UnsupportedError, "bytes of shared memory per CTA; sm_75 grants 65536"),
        ({"arch": "sm_90", "family": "sm70", "warps": 16, "head_dim": 256}, pa.UnsupportedError, "; sm_75 grants 65536"),
        ({"fused": True, "splits": "cut"}, pa.ArgumentError, "`fused` must be False but for decode with splits 'flat' of family 'sm80'"),
        ({"fused": True, "arch": "sm_75"}, pa.ArgumentError, "`fused` must be False but for"),
        ({"fused": True, "op": "append"}, pa.ArgumentError, "`fused` must be False but for"),
        ({"splits": "whole"}, pa.ArgumentError, r"`splits` of op 'decode' must be one of \('flat', 'cut'\); got 'whole'"),
        ({"splits": "cut", "op": "prefill"}, pa.ArgumentError, r"`splits` of op 'prefill' must be one of \('whole', 'parts'\); got 'cut'"),
        ({"splits": ""}, pa.ArgumentError, r"`splits` of op 'decode' must be one of \('flat', 'cut'\); got ''"),
        ({"splits": False, "op": "prefill"}, pa.ArgumentError, r"`splits` of op 'prefill' must be one of \('whole', 'parts'\); got False"),
        ({"splits": "parts", "op": "gather"}, pa.ArgumentError, "`splits` means nothing for op 'gather'; got 'parts'"),
        ({"general": True, "op": "append"}, pa.ArgumentError, "`general` means nothing for op 'append'; got True"),
        ({"general": "no"}, pa.ArgumentError, "`general` must be True or False; got 'no'"),
        ({"fused": 1}, pa.ArgumentError, "`fused` must be True or False; got 1"),
        ({"arch": "sm_60"}, pa.UnsupportedError, "sm_60 is not a target of this version; the nearest is sm_70"),
    ],
)
def test_refused(fields: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        KernelSpec(**{"op": "decode", **fields})  # type: ignore[arg-type]


def test_shipped_has_float16_only_below_sm_80() -> None:
    for target in ("sm_70", "sm_75"):
        specs = shipped([target])
        assert {s.dtype for s in specs} == {"float16"}
        assert {s.op for s in specs} == {"decode", "prefill", "varlen", "append", "gather", "merge", "ranges"}
        assert {s.kv_dtype for s in specs} == {"float16", "int8", "int4"}
        assert {s.head_dim for s in specs} == {64, 96, 128, 192, 256}
        granted = {"sm_70": 96 * 1024, "sm_75": 64 * 1024}[target]
        assert max(s.shared_bytes for s in specs) + STATIC_SHARED_BYTES <= granted
    with pytest.raises(pa.UnsupportedError, match="bfloat16 needs the SM80 family"):
        shipped(["sm_75"], ["bfloat16"])


def test_one_kernel_looks_through_masks_of_all_types() -> None:
    specs = shipped(["sm_90"])
    assert len(specs) == len(set(specs))
    assert [s for s in specs if s.op == "ranges"] == [KernelSpec("ranges", "bfloat16", "int8", 64, "sm_90")]


@pytest.mark.parametrize("mma", arch.MMAS)
def test_every_head_dim_and_type_has_a_pack_of_eight(mma: str) -> None:
    assert {(d, 8, b) for d in (64, 96, 128, 192, 256) for b in (16, 8, 4)} <= set(tuning.DECODE_OF[mma])


def test_pieces_lie_where_there_is_room() -> None:
    """Two of each warp in shared memory, one, or none; the workspace holds what is left, beside two of each CTA."""
    for dim, pieces in ((64, 2), (128, 1)):
        spec = KernelSpec(op="decode", arch="sm_75", head_dim=dim)
        assert spec.shared_pieces == pieces
        assert spec.ring_bytes >= spec.piece_bytes
    spec = KernelSpec(op="decode", arch="sm_75", heads=16)
    assert spec.shared_pieces == 0
    assert spec.ring_bytes < spec.piece_bytes


def test_a_gpu_may_run_the_kernels_of_an_older_generation() -> None:
    for source in ("sm_70", "sm_75"):
        assert arch.borrowed(source, arch.parse("sm_90")).name == source
    for source, own in (("sm_80", "sm_90"), ("sm_75", "sm_70")):
        with pytest.raises(pa.ArgumentError, match=rf"sm_70 or sm_75, not newer than the GPU's own {own}; got '\+{source}'"):
            arch.borrowed(source, arch.parse(own))


@pytest.mark.parametrize("name", ["cpu+sm_75", "interpreter:sm_90+sm_75", "cuda:x+sm_75"])
def test_only_gpus_run_anothers_kernels(name: str) -> None:
    with pytest.raises(pa.ArgumentError, match=r"`device` must be 'cuda', 'cuda:N', 'cuda:N\+sm_75', .*; got "):
        devices.get(name)


class Borrower(InterpreterDevice):
    """Has one target and runs the kernels of another, like "cuda+sm_75" on a newer GPU."""

    @property
    def source(self) -> arch.Arch:
        return arch.parse("sm_75")


@pytest.mark.parametrize(
    "fields",
    [
        {"head_dim": "128"},
        {"head_dim": None},
        {"head_dim": 128.0},
        {"warps": True},
        {"stages": True},
        {"cta_s": 16.0},
        {"heads": 8.0},
        {"min_ctas": np.array([1, 2])},
    ],
    ids=str,
)
def test_numbers_of_a_spec_are_integers(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(pa.ArgumentError, match=f"`{name}` must be a positive integer"):
        KernelSpec("decode", **fields)


def test_explain_says_which_family_and_why() -> None:
    for device, text in (
        (InterpreterDevice("sm_70"), r"on interpreter:sm_70: the SM70 family \(mma\.m8n8k4\), for sm_70 has no cp\.async\n"),
        (InterpreterDevice("sm_86"), r"the SM80 family \(mma\.m16n8k16\), for sm_86 has cp\.async"),
        (Borrower("sm_90"), r"the SM70 family \(mma\.m16n8k8\), .*; the device's name asks for its kernels, compiled for sm_90"),
    ):
        cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device=device)
        batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [1, 30])
        told = pa.explain(np.zeros((31, 8, 64), np.float16), cache, batch)
        assert [s.spec.family if s.spec else "" for s in told.steps] == [device.source.family] * 2
        assert {s.spec.arch for s in told.steps if s.spec} == {device.arch.name}
        assert re.search(text, str(told))


@pytest.mark.parametrize(
    ("length", "cp", "splits", "text"),
    [
        (40, None, "whole", ""),
        (2100, None, "parts", "; 4 CTAs share the keys of each"),
        (40, pa.ContextParallel(1, 2), "parts", "; 2 ranks share the keys"),
        (4100, pa.ContextParallel(1, 2), "parts", "; 4 CTAs share the keys of each; 2 ranks share the keys"),
    ],
)
def test_explain_says_who_shares_keys(length: int, cp: pa.ContextParallel | None, splits: str, text: str) -> None:
    device = InterpreterDevice("sm_80")
    device.sm_count = 4
    cache = pa.KVCache(260, num_kv_heads=1, head_dim=64, block_len=16, device=device, cp=cp)
    sequence = cache.new_sequence()
    cache.extend([sequence], [length - 40])
    (step,) = pa.explain(np.zeros((40, 4, 64), np.float16), cache, cache.extend([sequence], [40])).steps
    assert step.spec is not None
    assert step.spec.splits == splits
    assert step.reason.partition(" heads")[2] == text


def test_a_cache_of_bfloat16_is_refused_before_anything_is_stored() -> None:
    with pytest.raises(pa.UnsupportedError, match=r"bfloat16 needs the SM80 family.*got sm_75"):
        pa.KVCache(4, num_kv_heads=2, head_dim=64, dtype="bfloat16", device="interpreter:sm_75")


@pytest.mark.parametrize(("target", "fits"), [("sm_70", False), ("sm_75", True)])
def test_cuda_13_compiles_for_turing_and_tells_who_compiles_for_volta(monkeypatch: pytest.MonkeyPatch, target: str, fits: bool) -> None:
    library = type("Nvrtc", (), {"getSupportedArchs": staticmethod(lambda: [75, 80, 90, 100])})
    monkeypatch.setattr(nvrtc, "_library", lambda: (library, (13, 0)))
    if fits:
        assert nvrtc.require(target) is None
        return
    with pytest.raises(pa.UnsupportedError, match=r"sm_70 needs NVRTC 12\.x; found 13\.0\. Install pagedattn\[cuda12\]"):
        nvrtc.require(target)


@pytest.mark.parametrize(
    ("heads", "keywords", "unshared", "text"),
    [
        (8, {}, True, ""),
        (8, {}, False, "the batch is not `unshared`"),
        (8, {"num_splits": 2}, True, "`num_splits` cuts sequences"),
        (8, {"rope": pa.Rope()}, True, "rows change on their way"),
        (64, {}, True, "several packs of heads"),
    ],
)
def test_explain_tells_what_keeps_a_step_from_being_one_launch(heads: int, keywords: dict[str, Any], unshared: bool, text: str) -> None:
    cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="interpreter:sm_90")
    batch = pa.Batch([[0], [1]], [1, 1], [3, 5], unshared=unshared, device=cache.device)
    k = np.zeros((2, 2, 64), np.float16)
    steps = pa.explain(np.zeros((2, heads, 64), np.float16), cache, batch, k=k, v=k, **keywords).steps
    assert [step.spec.op for step in steps if step.spec] == ["append"] * bool(text) + ["decode"]
    assert (f"(not decode, as {text}" if text else "decode writes the rows of k and v") in steps[0].reason


def test_a_list_of_tiles_that_32_bits_do_not_count_is_refused() -> None:
    shape: dict[str, Any] = {"head_dim": 64, "block_len": 256, "device": "interpreter:sm_90"}
    with pytest.raises(pa.UnsupportedError, match="list of key tiles must stay below 2147483648 entries, one for every 16 keys"):
        explain_shape(num_heads=64, num_kv_heads=64, seqlens_k=[1 << 20] * 512, **shape)
    cache = pa.KVCache(1, num_kv_heads=64, head_dim=64, block_len=256, device="interpreter:sm_90")
    batch = pa.Batch(np.zeros((512, 1 << 12), np.int32), [1] * 512, [1 << 20] * 512, device=cache.device)
    for cuts in (0, 4, -512):
        with pytest.raises(pa.UnsupportedError, match="list of key tiles must stay below 2147483648 entries"):
            dispatch.plan_decode(cache.device, cache.layout, 1, batch, cuts)
    assert explain_shape(num_heads=64, num_kv_heads=8, seqlens_k=[1 << 20] * 512, **shape).steps


def test_a_shape_takes_no_memory() -> None:
    shape: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 128, "device": "interpreter:sm_90"}
    steps = explain_shape(**shape, seqlens_k=[10**9], seqlens_q=[10**9]).steps  # of queries alone 16 TB
    assert [step.spec.op for step in steps if step.spec] == ["prefill"]


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        ({}, ""),
        ({"rope": pa.Rope("none")}, ""),
        ({"rope": pa.Rope()}, "it turns, biases or scales the queries, a CTA"),
        ({"logn_max_position": 8}, "it turns, biases or scales the queries, a CTA"),
        ({"q_bias": np.zeros((8, 64), np.float16)}, "it turns, biases or scales the queries, a CTA"),
        ({"k": 1}, "it writes the rows of k and v (not decode, as not every sequence has one query), a CTA"),
        ({"k": 1, "rope": pa.Rope()}, "one query) and turns, biases or scales the queries, a CTA"),
        ({"k": 1, "k_bias": np.zeros((2, 64), np.float16)}, "it adds biases to and writes the rows of k and v"),
    ],
    ids=str,
)
def test_explain_names_what_append_does_first(keywords: dict[str, Any], text: str) -> None:
    cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="interpreter")
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [30, 1])
    if "k" in keywords:
        keywords = {**keywords, **dict.fromkeys("kv", np.zeros((31, 2, 64), np.float16))}
    steps = pa.explain(np.zeros((31, 8, 64), np.float16), cache, batch, **keywords).steps
    assert [step.spec.op for step in steps if step.spec] == ["append"] * bool(text) + ["decode", "prefill"]
    assert text in steps[0].reason
    assert steps[0].grid == 31 or not text
