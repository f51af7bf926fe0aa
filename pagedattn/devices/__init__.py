"""The devices and their names: the memory decides where the code runs."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pagedattn.errors import ArgumentError
from pagedattn.kernel import Kernel

if TYPE_CHECKING:
    from pagedattn.devices.base import Device


def get(name: str | Device | None = None) -> Device:
    """The device called `name`: "cpu", "cuda", "cuda:1", "interpreter:sm_90"; None is "cuda" where a GPU is usable, else "cpu".

    "cuda:1+sm_75" is that GPU with the kernels that an sm_75 would get, compiled for it: a way to try them without the card.

    >>> get("cpu").name
    'cpu'
    """
    if name is None:
        from pagedattn.devices import cuda

        name = "cuda" if cuda.usable() else "cpu"
    if not isinstance(name, str):
        from pagedattn.devices.base import Device

        if isinstance(name, Device):
            return name
        raise ArgumentError(f"`device` must be a string such as 'cuda', 'cuda:1', 'cpu' or 'interpreter'; got {name!r}.")
    return _get(name)


@cache
def _get(name: str) -> Device:
    place, plus, source = name.partition("+")
    kind, _, index = place.partition(":")
    if kind == "cpu" and not index and not plus:
        from pagedattn.devices.cpu import CpuDevice

        return CpuDevice()
    if kind == "cuda" and (not index or index.isdecimal()):
        from pagedattn.devices.cuda import CudaDevice

        return _get(f"cuda:{CudaDevice.current()}{plus}{source}") if not index else CudaDevice(int(index), source if plus else None)
    if kind == "interpreter" and not plus:
        from pagedattn.devices.interpreter import InterpreterDevice

        return InterpreterDevice(index) if index else _get("interpreter:sm_80")
    raise ArgumentError(f"`device` must be 'cuda', 'cuda:N', 'cuda:N+sm_75', 'cpu', 'interpreter' or 'interpreter:sm_XX'; got {name!r}.")


def _launch(kernel: Kernel, params: bytes, grid: int, stream: Any) -> None:
    from pagedattn.devices.cuda import CudaDevice

    device = _get(f"cuda:{CudaDevice.current()}")
    assert isinstance(device, CudaDevice)
    device.launch(kernel, params, grid, stream)


Kernel.launcher = staticmethod(_launch)
