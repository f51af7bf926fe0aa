"""all_merge and AllMerge: what they send, and through which communicators; ranks are threads, or play their part one after the other."""

from __future__ import annotations

import gc
import runpy
import sys
import types
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import distributed, dtypes
from pagedattn.distributed import AllMerge, all_merge

Array = np.ndarray[Any, Any]
SIZE = 3
Threads = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "context_parallel.py"))["Threads"]


def parts(dtype: str, tokens: int = 5, seed: int = 0) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(seed)
    kind = dtypes.of(dtype).numpy
    made = [(rng.standard_normal((tokens, 4, 64)).astype(kind), rng.standard_normal((tokens, 4)).astype(np.float32)) for _ in range(SIZE)]
    if tokens > 2:
        made[1][0][2], made[1][1][2] = 0, -np.inf  # a rank without keys
    return made


def by_function(out: Array, lse: Array, communicator: Any) -> tuple[Array, Array]:
    return all_merge(out, lse, communicator)


def in_place(out: Array, lse: Array, communicator: Any) -> tuple[Array, Array]:
    merge = AllMerge(out, communicator)
    merge.out[...], merge.lse[...] = out, lse
    found = merge()
    assert found[0] is merge.out
    assert found[1] is merge.lse
    return found


def of_ranks(work: Callable[[int, Any], Any]) -> list[Any]:
    """work(rank, communicator) of each rank, a thread."""
    ranks = Threads(SIZE)

    def run(rank: int) -> Any:
        ranks.rank.number = rank
        return work(rank, ranks)

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(run, range(SIZE)))


def expect(answer: tuple[Array, Array], given: list[tuple[Array, Array]]) -> None:
    for found, right in zip(answer, pa.merge([x for x, _ in given], [x for _, x in given]), strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))


@pytest.mark.parametrize("call", [by_function, in_place])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [5, 0])
def test_every_rank_gets_the_merged_result(call: Any, dtype: str, tokens: int) -> None:
    given = parts(dtype, tokens)
    for answer in of_ranks(lambda rank, ranks: call(*given[rank], ranks)):
        expect(answer, given)


def test_calls_in_turn_share_memory_and_no_result() -> None:
    """Shapes and dtypes change, and results of earlier calls stay; one is too large for its memory to be kept."""
    rounds = [
        parts(dtype, tokens, i) for i, (dtype, tokens) in enumerate([("float16", 5), ("float16", 5), ("bfloat16", 5), ("float16", 1)] * 2)
    ]
    rounds.append(parts("float16", distributed._KEPT_BYTES // 512 + 1))

    def work(rank: int, ranks: Any) -> Any:
        answers = [all_merge(*given[rank], ranks) for given in rounds]
        return answers, len(distributed._ROOMS.kept)

    for answers, kept in of_ranks(work):
        assert kept == 3
        for answer, given in zip(answers, rounds, strict=True):
            expect(answer, given)


def test_one_memory_for_all_layers() -> None:
    rounds = [parts("float16", seed=i) for i in range(3)]

    def work(rank: int, ranks: Any) -> Any:
        merge, answers = AllMerge(rounds[0][0][0], ranks), []
        for given in rounds:
            merge.out[...], merge.lse[...] = given[rank]
            answers.append([x.copy() for x in merge()])
        return answers

    for answers in of_ranks(work):
        for answer, given in zip(answers, rounds, strict=True):
            expect(answer, given)


def test_no_more_is_kept_than_is_said() -> None:
    """The memory of the shapes that came first goes, with what they were gathered through."""
    given = parts("float16")
    first = Backend(given)
    all_merge(*given[0], first)
    gone = weakref.ref(first)
    del first
    for _ in range(distributed._KEPT_ROOMS):
        all_merge(*given[0], Backend(given))
    gc.collect()
    assert gone() is None
    assert len(distributed._ROOMS.kept) == distributed._KEPT_ROOMS


class Backend:
    """As CuPy's NCCLBackend: it has no public size. The other ranks' bytes are there already."""

    def __init__(self, given: list[tuple[Array, Array]]) -> None:
        self._n_devices = len(given)
        self.bytes = np.stack([np.concatenate([x.reshape(-1).view(np.uint8) for x in pair]) for pair in given])

    def all_gather(self, in_array: Array, out_array: Array, count: int) -> None:
        assert in_array.size * in_array.itemsize == count
        assert in_array.flags.c_contiguous
        assert out_array.flags.c_contiguous
        np.testing.assert_array_equal(in_array, self.bytes[0])
        out_array[...] = self.bytes


@pytest.mark.parametrize("call", [by_function, in_place])
def test_a_backend_of_cupy(call: Any) -> None:
    given = parts("float16")
    expect(call(*given[0], Backend(given)), given)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is used of PyTorch, for ranks whose bytes are there already."""
    backend, seen = Backend(parts("float16")), []

    def gather(everyone: Array, mine: Array, group: Any) -> None:
        seen.append(group)
        backend.all_gather(mine, everyone.reshape(SIZE, -1), mine.size)

    made: Any = types.ModuleType("torch")
    made.Tensor = type("Tensor", (), {})
    made.from_dlpack = np.from_dlpack
    made.distributed = types.SimpleNamespace(all_gather_into_tensor=gather, get_world_size=lambda group: SIZE)
    made.distributed.group = types.SimpleNamespace(WORLD=object())
    made.seen = seen
    monkeypatch.setitem(sys.modules, "torch", made)
    return made


@pytest.mark.parametrize("call", [by_function, in_place])
def test_a_group_of_torch(call: Any, torch: Any) -> None:
    given = parts("float16")
    group = type("ProcessGroup", (), {"__module__": "torch.distributed"})()
    for communicator in (None, group):
        expect(call(*given[0], communicator), given)
    assert torch.seen == [None, group]


def test_another_default_group_of_torch_is_another(torch: Any) -> None:
    """PyTorch's groups end and begin anew, with other ranks."""
    given = parts("float16")
    expect(all_merge(*given[0]), given)
    torch.distributed.group.WORLD = object()
    torch.distributed.get_world_size = lambda group: 1
    torch.distributed.all_gather_into_tensor = lambda everyone, mine, group: everyone.__setitem__(slice(None), mine)
    expect(all_merge(*given[0]), given[:1])


def test_a_group_of_others_is_refused(torch: Any) -> None:
    torch.distributed.get_world_size = lambda group: -1
    for call in (by_function, in_place):
        with pytest.raises(pa.ArgumentError, match="a group that this process belongs to"):
            call(*parts("float16")[0], None)


def test_a_graph_is_for_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    given, device = parts("float16"), pa.devices.get("cpu")
    monkeypatch.setattr(device, "capturing", lambda: True, raising=False)
    with pytest.raises(pa.UnsupportedError, match="capture an AllMerge"):
        all_merge(*given[0], Backend(given))
    expect(in_place(*given[0], Backend(given)), given)


@pytest.fixture
def one_rank() -> Any:
    with warnings.catch_warnings():  # CuPy tells how to install it
        warnings.simplefilter("ignore")
        from cupy.cuda import nccl
    if not nccl.available:
        pytest.skip("CuPy finds no NCCL")
    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    yield communicator
    communicator.destroy()


@pytest.mark.cuda
@pytest.mark.parametrize("call", [by_function, in_place])
def test_nccl_of_one_rank(call: Any, one_rank: Any) -> None:
    import cupy

    for tokens in (5, 7, 5):
        out, lse = (cupy.asarray(x) for x in parts("float16", tokens)[0])
        for stream in (cupy.cuda.Stream.null, cupy.cuda.Stream(non_blocking=True)):
            cupy.cuda.Device().synchronize()
            with stream:
                found = call(out, lse, one_rank)
                np.testing.assert_array_equal(cupy.asnumpy(found[0]), cupy.asnumpy(out))
                np.testing.assert_allclose(cupy.asnumpy(found[1]), cupy.asnumpy(lse), rtol=1e-6)


@pytest.mark.cuda
def test_captured_in_a_graph(one_rank: Any) -> None:
    """Attention into the memory that is sent, gathered and merged: replayed over other queries."""
    import cupy

    cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, device="cuda", cp=pa.ContextParallel(0, 1))
    batch = cache.extend([cache.new_sequence()], [90])
    rng = np.random.default_rng(0)
    k, v = (cupy.asarray(rng.standard_normal((90, 2, 64)).astype(np.float16)) for _ in "kv")
    pa.append(k, v, cache, batch)
    step = pa.Batch(batch.block_table, [1], [90], device="cuda")
    q, other = (cupy.asarray(rng.standard_normal((1, 4, 64)).astype(np.float16)) for _ in range(2))
    merge = AllMerge(q, one_rank)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()

    def work() -> None:
        pa.paged_attention(q, cache, step, out=merge.out, lse=merge.lse)
        merge()

    with stream:
        work()
        stream.begin_capture()
        work()
        with pytest.raises(pa.UnsupportedError, match="capture an AllMerge"):
            all_merge(merge.out, merge.lse, one_rank)
        graph = stream.end_capture()
        q[...] = other
        merge.out.fill(np.nan)
        graph.launch(stream)
        right = pa.paged_attention(other, cache, step)
        np.testing.assert_allclose(cupy.asnumpy(merge.out), cupy.asnumpy(right[0]), rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(cupy.asnumpy(merge.lse), cupy.asnumpy(right[1]), rtol=1e-6)


def test_refused() -> None:
    out, lse = parts("float16")[0]
    twins = Backend(parts("float16"))
    for arguments, error, text in (
        (([[1.0]], lse, twins), pa.ArgumentError, r"`out` must be an array \(NumPy.*got list"),
        ((out[0], lse, twins), pa.ArgumentError, r"must have 3 dimensions .*got float16 \(4, 64\)"),
        ((out, lse[:3], twins), pa.ArgumentError, r"float32 \(3, 4\)"),
        ((out, lse.astype(np.float64), twins), pa.ArgumentError, "float64"),
        ((out.astype(np.float32), lse, twins), pa.ArgumentError, "`out.dtype` must be one of float16, bfloat16; got .*float32"),
        ((out, lse, object()), pa.UnsupportedError, "must be a group of torch.distributed.*got object"),
    ):
        with pytest.raises(error, match=text):
            all_merge(*arguments)
    for given, text in (
        ([[1.0]], r"`like` must be an array \(NumPy.*got list"),
        (out[0], r"`like` must have 3 dim.*got shape \(4, 64\)"),
        (lse, "float32"),
    ):
        with pytest.raises(pa.ArgumentError, match=text):
            AllMerge(given, twins)
    with pytest.raises(pa.UnsupportedError, match=r"must be a group of torch\.distributed.*got object"):
        AllMerge(out, object())
    if "torch" not in sys.modules:
        with pytest.raises(pa.UnsupportedError, match="got None, and PyTorch is not imported"):
            all_merge(out, lse)
