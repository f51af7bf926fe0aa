"""all_merge: what it sends, and through which communicators; ranks are threads, or play their part one after the other."""

from __future__ import annotations

import runpy
import sys
import types
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes
from pagedattn.distributed import all_merge

Array = np.ndarray[Any, Any]
SIZE = 3
Threads = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "context_parallel.py"))["Threads"]


def parts(dtype: str, tokens: int = 5) -> list[tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    kind = dtypes.of(dtype).numpy
    made = [(rng.standard_normal((tokens, 4, 64)).astype(kind), rng.standard_normal((tokens, 4)).astype(np.float32)) for _ in range(SIZE)]
    if tokens:
        made[1][0][2], made[1][1][2] = 0, -np.inf  # a rank without keys
    return made


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [5, 0])
def test_every_rank_gets_the_merged_result(dtype: str, tokens: int) -> None:
    given, ranks = parts(dtype, tokens), Threads(SIZE)

    def work(rank: int) -> tuple[Array, Array]:
        ranks.rank.number = rank
        return all_merge(*given[rank], ranks)

    with ThreadPoolExecutor(SIZE) as pool:
        answers = list(pool.map(work, range(SIZE)))
    expected = pa.merge([x for x, _ in given], [x for _, x in given])
    for answer in answers:
        for found, right in zip(answer, expected, strict=True):
            assert found.dtype == right.dtype
            np.testing.assert_array_equal(found.view(np.uint8), right.view(np.uint8))


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


def test_a_backend_of_cupy() -> None:
    given = parts("float16")
    found = all_merge(*given[0], Backend(given))
    for x, right in zip(found, pa.merge([x for x, _ in given], [x for _, x in given]), strict=True):
        np.testing.assert_array_equal(x, right)


def test_a_group_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    given, seen = parts("float16"), []
    backend = Backend(given)

    def gather(everyone: Array, mine: Array, group: Any) -> None:
        seen.append(group)
        backend.all_gather(mine, everyone.reshape(SIZE, -1), mine.size)

    torch = types.ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    torch.from_dlpack = np.from_dlpack  # type: ignore[attr-defined]
    torch.distributed = types.SimpleNamespace(all_gather_into_tensor=gather, get_world_size=lambda group: SIZE)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    group = type("ProcessGroup", (), {"__module__": "torch.distributed"})()
    for communicator in (None, group):
        found = all_merge(*given[0], communicator)
        for x, right in zip(found, pa.merge([x for x, _ in given], [x for _, x in given]), strict=True):
            np.testing.assert_array_equal(x, right)
    assert seen == [None, group]


@pytest.mark.cuda
def test_nccl_of_one_rank() -> None:
    import cupy

    with warnings.catch_warnings():  # CuPy tells how to install it
        warnings.simplefilter("ignore")
        nccl = cupy.cuda.nccl
    if not hasattr(nccl, "NcclCommunicator"):
        pytest.skip("CuPy finds no NCCL")
    communicator = nccl.NcclCommunicator(1, nccl.get_unique_id(), 0)
    out, lse = (cupy.asarray(x) for x in parts("float16")[0])
    found = all_merge(out, lse, communicator)
    np.testing.assert_array_equal(cupy.asnumpy(found[0]), cupy.asnumpy(out))
    np.testing.assert_allclose(cupy.asnumpy(found[1]), cupy.asnumpy(lse), rtol=1e-6)


def test_refused() -> None:
    out, lse = parts("float16")[0]
    twins = Backend(parts("float16"))
    for arguments, error, text in (
        (([[1.0]], lse, twins), pa.ArgumentError, "`out` must be an array; got list"),
        ((out[0], lse, twins), pa.ArgumentError, r"must have 3 dimensions .*got float16 \(4, 64\)"),
        ((out, lse[:3], twins), pa.ArgumentError, r"float32 \(3, 4\)"),
        ((out, lse.astype(np.float64), twins), pa.ArgumentError, "float64"),
        ((out, lse, object()), pa.UnsupportedError, "must be a group of torch.distributed.*got object"),
    ):
        with pytest.raises(error, match=text):
            all_merge(*arguments)
    if "torch" not in sys.modules:
        with pytest.raises(pa.UnsupportedError, match="got None, and PyTorch is not imported"):
            all_merge(out, lse)
