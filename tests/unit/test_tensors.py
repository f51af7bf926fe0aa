"""PyTorch's tensors on a GPU, without either: how they are taken, and on which stream calls with them run."""

from __future__ import annotations

import sys
import types
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pagedattn as pa
from pagedattn.arrays import adopt

pytest.importorskip("cupy", reason="CuPy's arrays stand for a GPU's")

from tests.unit.fake_gpu import FakeGpu


class Tensor:
    """What is asked of a PyTorch tensor on a GPU."""

    __module__ = "torch"

    def __init__(self, array: Any, dtype: str = "torch.float16") -> None:
        self.array, self.shape, self.device, self.dtype = array, array.shape, "cuda:0", dtype
        self.requires_grad, self.asked, self.is_cuda = False, 0, True

    def get_device(self) -> int:
        return 0

    def numel(self) -> int:
        return int(self.array.size)

    def data_ptr(self) -> int:
        return int(self.array.data.ptr)

    def stride(self) -> tuple[int, ...]:
        return tuple(s // self.array.itemsize for s in self.array.strides)

    def view(self, kind: Any) -> Any:
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        self.asked += 1
        return 2, 0


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module in PyTorch's place, whose current stream is 0."""
    module: Any = types.ModuleType("torch")
    module.Tensor, module.bfloat16, module.int16 = Tensor, "torch.bfloat16", "torch.int16"
    module.is_grad_enabled = lambda: True
    module.stream, module.float32 = 0, "torch.float32"
    module.cuda = types.SimpleNamespace(
        current_stream=lambda device: types.SimpleNamespace(cuda_stream=module.stream), is_initialized=lambda: True
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_tensor_on_the_gpu_is_borrowed_by_its_address(torch: Any, dtype: str) -> None:
    gpu = FakeGpu()
    values = np.arange(2 * 6 * 4).reshape(2, 6, 4).astype(dtype if dtype != "bfloat16" else ml_dtypes.bfloat16)
    part = gpu.asarray(values)[:, 2:5]
    x = Tensor(part, f"torch.{dtype}")
    found = adopt(x, gpu, "q")
    assert (found.data.ptr, found.shape, found.strides, found.dtype) == (part.data.ptr, part.shape, part.strides, values.dtype)
    np.testing.assert_array_equal(gpu.to_host(found), values[:, 2:5])
    assert x.asked == 0


@pytest.mark.parametrize("change", ["stream", "gradient", "empty", "dtype"])
def test_a_tensor_that_dlpack_must_look_at(torch: Any, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr("cupy.from_dlpack", lambda x: "through DLPack")
    x = Tensor(gpu.asarray(np.zeros((0 if change == "empty" else 2, 3, 4), np.float16)))
    if change == "stream":
        gpu.stream.ptr = 64
    if change == "dtype":
        x.dtype = "torch.float64"
    if change == "gradient":
        x.requires_grad = True
        with pytest.raises(pa.ArgumentError, match=r"Pass q.detach\(\)"):
            adopt(x, gpu, "q")
    else:
        assert adopt(x, gpu, "q") == "through DLPack"
    assert x.asked == 1


@pytest.fixture
def gpu(torch: Any) -> Any:
    """A GPU on which PyTorch's memory lies too, and a current stream of PyTorch's own."""
    device = FakeGpu()
    torch.empty = lambda shape, dtype, device: Tensor(made(shape, dtype.partition(".")[2]), dtype)
    made, torch.stream = device.zeros, 64
    return device


def test_a_call_runs_on_pytorchs_current_stream(torch: Any, gpu: Any) -> None:
    """Without a wait, for the tensors are ready there; the batch, which belongs to nobody, is ready on both."""
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=gpu)
    gpu.waits.clear()
    batch = cache.extend([cache.new_sequence()], [3])
    assert gpu.waits == [(0, 64), (64, 0)]
    gpu.waits.clear()
    q, k, v = (Tensor(gpu.asarray(np.zeros((3, heads, 64), np.float16))) for heads in (4, 1, 1))
    out, lse = pa.paged_attention(q, cache, batch, k=k, v=k, return_lse=True)
    pa.append(k, k, cache, batch)
    pa.gather(cache, batch, out=(k, v))
    assert [x.stream for x in gpu.launches] == [64] * 4
    assert gpu.waits == []
    assert (type(out), out.shape, lse.shape, lse.dtype) == (Tensor, (3, 4, 64), (3, 4), "torch.float32")
    assert [q.asked, k.asked, out.asked, lse.asked] == [0] * 4
    pa.paged_attention(q, cache, batch, stream=types.SimpleNamespace(cuda_stream=128))
    pa.paged_attention(q.array, cache, batch)
    assert [x.stream for x in gpu.launches[4:]] == [128, 0]


def test_work_without_arrays_meets_pytorchs_stream(torch: Any, gpu: Any) -> None:
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=gpu)
    batch = cache.extend([cache.new_sequence()], [3])
    for work in (lambda: pa.gather(cache, batch), lambda: pa.Batch([[0]], [1], [1], device=gpu)):
        gpu.waits.clear()
        work()
        assert gpu.waits == [(0, 64), (64, 0)]
    assert gpu.launches[-1].stream == 0
    for begun, stream in ((False, 64), (True, 0)):
        torch.cuda.is_initialized, torch.stream = (lambda begun=begun: begun), stream
        gpu.waits.clear()
        pa.gather(cache, batch)
        assert gpu.waits == []
