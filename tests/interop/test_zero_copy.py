"""Every operation takes and gives arrays of every kind, and what it works on are the caller's own bytes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arrays, dtypes

DTYPES = ["float16", "bfloat16"]
NEW, ALL = [3, 1, 5], [3, 1, 5]


class Kind:
    """Arrays of one library on one device."""

    def __init__(self, name: str) -> None:
        self.package, _, self.device = name.partition("-")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of a GPU that others use too
        self.tolerance = 0 if self.device == "cpu" else 0.08  # kernels round elsewhere; how well is tested in tests/attention
        self.module = pytest.importorskip(self.package, reason=f"{self.package} is not installed")

    def make(self, x: np.ndarray) -> Any:
        """A NumPy array as one of this kind."""
        if self.package == "numpy":
            return x
        if self.package == "cupy":
            return self.module.asarray(x)
        if self.package == "jax":
            return self.module.device_put(x, self.module.devices(self.device)[0])
        wide = x.astype(np.float32) if x.dtype == dtypes.BFLOAT16.numpy else x
        return self.module.from_numpy(wide).to(self.device, getattr(self.module, x.dtype.name))

    def is_one(self, x: Any) -> bool:
        return isinstance(x, getattr(self.module, {"torch": "Tensor", "jax": "Array"}.get(self.package, "ndarray")))

    def host(self, x: Any) -> np.ndarray:
        if self.package == "torch":
            return x.float().cpu().numpy()
        return np.asarray(x.get() if self.package == "cupy" else x).astype(np.float32)

    def address(self, x: Any) -> int:
        if self.package == "torch":
            return int(x.data_ptr())
        if self.package == "jax":
            return int(x.unsafe_buffer_pointer())
        return int(x.ctypes.data if self.package == "numpy" else x.data.ptr)

    def dtype(self, x: Any) -> str:
        return str(x.dtype).rpartition(".")[2]


@pytest.fixture(
    params=[
        "numpy-cpu",
        "torch-cpu",
        "jax-cpu",
        *(pytest.param(name, marks=pytest.mark.cuda) for name in ("cupy-cuda", "torch-cuda", "jax-cuda")),
    ]
)
def kind(request: pytest.FixtureRequest) -> Kind:
    return Kind(request.param)


@pytest.fixture
def worked_on(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Addresses of all arrays that the library has taken in or given back."""
    seen: set[int] = set()

    def address(x: Any) -> int:
        return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data.ptr)

    def noting(call: Callable[..., Any], of_result: bool) -> Callable[..., Any]:
        def noted(x: Any, *arguments: Any, **keywords: Any) -> Any:
            result = call(x, *arguments, **keywords)
            seen.add(address(result if of_result else x))
            return result

        return noted

    for module in ("append", "ops", "merge", "varlen", "checks", "extras", "pools"):
        home = importlib.import_module(f"pagedattn.{module}")
        monkeypatch.setattr(home, "adopt", noting(arrays.adopt, True))
        if hasattr(home, "give_back"):
            monkeypatch.setattr(home, "give_back", noting(arrays.give_back, False))
    return seen


def rows(seed: int, heads: int, dtype: str, tokens: int = sum(NEW)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((tokens, heads, 64)).astype(dtypes.of(dtype).numpy)


def cache_of(kind: Kind, dtype: str, **keywords: Any) -> tuple[pa.KVCache, pa.Batch]:
    cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, dtype=dtype, device=kind.device, **keywords)
    return cache, cache.extend([cache.new_sequence() for _ in NEW], NEW)


@pytest.mark.parametrize("dtype", DTYPES)
def test_append_and_gather(kind: Kind, dtype: str, worked_on: set[int]) -> None:
    cache, batch = cache_of(kind, dtype)
    k, v = kind.make(rows(0, 2, dtype)), kind.make(rows(1, 2, dtype))
    pa.append(k, v, cache, batch)
    assert {kind.address(k), kind.address(v)} <= worked_on
    for x, y in zip(pa.gather(cache, batch), (k, v), strict=True):
        assert (cache.device.to_host(x).astype(np.float32) == kind.host(y)).all()
    if kind.package == "jax":
        with pytest.raises(pa.ArgumentError, match=r"`out\[0\]` must be writable; got .*JAX's arrays never change"):
            pa.gather(cache, batch, out=(k, v))
        return
    out = kind.make(rows(2, 2, dtype)), kind.make(rows(3, 2, dtype))
    found = pa.gather(cache, batch, out=out)
    assert all(x is y for x, y in zip(found, out, strict=True))
    assert {kind.address(x) for x in out} <= worked_on
    for x, y in zip(found, (k, v), strict=True):
        assert (kind.host(x) == kind.host(y)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_attention(kind: Kind, dtype: str, worked_on: set[int]) -> None:
    cache, batch = cache_of(kind, dtype)
    given = {"k": rows(0, 2, dtype), "v": rows(1, 2, dtype), "sinks": np.ones(4, np.float32), "q_bias": rows(2, 4, dtype, 1)[0]}
    given["mask"], given["alibi_slopes"] = np.ones(sum(n * n for n in NEW), bool), np.full(4, 0.1, np.float32)
    q, mine = rows(3, 4, dtype), {name: kind.make(x) for name, x in given.items()}
    own = kind.make(q)
    out, lse = pa.paged_attention(own, cache, batch, **mine, return_lse=True)
    assert kind.is_one(out)
    assert kind.is_one(lse)
    assert (kind.dtype(out), tuple(out.shape), kind.dtype(lse), tuple(lse.shape)) == (dtype, (9, 4, 64), "float32", (9, 4))
    taken = {kind.address(x) for name, x in mine.items() if name != "mask"} | {kind.address(own), kind.address(out), kind.address(lse)}
    assert taken <= worked_on
    reference, batch = cache_of(Kind("numpy-cpu"), dtype)
    expected = pa.paged_attention(q, reference, batch, **given).astype(np.float32)
    assert np.abs(kind.host(out) - expected).max() <= kind.tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_go_where_the_caller_says(kind: Kind, dtype: str, worked_on: set[int]) -> None:
    cache, batch = cache_of(kind, dtype)
    x = kind.make(rows(0, 4, dtype))
    k, v = kind.make(rows(1, 2, dtype)), kind.make(rows(2, 2, dtype))
    expected = kind.host(pa.paged_attention(x, cache, batch, k=k, v=v))
    out, lse = kind.make(rows(3, 4, dtype)), kind.make(np.zeros((9, 4), np.float32))
    if kind.package == "jax":
        for name, value in (("out", out), ("lse", lse)):
            with pytest.raises(pa.ArgumentError, match=f"`{name}` must be writable; got .*JAX's arrays never change. Leave it None"):
                pa.paged_attention(x, cache, batch, **{name: value})
        return
    worked_on.clear()
    found = pa.paged_attention(x, cache, batch, out=out, lse=lse, return_lse=True)
    assert found[0] is out
    assert found[1] is lse
    assert {kind.address(out), kind.address(lse)} <= worked_on
    assert (kind.host(out) == expected).all()
    assert kind.host(lse).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_varlen_attention(kind: Kind, dtype: str, worked_on: set[int]) -> None:
    given = [rows(0, 4, dtype), rows(1, 2, dtype), rows(2, 2, dtype)]
    starts = np.cumsum([0, *NEW]).astype(np.int32)
    mine = [kind.make(x) for x in given]
    out, lse = pa.varlen_attention(*mine, kind.make(starts), starts, return_lse=True)
    assert kind.is_one(out)
    assert kind.is_one(lse)
    assert (kind.dtype(out), kind.dtype(lse)) == (dtype, "float32")
    assert {kind.address(x) for x in (*mine, out, lse)} <= worked_on
    expected = pa.varlen_attention(*given, starts, starts).astype(np.float32)
    assert np.abs(kind.host(out) - expected).max() <= kind.tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_merge(kind: Kind, dtype: str, worked_on: set[int]) -> None:
    outs, lses = [rows(i, 4, dtype) for i in range(2)], [np.full((9, 4), i, np.float32) for i in range(2)]
    mine = [kind.make(x) for x in (*outs, *lses)]
    found = pa.merge(mine[:2], mine[2:])
    assert all(kind.is_one(x) for x in found)
    assert (kind.dtype(found[0]), kind.dtype(found[1])) == (dtype, "float32")
    assert {kind.address(x) for x in (*mine, *found)} <= worked_on
    for x, y in zip(found, pa.merge(outs, lses), strict=True):
        assert np.abs(kind.host(x) - y.astype(np.float32)).max() <= kind.tolerance


def test_pools_tables_and_lengths(kind: Kind, worked_on: set[int]) -> None:
    layout = pa.BlockLayout(2, 64, 16)
    pool = kind.make(np.zeros((4, layout.block_bytes), np.uint8).copy())
    if kind.package == "jax":
        with pytest.raises(pa.ArgumentError, match=r"`pool` must be writable; got .*JAX's arrays never change"):
            cache_of(kind, "float16", pool=pool)
        return
    cache, _ = cache_of(kind, "float16", pool=pool)
    assert kind.address(pool) in worked_on
    batch = pa.Batch(*(kind.make(np.array(x, np.int32)) for x in ([[2], [0]], [1, 3], [9, 3])), device=kind.device)
    assert (cache.device.to_host(batch.block_table).tolist(), batch.seqlens_q.tolist(), batch.num_tokens) == ([[2], [0]], [1, 3], 4)
    k = kind.make(rows(0, 2, "float16", 4))
    pa.append(k, k, cache, batch)
    assert (kind.host(pool[2]) != 0).any()
    assert not (kind.host(pool[1]) != 0).any()


def test_not_numpys_own(kind: Kind) -> None:
    """A read-only NumPy array serves as input, and as nothing else."""
    if kind.package != "numpy":
        pytest.skip("of NumPy")
    cache, batch = cache_of(kind, "float16")
    q, k = rows(0, 4, "float16"), rows(1, 2, "float16")
    q.flags.writeable = k.flags.writeable = False
    pa.paged_attention(q, cache, batch, k=k, v=k)
    with pytest.raises(pa.ArgumentError, match="`out` must be writable; got a read-only array"):
        pa.paged_attention(q, cache, batch, out=q)
    with pytest.raises(pa.ArgumentError, match=r"`out\[1\]` must be float16 \(9, 2, 64\), contiguous; got float16 \(9, 4, 64\)"):
        pa.gather(cache, batch, out=(k.copy(), q))
    with pytest.raises(pa.ArgumentError, match="`out` must be a pair of arrays"):
        pa.gather(cache, batch, out=k)
