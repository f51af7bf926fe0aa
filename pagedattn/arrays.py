"""Callers' arrays: adopted without a copy, and results given back in the caller's kind.

NumPy and CuPy arrays pass as they are; PyTorch, JAX and others come through DLPack or __cuda_array_interface__.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import devices, dtypes
from pagedattn.dtypes import BFLOAT16
from pagedattn.errors import ArgumentError

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

# DLDeviceType of dlpack.h; pinned and managed memory is addressable from the host
_DLPACK_CUDA, _DLPACK_MANAGED = 2, 13
_DLPACK_HOST = (1, 3, _DLPACK_MANAGED)


def adopt(x: Any, device: Device, argument: str, stream: Any = None, written: bool = False) -> Any:
    """`x` as an array of `device`, sharing its memory.

    Parameters
    ----------
    x : array
        NumPy, CuPy, or any object with DLPack or `__cuda_array_interface__`; bfloat16 becomes `ml_dtypes.bfloat16`.
    device : Device
        Where it must be.
    argument : str
        What the caller calls it; the text of an error names it.
    stream : optional
        Where it is ready; None: on its library's current stream, which the current one then waits for.
    written : bool
        Results go there.

    Raises
    ------
    ArgumentError
        It is no array, lies elsewhere, would need a gradient, has a dtype that the device's arrays lack, or may not be written.

    Examples
    --------
    >>> from pagedattn import devices
    >>> x = np.zeros((2, 3))
    >>> adopt(x, devices.get("cpu"), "q") is x
    True
    """
    kind = type(x)
    if kind is device.array_type and (kind is np.ndarray or x.data.device_id == device.index):
        return x
    if (torch := _torch_of(x)) is not None and kind.__module__ == "torch" and (found := _borrowed(x, torch, device, stream)) is not None:
        return found
    if written and _is_jax(x):
        raise ArgumentError(f"`{argument}` must be writable; got {_kind(x)}, and JAX's arrays never change. Leave it None.")
    where = place(x)
    if where is None:
        raise _no_array(x, argument)
    host = where == "cpu" and device.array_type is np.ndarray
    if where != device.name.partition("+")[0] and not (host or where == "managed" or (where == "cuda" and device.name.startswith("cuda"))):
        raise ArgumentError(f"`{argument}` must be on {device.name}, where the cache is; got {_kind(x)} on {where}. Move it there first.")
    try:
        return _shared(x, device, argument)
    except (BufferError, TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, ArgumentError):
            raise
        raise ArgumentError(f"`{argument}` must be an array that can be shared through DLPack; {_kind(x)} refused: {error}") from error


def give_back(result: Any, like: Any) -> Any:
    """`result`, an array of a device, as the kind of array that `like` is; the memory is shared where that kind permits.

    A kind without DLPack (Numba's device arrays) gets `result` itself.

    Examples
    --------
    >>> x = np.zeros(3)
    >>> give_back(x, np.ones(3)) is x
    True
    """
    if type(result) is type(like) or isinstance(like, np.ndarray):
        return result
    torch = _torch_of(like)
    if torch is not None:
        if result.dtype.name == "bfloat16":
            return torch.from_dlpack(result.view(np.int16)).view(torch.bfloat16)
        return torch.from_dlpack(result)
    root = type(like).__module__.partition(".")[0]
    if _is_jax(like):
        jax = sys.modules["jax"]
        if isinstance(result, np.ndarray):  # NumPy's DLPack has no bfloat16
            return jax.device_put(result, next(iter(like.devices())), may_alias=True)
        return jax.dlpack.from_dlpack(result)
    take = getattr(sys.modules.get(root), "from_dlpack", None)
    return take(result) if callable(take) else result


def stream_of(x: Any, device: Device) -> int | None:
    """PyTorch's current stream where `x` is a tensor on a GPU and the device's own current stream is another: there the call must run.

    >>> from pagedattn import devices
    >>> stream_of(np.zeros(3), devices.get("cpu"))
    """
    if type(x) is device.array_type or device.array_type is np.ndarray or (torch := _torch_of(x)) is None or not x.is_cuda:
        return None
    address = int(torch.cuda.current_stream(x.device).cuda_stream)
    return None if address == device.current_stream() else address


def room_like(x: Any, shape: Any, dtype: str | None = None) -> Any:
    """For a tensor on a GPU, memory of PyTorch's own for a result: it follows PyTorch's streams and graphs. None for other kinds.

    >>> room_like(np.zeros(3), (3,))
    """
    torch = _torch_of(x)
    if torch is None or not x.is_cuda:
        return None
    return torch.empty(tuple(shape), dtype=x.dtype if dtype is None else getattr(torch, dtype), device=x.device)


def place(x: Any) -> str | None:
    """Where an array's memory is: "cpu", "cuda:1"; "cuda" if its owner does not say which; "managed"; None: `x` is no array.

    >>> place(np.zeros(3)), place([0.0])
    ('cpu', None)
    """
    if isinstance(x, np.ndarray):
        return "cpu"
    if hasattr(x, "__dlpack_device__"):
        try:
            kind, index = (int(part) for part in x.__dlpack_device__())
        except (BufferError, RuntimeError, TypeError, ValueError):
            return "a device that DLPack cannot name"
        if kind == _DLPACK_MANAGED:
            return "managed"
        return f"cuda:{index}" if kind == _DLPACK_CUDA else "cpu" if kind in _DLPACK_HOST else f"DLPack device ({kind}, {index})"
    return "cuda" if hasattr(x, "__cuda_array_interface__") else None


def device_of(x: Any, argument: str) -> Device:
    """The device on which an array lies; managed memory counts as the host's. ArgumentError: `x`, called `argument`, is no array.

    >>> device_of(np.zeros(3), "q").name
    'cpu'
    """
    where = place(x)
    if where is None:
        raise _no_array(x, argument)
    return devices.get("cpu" if where == "managed" else where)


def _no_array(x: Any, argument: str) -> ArgumentError:
    return ArgumentError(
        f"`{argument}` must be an array (NumPy, CuPy, or any object with DLPack or __cuda_array_interface__); got {_kind(x)}."
    )


def _shared(x: Any, device: Device, argument: str) -> Any:
    """`x`, which lies on `device`, as an array of it."""
    if isinstance(x, np.ndarray):
        return x.view(np.ndarray)
    torch = _torch_of(x)
    if torch is not None:
        return _from_torch(x, torch, device, argument)
    library = sys.modules[device.array_type.__module__.partition(".")[0]]
    if not hasattr(x, "__dlpack__"):
        return library.asarray(x)
    try:
        return library.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError):
        # NumPy's DLPack has no bfloat16; JAX shares such arrays through __array__
        if device.array_type is np.ndarray and hasattr(x, "__array__"):
            return np.asarray(x)
        raise


def _from_torch(x: Any, torch: Any, device: Device, argument: str) -> Any:
    if x.requires_grad:
        if torch.is_grad_enabled():
            raise ArgumentError(f"`{argument}` must not require a gradient: none is computed. Pass {argument}.detach().")
        x = x.detach()
    bits = x.view(torch.int16) if x.dtype is torch.bfloat16 else x
    # Tensor.numpy() is writable where NumPy makes the import of an older DLPack read-only
    array = bits.numpy() if device.array_type is np.ndarray else sys.modules["cupy"].from_dlpack(bits)
    return array if bits is x else array.view(BFLOAT16.numpy)


def _borrowed(x: Any, torch: Any, device: Device, stream: Any) -> Any:
    """A tensor on `device` by its address, for a third of what DLPack costs. None: DLPack must look at it."""
    if device.array_type is np.ndarray or x.get_device() != device.index or x.requires_grad or not x.numel():
        return None
    dtype = _numpy_of(x.dtype)
    # where the libraries' current streams differ, DLPack makes one wait for the other
    if dtype is None or (stream is None and torch.cuda.current_stream(x.device).cuda_stream != device.current_stream()):
        return None
    return device.borrow(x.data_ptr(), tuple(x.shape), tuple([dtype.itemsize * n for n in x.stride()]), dtype, x)


@cache
def _numpy_of(kind: Any) -> np.dtype[Any] | None:
    """The NumPy dtype of a PyTorch one, of those that calls take."""
    name = str(kind).rpartition(".")[2]
    return dtypes.of(name).numpy if name in dtypes.ACTIVATIONS else np.dtype(name) if name in ("float32", "uint8", "int32") else None


def _torch_of(x: Any) -> Any:
    """The torch module if `x` is a tensor; it was imported by whoever made the tensor."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return torch if tensor is not None and isinstance(x, tensor) else None


def _is_jax(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] in ("jax", "jaxlib")


def _kind(x: Any) -> str:
    kind = type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
