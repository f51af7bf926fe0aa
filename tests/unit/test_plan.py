"""Plans: a call that another of its kind preceded launches what it would have launched first, and refuses what it would have refused."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch as archs
from pagedattn import dispatch, ops, plan, workspace
from pagedattn.errors import DeviceFault
from pagedattn.kernel import Kernel
from pagedattn.nvrtc import Compiled
from pagedattn.params import EVICT_FIRST, EVICT_NORMAL

pytest.importorskip("cupy", reason="CuPy's arrays stand for a GPU's")

from tests.unit.fake_gpu import FakeGpu, Noted

HEADS, KV_HEADS, DIM = 8, 2, 64
LENGTHS = {"decode": ([1, 1, 1], [40, 3, 17]), "prefill": ([20, 5, 7], [40, 5, 17]), "mixed": ([1, 5, 0], [40, 5, 17]), "none": ([0], [5])}


def cache_on(gpu: FakeGpu, kv_dtype: str | None = None) -> pa.KVCache:
    return pa.KVCache(16, num_kv_heads=KV_HEADS, head_dim=DIM, block_len=16, num_layers=3, kv_dtype=kv_dtype, device=gpu)


def batch_on(gpu: FakeGpu, kind: str = "decode") -> pa.Batch:
    seqlens_q, seqlens_k = LENGTHS[kind]
    return pa.Batch(np.arange(3 * len(seqlens_q), dtype=np.int32).reshape(-1, 3), seqlens_q, seqlens_k, device=gpu)


def rows(gpu: FakeGpu, count: int, heads: int = HEADS, padding: int = 0) -> Any:
    return gpu.asarray(np.zeros((count, heads + padding, DIM), np.float16))[:, :heads]


def without_workspace(launch: Noted) -> tuple[Any, ...]:
    return launch.name, launch.grid, {k: v for k, v in launch.params.items() if k not in ("partial_o", "partial_count")}, launch.stream


@pytest.mark.parametrize("kv_dtype", [None, "int4"])
@pytest.mark.parametrize("kind", LENGTHS)
def test_planned_launches_are_those_of_a_fresh_call(kind: str, kv_dtype: str | None) -> None:
    gpu = FakeGpu()
    cache, batch, rng = cache_on(gpu, kv_dtype), batch_on(gpu, kind), np.random.default_rng(0)
    n = batch.num_tokens
    some = {
        "softmax_scale": (None, 0.5, np.float32(0.5)),
        "causal": (True, False),
        "window_size": (None, 1, 7),
        "softcap": (None, 30.0),
        "num_splits": (None, 1, 4, "fixed:64"),
    }
    planned = 0
    for _ in range(120):
        q, out = rows(gpu, n, padding=rng.integers(3)), rows(gpu, n, padding=rng.integers(3))
        k, v = rows(gpu, n, KV_HEADS, rng.integers(3)), rows(gpu, n, KV_HEADS)
        options = {name: values[rng.integers(len(values))] for name, values in some.items()}
        options.update(layer=int(rng.integers(3)), stream=int(rng.integers(3)) * 16, return_lse=False)
        options["sinks"] = gpu.asarray(np.zeros(HEADS, np.float32)) if rng.integers(2) else None
        before = len(batch.plans)
        pa.append(k, v, cache, batch, layer=options["layer"], stream=options["stream"])
        pa.paged_attention(q, cache, batch, out=out, **options)
        planned += len(batch.plans) == before
        first, gpu.launches = gpu.launches, []
        batch.plans.clear() if not rng.integers(20) else None
        fresh = batch_on(gpu, kind)
        for name in ("block_table", "cu_seqlens_q", "cu_seqlens_k"):
            setattr(fresh, name, getattr(batch, name))
        pa.append(k, v, cache, fresh, layer=options["layer"], stream=options["stream"])
        pa.paged_attention(q, cache, fresh, out=out, **options)
        assert [without_workspace(x) for x in first] == [without_workspace(x) for x in gpu.launches]
        assert all((x.params["partial_o"] > 0) == (y.params["partial_o"] > 0) for x, y in zip(first, gpu.launches, strict=True))
        gpu.launches = []
    assert planned >= 5


def test_a_planned_call_selects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    pa.paged_attention(q, cache, batch, out=out)
    monkeypatch.setattr(dispatch, "select", None)
    other = rows(gpu, 3)
    pa.paged_attention(other, cache, batch, out=out, layer=2)
    first, second = gpu.launches
    moved = {"q": other.data.ptr, "pool": cache.pool.data.ptr + 2 * cache.layout.layer_bytes}
    assert second.params == {**first.params, **moved}
    with pytest.raises(TypeError):  # another kind of call does select
        pa.paged_attention(q, cache, batch, out=out, causal=False)


def test_calls_with_a_rope_are_planned_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer after layer: the queries turn in append's launch, beside the new rows, and wait where the batch keeps them."""
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    k, v, rope = rows(gpu, 3, KV_HEADS), rows(gpu, 3, KV_HEADS), pa.Rope(dim=32)
    pa.paged_attention(q, cache, batch, k=k, v=v, out=out, rope=rope)
    monkeypatch.setattr(dispatch, "select", None)
    pa.paged_attention(q, cache, batch, k=k, v=v, out=out, rope=pa.Rope(dim=32), layer=1)
    assert [x.name.split("_")[0] for x in gpu.launches] == ["append", "decode"] * 2
    append, decode = gpu.launches[2:]
    assert append.params["q"] == q.data.ptr
    assert append.params["out"] == decode.params["q"] == gpu.launches[0].params["out"] != q.data.ptr
    with pytest.raises(TypeError):  # another rope is another kind of call
        pa.paged_attention(q, cache, batch, k=k, v=v, out=out, rope=pa.Rope())


def unshared_on(gpu: FakeGpu) -> pa.Batch:
    return pa.Batch(np.arange(9).reshape(3, 3), *LENGTHS["decode"], unshared=True, device=gpu)


def test_a_step_that_may_be_one_launch_is_planned_by_its_new_rows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), unshared_on(gpu), rows(gpu, 3), rows(gpu, 3)
    k, v, wide = rows(gpu, 3, KV_HEADS), rows(gpu, 3, KV_HEADS), rows(gpu, 3, KV_HEADS, 1)
    pa.paged_attention(q, cache, batch, out=out)
    for new_k in (k, wide):
        pa.paged_attention(q, cache, batch, k=new_k, v=v, out=out)
    monkeypatch.setattr(dispatch, "select", None)
    monkeypatch.setattr(ops, "fuses", None)
    for new_k in (k, wide):
        pa.paged_attention(q, cache, batch, k=new_k, v=k, out=out, layer=2)
    pa.paged_attention(q, cache, batch, out=out)
    assert ["fused" in x.name for x in gpu.launches] == [False, True, True, True, True, False]
    strides = [KV_HEADS * DIM, (KV_HEADS + 1) * DIM]
    assert [(x.params["k"], x.params["v"], x.params["k_stride"], x.params["v_stride"]) for x in gpu.launches] == [
        (0, 0, 0, 0),
        *((x.data.ptr, v.data.ptr, n, strides[0]) for x, n in zip((k, wide), strides, strict=True)),
        *((x.data.ptr, k.data.ptr, n, strides[0]) for x, n in zip((k, wide), strides, strict=True)),
        (0, 0, 0, 0),
    ]
    assert gpu.launches[3].params["pool"] == cache.pool.data.ptr + 2 * cache.layout.layer_bytes
    with pytest.raises(TypeError):  # other strides are another kind of call
        pa.paged_attention(q, cache, batch, k=rows(gpu, 3, KV_HEADS, 2), v=v, out=out)


@pytest.mark.parametrize("unshared", [True, False])
@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_calls_that_take_turns_on_a_batch_follow_their_own_plans(kind: str, unshared: bool) -> None:
    """With new rows and without, as ranks, in cuts, with rows that change on their way: each as if it were the first, refusals too."""
    gpu = FakeGpu()
    cache, rng, made = cache_on(gpu), np.random.default_rng(0), []
    table, bias = np.arange(9).reshape(3, 3), gpu.asarray(np.zeros((KV_HEADS, DIM), np.float16))
    batch = pa.Batch(table, *LENGTHS[kind], unshared=unshared, device=gpu)
    n, q = batch.num_tokens, rows(gpu, batch.num_tokens)
    flat = gpu.asarray(np.zeros(n * KV_HEADS * DIM + 4, np.float16))
    good = [rows(gpu, n, KV_HEADS), rows(gpu, n, KV_HEADS, 1)]
    bad = [flat[4:].reshape(n, KV_HEADS, DIM), rows(gpu, n + 1, KV_HEADS), gpu.asarray(np.zeros((n, KV_HEADS, DIM), np.float32))]
    some = {"num_splits": 2, "cp": pa.ContextParallel(1, 2), "k_bias": bias, "rope": pa.Rope(), "window_size": 7}

    def launched(options: dict[str, Any]) -> tuple[str, list[Any]]:
        gpu.launches, text = [], ""
        try:
            pa.paged_attention(q, cache, batch, out=q, **options)
        except pa.ArgumentError as error:
            text = str(error)
        names = [x.name for x in gpu.launches]
        made.append((text, names))
        assert text or any("append" in x or "fused" in x for x in names) == ("k" in options or "rope" in options)
        ignored = ("partial_o", "partial_count", "lse", "extras")  # what a call makes lies anywhere
        return text, [(x.name, x.grid, {k: v for k, v in x.params.items() if k not in ignored}) for x in gpu.launches]

    for _ in range(150):
        options = {name: value for name, value in some.items() if not rng.integers(4)}
        if rng.integers(4):
            options["k"], options["v"] = (bad[rng.integers(3)] if not rng.integers(9) else good[rng.integers(2)] for _ in "kv")
        else:
            options.pop("k_bias", None)
        found, plans = launched(options), dict(batch.plans)
        batch.plans.clear()
        assert launched(options) == found
        batch.plans.update(plans)
    assert len({text for text, _ in made}) > 3
    assert not [names for text, names in made if text and names]


def test_decode_is_told_where_no_two_sequences_have_a_block_in_common() -> None:
    gpu = FakeGpu()
    cache, table = cache_on(gpu), np.arange(9).reshape(3, 3)

    def told(batch: pa.Batch, heads: int = HEADS) -> list[int]:
        q, gpu.launches = rows(gpu, batch.batch_size, heads), []
        pa.paged_attention(q, cache, batch, out=q)
        pa.paged_attention(q, cache, batch, out=q, num_splits="fixed:64")
        assert {launch.params["l2_policy"] for launch in gpu.launches} <= {EVICT_FIRST, EVICT_NORMAL}
        return [launch.params["l2_policy"] == EVICT_FIRST for launch in gpu.launches]

    assert told(pa.Batch(table, *LENGTHS["decode"], disjoint=True, device=gpu)) == [1, 1]
    assert told(pa.Batch(table, *LENGTHS["decode"], unshared=True, device=gpu)) == [0, 0]
    assert told(pa.Batch(table, *LENGTHS["decode"], disjoint=True, device=gpu), 32 * KV_HEADS) == [0, 0]  # two packs of heads read each key
    sequence = cache.new_sequence()
    cache.extend([sequence], [40])
    assert told(cache.extend([sequence], [1])) == told(cache.batch([sequence])) == [1, 1]
    fork = cache.fork(sequence)
    assert told(cache.extend([sequence, fork], [1, 1])) == told(cache.batch([fork])) == [0, 0]
    cache.free(fork)
    assert told(cache.extend([sequence], [1])) == [1, 1]


def test_new_rows_are_checked_at_every_call() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), unshared_on(gpu), rows(gpu, 3), rows(gpu, 3)
    flat = gpu.asarray(np.zeros(3 * KV_HEADS * DIM + 8, np.float16))
    good, bad = (flat[i : i + 3 * KV_HEADS * DIM].reshape(3, KV_HEADS, DIM) for i in (8, 4))
    for _ in range(2):
        for k, v, text in (
            (bad, good, "`k`'s tokens must begin at multiples of 16 bytes"),
            (good, bad, "`v`'s tokens must begin at multiples of 16 bytes"),
            (good, rows(gpu, 2, KV_HEADS), r"`v.shape\[0\]` must equal the batch's new tokens, 3; got 2"),
            (gpu.asarray(np.zeros((3, KV_HEADS, DIM), np.float32)), good, "`k` must have the cache's dtype, float16; got float32"),
            (good, None, "`k` and `v` must come together; got only `k`"),
        ):
            with pytest.raises(pa.ArgumentError, match=text):
                pa.paged_attention(q, cache, batch, k=k, v=v, out=out)
        pa.paged_attention(q, cache, batch, k=good, v=good, out=out)
    assert ["fused" in x.name for x in gpu.launches] == [True, True]


APART: dict[str, dict[str, Any]] = {
    "may be shared": {"unshared": False},
    "prefill": {"kind": "mixed"},
    "cuts": {"num_splits": 2},
    "turned": {"rope": pa.Rope()},
    "scaled queries": {"logn_max_position": 8},
    "context parallelism": {"cp": pa.ContextParallel(1, 2)},
    "two packs": {"heads": 20 * KV_HEADS},
    "older kernels": {"source": "sm_75"},
    "more rows than append is slower for": {"sm_count": 1, "lengths": [5] * 13},
}


@pytest.mark.parametrize("why", [*APART, "nothing", "finished", "softcap"])  # the last are no reasons
def test_when_new_rows_have_a_launch_of_their_own(why: str) -> None:
    given = dict(APART.get(why, {}))
    gpu = FakeGpu(sm_count=given.pop("sm_count", 132))
    gpu._source = archs.parse(given.pop("source", "sm_90"))
    kind, heads, unshared, lengths = (given.pop(name, None) for name in ("kind", "heads", "unshared", "lengths"))
    seqlens_q, seqlens_k = LENGTHS[kind or "decode"] if lengths is None else ([1] * len(lengths), lengths)
    table, finished = np.arange(3 * len(seqlens_q)).reshape(-1, 3), [True, False, False] if why == "finished" else None
    batch = pa.Batch(table, seqlens_q, seqlens_k, finished=finished, unshared=unshared is None, device=gpu)
    heads = heads or HEADS
    if why == "softcap":
        given["softcap"] = 3.0
    n = batch.num_tokens
    q, k = rows(gpu, n, heads), rows(gpu, n, KV_HEADS)
    cache = cache_on(gpu)
    names = [s.spec.name for s in pa.explain(q, cache, batch, k=k, v=k, **given).steps if s.spec]
    out = rows(gpu, n, heads)
    pa.paged_attention(q, cache, batch, k=k, v=k, out=out, lse=gpu.zeros((n, heads), np.float32), **given)
    assert [x.name for x in gpu.launches] == names
    apart = ["append", "decode", *(["prefill"] if kind == "mixed" else [])]
    assert [name.split("_")[0] for name in names] == (apart if why in APART else ["decode"])
    assert any("fused" in name for name in names) == (why not in APART)


def test_results_are_allocated_like_the_first() -> None:
    gpu = FakeGpu()
    cache, batch, q = cache_on(gpu), batch_on(gpu), rows(gpu, 3)
    for _ in range(2):
        out, lse = pa.paged_attention(q, cache, batch, return_lse=True)
        assert (out.shape, out.dtype, lse.shape, lse.dtype) == ((3, HEADS, DIM), np.float16, (3, HEADS), np.float32)
        assert (gpu.launches[-1].params["out"], gpu.launches[-1].params["lse"]) == (out.data.ptr, lse.data.ptr)
    assert len(batch.plans) == 1


def test_batches_and_caches_do_not_share_plans() -> None:
    gpu = FakeGpu()
    cache, q, out = cache_on(gpu), rows(gpu, 3), rows(gpu, 3)
    one, two = (pa.Batch(np.arange(9).reshape(3, 3), [1, 1, 1], lengths, device=gpu) for lengths in ([40, 3, 17], [41, 4, 18]))
    for batch in (one, two, one):
        pa.paged_attention(q, cache, batch, out=out)
    tables = [x.params["block_table"] for x in gpu.launches]
    assert tables == [one.block_table.data.ptr, two.block_table.data.ptr, one.block_table.data.ptr]
    pa.paged_attention(q, cache_on(gpu, "int8"), one, out=out)
    assert gpu.launches[-1].name != gpu.launches[-2].name
    with pytest.raises(pa.ArgumentError, match="`block_table` must have"):
        pa.paged_attention(q, pa.KVCache(16, num_kv_heads=KV_HEADS, head_dim=DIM, block_len=16, device=gpu), batch_too_narrow(gpu), out=out)


def batch_too_narrow(gpu: FakeGpu) -> pa.Batch:
    return pa.Batch(np.zeros((3, 1), np.int32), [1, 1, 1], [40, 3, 17], device=gpu)


WRONG: dict[str, dict[str, Any]] = {
    "layer": {"layer": 3},
    "layer-bool": {"layer": True},
    "scale-bool": {"softmax_scale": True},
    "window-bool": {"window_size": True},
    "window-float": {"window_size": 1.0},
    "softcap-text": {"softcap": "1"},
    "splits-bool": {"num_splits": True},
    "splits-list": {"num_splits": [1]},
    "sinks": {"sinks": np.zeros(3, np.float32)},
    "k": {"k": np.zeros(3)},
    "stream": {"stream": "0"},
}


@pytest.mark.parametrize("name", WRONG)
def test_options_are_checked_again(name: str) -> None:
    """True equals 1 and 1.0, and so might be taken for an option of the plan that is there."""
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    pa.paged_attention(q, cache, batch, out=out, softmax_scale=1.0, window_size=1, num_splits=1, softcap=1.0, layer=1)
    given = {"softmax_scale": 1, "window_size": 1, "num_splits": 1, "softcap": 1, "layer": 1, **WRONG[name]}
    with pytest.raises(pa.ArgumentError, match=f"`{next(iter(WRONG[name]))}`"):
        pa.paged_attention(q, cache, batch, out=out, **given)
    assert len(gpu.launches) == 1
    pa.paged_attention(q, cache, batch, out=out, **{**given, **dict.fromkeys(WRONG[name], None), "layer": 1})


def test_addresses_are_checked_again() -> None:
    gpu = FakeGpu()
    cache, batch, flat = cache_on(gpu), batch_on(gpu), gpu.asarray(np.zeros(3 * HEADS * DIM + 8, np.float16))
    good, bad = (flat[i : i + 3 * HEADS * DIM].reshape(3, HEADS, DIM) for i in (8, 4))
    k_good, k_bad = (flat[i : i + 3 * KV_HEADS * DIM].reshape(3, KV_HEADS, DIM) for i in (8, 4))
    for _ in range(2):
        pa.paged_attention(good, cache, batch, k=k_good, v=k_good, out=good)
        launched = len(gpu.launches)
        for name, arrays in {"q": (bad, good, k_good), "out": (good, bad, k_good), "k": (good, good, k_bad)}.items():
            q, out, k = arrays
            with pytest.raises(pa.ArgumentError, match=f"`{name}`'s tokens must begin at multiples of 16 bytes"):
                pa.paged_attention(q, cache, batch, k=k, v=k_good, out=out)
        assert len(gpu.launches) == launched


def test_block_indices_are_checked_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGEDATTN_CHECK", "1")
    gpu = FakeGpu()
    cache, q, table = cache_on(gpu), rows(gpu, 3), gpu.asarray(np.arange(9, dtype=np.int32).reshape(3, 3))
    batch = pa.Batch(np.arange(9).reshape(3, 3), [1, 1, 1], [40, 3, 17], device=gpu)
    batch.block_table, batch._frozen, batch._checked = table, False, None  # the caller's own memory
    pa.paged_attention(q, cache, batch)
    ctypes.memset(table.data.ptr, 0x7F, 4)
    with pytest.raises(pa.ArgumentError, match=r"block_table\[0, 0\] is 2139062143"):
        pa.paged_attention(q, cache, batch)


def test_threads_and_streams_have_their_own() -> None:
    """Every thread's launches carry its own arrays, whatever the others do meanwhile; pieces of one stream never meet another's."""
    gpu = FakeGpu()
    cache, batch = cache_on(gpu), batch_on(gpu)
    arrays = [(rows(gpu, 3), rows(gpu, 3)) for _ in range(4)]
    pa.paged_attention(*(arrays[0][0], cache, batch), out=arrays[0][1], stream=64)
    gpu.launches.clear()
    start = threading.Barrier(4)

    def work(i: int) -> None:
        start.wait()
        for _ in range(200):
            pa.paged_attention(arrays[i][0], cache, batch, out=arrays[i][1], layer=i % 3, stream=16 * (i + 1))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(gpu.launches) == 800
    for i, (q, out) in enumerate(arrays):
        own = [x.params for x in gpu.launches if x.stream == 16 * (i + 1)]
        pool = cache.pool.data.ptr + i % 3 * cache.layout.layer_bytes
        assert {(p["q"], p["out"], p["pool"]) for p in own} == {(q.data.ptr, out.data.ptr, pool)}
    assert len({(x.stream, x.params["partial_o"], x.params["partial_count"]) for x in gpu.launches}) == 4
    assert len({x.params["partial_o"] for x in gpu.launches}) == 4


def test_the_per_thread_stream_is_one_for_each_thread() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)

    def work() -> None:
        pa.paged_attention(q, cache, batch, out=out, stream=2)

    work()
    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert len({x.params["partial_o"] for x in gpu.launches}) == 2


def test_another_current_device_is_left_current() -> None:
    gpu = FakeGpu(index=1)
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    gpu.device = 0
    for _ in range(2):
        pa.paged_attention(q, cache, batch, out=out)
        assert gpu.device == 0
    assert [x.device for x in gpu.launches] == [1, 1]
    gpu.error = RuntimeError("CUDA_ERROR_INVALID_VALUE")
    with pytest.raises(DeviceFault, match=r"decode_.* could not be launched on cuda:1 with \d+ CTAs: CUDA_ERROR_INVALID_VALUE"):
        pa.paged_attention(q, cache, batch, out=out)
    assert gpu.device == 0


def test_a_thread_gets_the_context_before_its_first_launch() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    pa.paged_attention(q, cache, batch, out=out)
    bound = gpu.set_calls
    for _ in range(2):
        pa.paged_attention(q, cache, batch, out=out)
    assert gpu.set_calls == bound
    other = threading.Thread(target=pa.paged_attention, args=(q, cache, batch), kwargs={"out": out})
    other.start()
    other.join()
    assert gpu.set_calls > bound


def test_plans_do_not_keep_a_batch() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    pa.paged_attention(q, cache, batch, out=out)
    pa.append(rows(gpu, 3, KV_HEADS), rows(gpu, 3, KV_HEADS), cache, batch)
    assert len(batch.plans) == 2
    memory = weakref.ref(batch.cu_seqlens_k)
    gc.disable()
    try:
        del batch
        assert memory() is None
    finally:
        gc.enable()


def test_plans_are_bounded() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    for i in range(1, 3 * plan.MOST):
        pa.paged_attention(q, cache, batch, out=out, softmax_scale=float(i))
        assert len(batch.plans) <= plan.MOST
        assert gpu.launches[-1].params["qk_scale"] == pytest.approx(i / np.log(2))


def test_memory_that_the_caller_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is allocated; a workspace that is too small is refused before anything is written, planned or not."""
    gpu = FakeGpu()
    cache, batch, q, out, k = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3), rows(gpu, 3, KV_HEADS)
    size = pa.workspace_bytes(
        batch_size=3, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=DIM, max_seqlen_k=40, arch="sm_90", sm_count=gpu.sm_count
    )
    room, lse = gpu.zeros((size,), np.uint8), gpu.zeros((3, HEADS), np.float32)
    monkeypatch.setattr(gpu, "empty", None)
    monkeypatch.setattr(gpu._workspaces, "_grow", None)
    for _ in range(2):
        with pytest.raises(pa.ArgumentError, match=f"`workspace` must have at least {size} bytes for this call.*got {size - 1}"):
            pa.paged_attention(q, cache, batch, k=k, v=k, out=out, workspace=room[:-1])
        assert gpu.launches == []
    for _ in range(2):
        answer = pa.paged_attention(q, cache, batch, k=k, v=k, out=out, lse=lse, return_lse=True, workspace=room)
        assert (answer[0] is out, answer[1] is lse) == (True, True)
        launched = gpu.launches[-1].params
        assert (launched["partial_count"], launched["partial_o"]) == (room.data.ptr, room.data.ptr + workspace.COUNTER_BYTES)
        assert launched["lse"] == lse.data.ptr


def test_the_devices_own_workspace() -> None:
    gpu = FakeGpu()
    cache, batch, q, out = cache_on(gpu), batch_on(gpu), rows(gpu, 3), rows(gpu, 3)
    pa.paged_attention(q, cache, batch, out=out, stream=32)
    launched = gpu.launches[-1].params
    assert (launched["partial_o"], launched["partial_count"]) == gpu._workspaces.of(32, 0, 1)


def test_a_merge_that_is_made_ready_selects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that stay where they are: from call to call only the results' addresses and the stream differ, and their memory lives on."""
    gpu = FakeGpu()
    outs, lses = ([gpu.zeros(shape, kind) for _ in range(3)] for shape, kind in (((2, 4, 64), np.float16), ((2, 4), np.float32)))
    out, lse, other = gpu.zeros((2, 4, 64), np.float16), gpu.zeros((2, 4), np.float32), gpu.zeros((2, 4, 64), np.float16)
    gpu.merge(outs, lses, out, lse)
    places = [[x.data.ptr for x in part] for part in (outs, lses)]
    merging = gpu.merging(outs, lses)
    del outs, lses
    monkeypatch.setattr(dispatch, "merge", None)
    merging(out, lse, None)
    merging(other, lse, 77)
    fresh, second, third = gpu.launches
    for launch in (second, third):
        table = np.frombuffer(ctypes.string_at(launch.params["merge_outs"], 48), np.uint64).reshape(2, 3)
        assert table.tolist() == places
        assert launch.params["merge_lses"] == launch.params["merge_outs"] + 24
    varying = dict.fromkeys(("merge_outs", "merge_lses"), 0)
    assert second._replace(params=second.params | varying) == fresh._replace(params=fresh.params | varying)
    assert third == second._replace(params=second.params | {"out": other.data.ptr}, stream=77)


def test_copies_are_of_a_stream_and_of_the_device() -> None:
    gpu = FakeGpu(index=1)
    gpu.device = 0
    sources = [gpu.asarray(np.arange(n, dtype=np.float32)) for n in (5, 3)]
    targets = [gpu.zeros(n, np.float32) for n in (5, 3)]
    gpu.copy(list(zip(sources, targets, strict=True)), 77)
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(gpu.to_host(target), gpu.to_host(source))
    gpu.copy([(sources[0], targets[0])])
    assert gpu.copies == [(20, 77), (12, 77), (20, 0)]
    assert gpu.device == 0


@pytest.mark.parametrize("columns", [4, 3, 1, 0])
def test_what_is_assigned_takes_two_copies(columns: int) -> None:
    gpu = FakeGpu(index=1)
    gpu.device, gpu.stream.ptr = 0, 48
    new, lengths = ([1, 3], [5, 3]) if columns else ([0, 0], [0, 0])
    room = pa.Batch(np.arange(8).reshape(2, 4), new, [64, 64], device=gpu)
    other = pa.Batch(np.arange(20, 20 + 2 * columns).reshape(2, columns), new, lengths, device=gpu)
    for _ in range(2):
        gpu.copies.clear()
        room.assign(other)
        assert gpu.copies == ([(8 * columns, 48)] if columns else []) + [(12, 48)]
    table = np.arange(8).reshape(2, 4)
    table[:, :columns] = np.arange(20, 20 + 2 * columns).reshape(2, columns)
    np.testing.assert_array_equal(gpu.to_host(room.block_table), table)
    np.testing.assert_array_equal(gpu.to_host(room.cu_seqlens_k), np.cumsum([0, *lengths]))
    np.testing.assert_array_equal(gpu.to_host(room.cu_seqlens_q), np.cumsum([0, *new]))
    gpu.copies.clear()
    room.assign(room)
    assert (gpu.copies, gpu.device) == ([], 0)


def test_a_kernel_is_launched_by_its_struct() -> None:
    gpu = FakeGpu()
    kernel = Kernel(pa.KernelSpec("append", head_dim=DIM, arch="sm_90"), "", Compiled(b"", b"", "", 0.0), "memory")
    struct = np.zeros((), pa.AttentionParams)
    struct["k"], struct["num_tokens"], struct["qk_scale"] = 512, 7, 0.5
    gpu.launch(kernel, struct.tobytes(), 9, 48)
    name, grid, values, stream, _ = gpu.launches[0]
    assert (name, grid, stream) == (kernel.name, 9, 48)
    assert not any(values.pop("extras"))
    assert {k: v for k, v in values.items() if v} == {"k": 512, "num_tokens": 7, "qk_scale": 0.5}
    for params, size, text in [(b"123", 1, "`params` must be one AttentionParams, .*got 3"), (struct, 0, "`grid` must be a positive")]:
        with pytest.raises(pa.ArgumentError, match=text):
            kernel(params, size)
