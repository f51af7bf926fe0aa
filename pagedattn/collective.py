"""Collective: the one operation that ranks have in common, bytes of each gathered by all, through the communicator that the caller has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

_NCCL_UINT8 = 1  # ncclDataType_t


class Collective(NamedTuple):
    """A communicator as `all_merge` uses it.

    Attributes
    ----------
    size : int
        The ranks.
    identity : object
        What the communicator is; where the caller named none, PyTorch's default group of this moment.
    by_torch : bool
        PyTorch gathers, on its own current stream.
    bind : callable
        `bind(mine, everyone, device)` for contiguous uint8 arrays (n,) and (size, n) of a device gives `gather(stream)`: all else is done
        once.
    """

    size: int
    identity: Any
    by_torch: bool
    bind: Callable[[Any, Any, Device], Callable[[int | None], Any]]


def of(communicator: Any) -> Collective:
    """The collective of a group of torch.distributed, a communicator of CuPy, or any object with `size` and `all_gather`.

    Examples
    --------
    >>> class Twins:
    ...     size = 2
    ...
    ...     def all_gather(self, mine, everyone, count): ...
    >>> of(Twins()).size
    2
    """
    kind = type(communicator)
    torch = sys.modules.get("torch")  # whoever has a group of it has imported it
    if torch is not None and (communicator is None or kind.__module__.startswith("torch.")):
        return _of_torch(torch.distributed, communicator)
    if hasattr(communicator, "allGather"):

        def bind_nccl(mine: Any, everyone: Any, device: Device) -> Callable[[int | None], Any]:
            fixed = device.address(mine), device.address(everyone), mine.size, _NCCL_UINT8
            return lambda stream: communicator.allGather(*fixed, device.current_stream() if stream is None else stream)

        return Collective(_ranks(communicator.size()), communicator, False, bind_nccl)
    if hasattr(communicator, "all_gather"):
        size = getattr(communicator, "size", getattr(communicator, "_n_devices", None))  # CuPy's backends tell it to themselves

        def bind_any(mine: Any, everyone: Any, device: Device) -> Callable[[int | None], Any]:
            def gather(stream: int | None) -> None:
                with device.using(stream):
                    communicator.all_gather(mine, everyone, mine.size)

            return gather

        if size is not None:
            return Collective(_ranks(size), communicator, False, bind_any)
    raise UnsupportedError(
        "`communicator` must be a group of torch.distributed, an NCCLBackend of cupyx.distributed, an NcclCommunicator of cupy.cuda.nccl, "
        f"or have `size` and `all_gather`; got {'None, and PyTorch is not imported' if communicator is None else kind.__name__}."
    )


def _ranks(size: Any) -> int:
    found = whole(size)
    if found is None or found < 1:
        raise ArgumentError(f"`communicator.size` must be how many ranks there are, a positive integer; got {size!r}.")
    return found


def _of_torch(distributed: Any, group: Any) -> Collective:
    try:
        size = distributed.get_world_size(group)
    except (ValueError, RuntimeError) as error:
        raise UnsupportedError(
            f"`communicator` None stands for torch.distributed's default group, and PyTorch says: {error} Call "
            "torch.distributed.init_process_group first, or pass a communicator."
        ) from error
    if size < 1:  # as PyTorch tells those outside
        raise ArgumentError("`communicator` must be a group that this process belongs to; got one of others.")

    def bind(mine: Any, everyone: Any, device: Device) -> Callable[[int | None], Any]:
        from_dlpack = sys.modules["torch"].from_dlpack
        own, all_of_them = from_dlpack(mine), from_dlpack(everyone).reshape(-1)
        gather = distributed.all_gather_into_tensor
        return lambda stream: gather(all_of_them, own, group=group)

    return Collective(size, distributed.group.WORLD if group is None else group, True, bind)
