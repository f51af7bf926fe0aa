"""adopt and give_back: no copies, the caller's kind, and errors that say where an array is."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pagedattn as pa
from pagedattn.arrays import adopt, give_back, place

CPU = pa.devices.get("cpu")


class Holder:
    """An array of another library, by DLPack alone."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array = array
        self.device = device

    def __dlpack__(self, **keywords: Any) -> Any:
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class OnGpu:
    """An array of a library that knows only the CUDA array interface."""

    __cuda_array_interface__: dict[str, Any] = {}  # noqa: RUF012


def test_numpy_is_taken_as_it_is() -> None:
    x = np.zeros((2, 3), np.float16)[:, ::2]
    assert adopt(x, CPU, "q") is x
    assert give_back(x, x) is x


def test_subclasses_of_numpy_share_memory(tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "pool", np.uint8, "w+", shape=(4,))
    found = adopt(x, CPU, "pool")
    assert type(found) is np.ndarray
    found[0] = 9
    assert x[0] == 9
    assert give_back(found, x) is found


def test_dlpack_shares_memory() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = adopt(Holder(x), CPU, "q")
    assert type(found) is np.ndarray
    assert np.shares_memory(found, x)


@pytest.mark.parametrize(
    ("x", "where"),
    [
        (np.zeros(1), "cpu"),
        (Holder(np.zeros(1)), "cpu"),
        (Holder(np.zeros(1), (3, 0)), "cpu"),
        (Holder(np.zeros(1), (2, 1)), "cuda:1"),
        (Holder(np.zeros(1), (13, 0)), "managed"),
        (Holder(np.zeros(1), (10, 2)), "DLPack device (10, 2)"),
        (OnGpu(), "cuda"),
        ([1.0], None),
        (1.0, None),
        (None, None),
    ],
)
def test_place(x: Any, where: str | None) -> None:
    assert place(x) == where


@pytest.mark.parametrize("x", [[1.0], 1.0, None, "q", object()])
def test_no_array(x: Any) -> None:
    with pytest.raises(pa.ArgumentError, match=f"`q` must be an array .*got {type(x).__name__}"):
        adopt(x, CPU, "q")


@pytest.mark.parametrize(
    ("x", "where"), [(Holder(np.zeros(1), (2, 1)), "cuda:1"), (OnGpu(), "cuda"), (Holder(np.zeros(1), (10, 0)), "DLPack device")]
)
def test_wrong_place(x: Any, where: str) -> None:
    with pytest.raises(pa.ArgumentError, match=f"`k` must be on cpu, where the cache is; got .*{type(x).__name__} on {where}"):
        adopt(x, CPU, "k")


def test_a_refusing_owner() -> None:
    class Refuses(Holder):
        def __dlpack__(self, **keywords: Any) -> Any:
            raise BufferError("not today")

    with pytest.raises(pa.ArgumentError, match=r"`v` must be an array that can be shared.*Refuses refused: not today"):
        adopt(Refuses(np.zeros(1)), CPU, "v")

    class Nowhere(Holder):
        def __dlpack_device__(self) -> tuple[int, int]:
            raise ValueError("meta")

    with pytest.raises(pa.ArgumentError, match="on a device that DLPack cannot name"):
        adopt(Nowhere(np.zeros(1)), CPU, "v")


def test_bfloat16_through_array() -> None:
    """NumPy's DLPack has no bfloat16: the owner's __array__ serves."""

    class Jax(Holder):
        def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
            return self.array

    x = np.ones(3, ml_dtypes.bfloat16)
    assert np.shares_memory(adopt(Jax(x), CPU, "q"), x)


def test_give_back_by_the_module_of_the_callers_array(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("otherlib")
    library.from_dlpack = Holder  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "otherlib", library)
    theirs = type("Array", (), {"__module__": "otherlib.core"})()
    result = np.zeros(3)
    back = give_back(result, theirs)
    assert isinstance(back, Holder)
    assert back.array is result


def test_give_back_to_a_library_without_dlpack() -> None:
    result = np.zeros(3)
    assert give_back(result, OnGpu()) is result


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    kind = getattr(torch, dtype)
    cache = pa.KVCache(
        2, num_kv_heads=1, head_dim=64, block_len=16, dtype=kind, device="cpu", pool=torch.zeros((2, 4096), dtype=torch.uint8)
    )
    q = torch.randn((3, 4, 64)).to(kind)
    found = adopt(q, cache.device, "q")
    assert found.ctypes.data == q.data_ptr()
    assert found.dtype.name == dtype
    out, lse = pa.paged_attention(q, cache, cache.extend([cache.new_sequence()], [3]), k=q[:, :1], v=q[:, 1:2], return_lse=True)
    assert (type(out), out.dtype, out.shape) == (torch.Tensor, kind, q.shape)
    assert lse.dtype is torch.float32
    assert torch.equal(out[0, 0], q[0, 1])
    given = torch.empty_like(q)
    assert pa.paged_attention(q, cache, cache_batch(cache), out=given) is given
    assert torch.equal(given, out)
    with pytest.raises(pa.ArgumentError, match=r"Pass q.detach\(\)"):
        adopt(q.clone().requires_grad_(), cache.device, "q")
    with torch.no_grad():
        adopt(q.clone().requires_grad_(), cache.device, "q")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_torch_on_a_gpu(dtype: str) -> None:
    """On the current stream of both libraries, and on one of PyTorch's own."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    cache = pa.KVCache(2, num_kv_heads=1, head_dim=64, block_len=16, dtype=dtype, device="cuda")
    batch = cache.extend([cache.new_sequence()], [3])
    q = torch.randn((3, 6, 64), device="cuda").to(getattr(torch, dtype))
    found = adopt(q[:, 1:], cache.device, "q")
    assert (found.data.ptr, found.strides[0], found.dtype.name) == (q[:, 1:].data_ptr(), 6 * 64 * 2, dtype)
    out, lse = pa.paged_attention(q[:, :4], cache, batch, k=q[:, 4:5], v=q[:, 5:], return_lse=True)
    torch.cuda.synchronize()
    assert (type(out), out.dtype, lse.dtype) == (torch.Tensor, q.dtype, torch.float32)
    assert torch.equal(out[0, 0], q[0, 5])
    given, stream = torch.full_like(out, float("nan")), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        other = q[:, :4] * 1
        assert pa.paged_attention(other, cache, batch, out=given) is given
    torch.cuda.synchronize()
    assert torch.equal(given, out)


def cache_batch(cache: pa.KVCache) -> pa.Batch:
    return pa.Batch([[0]], [3], [3], device=cache.device)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_jax(dtype: str) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    cache = pa.KVCache(2, num_kv_heads=1, head_dim=64, block_len=16, dtype=dtype, device="cpu")
    rng = np.random.default_rng(0)
    with jax.default_device(jax.devices("cpu")[0]):
        q = jax.numpy.asarray(rng.standard_normal((3, 4, 64)), dtype)
    out = pa.paged_attention(q, cache, cache.extend([cache.new_sequence()], [3]), k=q[:, :1], v=q[:, 1:2])
    assert isinstance(out, jax.Array)
    assert out.dtype == q.dtype
    assert (out[0, 0] == q[0, 1]).all()
    with pytest.raises(pa.ArgumentError, match="`out` must be writable"):
        pa.paged_attention(q, cache, cache_batch(cache), out=q)


@pytest.mark.cuda
def test_cupy() -> None:
    import cupy

    gpu = pa.devices.get("cuda")
    x = cupy.zeros((2, 3), cupy.float16)
    assert adopt(x, gpu, "q") is x
    assert place(x) == gpu.name
    assert adopt(Foreign(x), gpu, "q").data.ptr == x.data.ptr
    with pytest.raises(pa.ArgumentError, match=f"`q` must be on {gpu.name}.*numpy.ndarray on cpu"):
        adopt(np.zeros(3), gpu, "q")
    with pytest.raises(pa.ArgumentError, match=f"`q` must be on cpu.*on {gpu.name}"):
        adopt(x, CPU, "q")


class Foreign:
    """Shows a CuPy array by its CUDA array interface alone."""

    def __init__(self, array: Any) -> None:
        self.__cuda_array_interface__ = array.__cuda_array_interface__
        self.array = array
