"""Results of ranks that are processes: gathered through the communicator that the caller has, and merged."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import devices
from pagedattn.arrays import adopt, give_back, place
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.merge import merge

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

_NCCL_UINT8 = 1  # ncclDataType_t


def all_merge(out: Any, lse: Any, communicator: Any = None) -> tuple[Any, Any]:
    """Every rank's (out, lse) of the same queries, gathered by one collective and merged: on every rank the result over all keys.

    Parameters
    ----------
    out : array (num_tokens, num_heads, head_dim)
        This rank's, as `paged_attention` gives it under context parallelism; of the same shape and dtype on every rank.
    lse : float32 array (num_tokens, num_heads)
        Its log-sum-exp.
    communicator : optional
        Of the ranks: a group of torch.distributed (None: its default group), an NCCLBackend of cupyx.distributed, an NcclCommunicator of
        cupy.cuda.nccl, or any object with `size` and `all_gather(mine, everyone, count)` for contiguous arrays of `count` bytes a rank.

    Returns
    -------
    out, lse : arrays like those given
        The same bits on every rank.

    Raises
    ------
    ArgumentError
        Arrays that do not belong together.
    UnsupportedError
        A communicator of another kind.

    Notes
    -----
    Work is ordered on the current stream: PyTorch's where it gathers, else CuPy's. What is sent is num_heads * (2 * head_dim + 4) bytes a
    token and rank.

    Examples
    --------
    >>> from pagedattn.distributed import all_merge
    >>> class Twins:  # two ranks that bring the same
    ...     size = 2
    ...
    ...     def all_gather(self, mine, everyone, count):
    ...         everyone[...] = mine
    >>> out, lse = all_merge(np.ones((1, 1, 64), np.float16), np.zeros((1, 1), np.float32), Twins())
    >>> float(out[0, 0, 0]), round(float(lse[0, 0]), 4)
    (1.0, 0.6931)
    """
    where = place(out)
    if where is None:
        raise ArgumentError(f"`out` must be an array; got {type(out).__name__}.")
    device = devices.get("cpu" if where == "managed" else where)
    size, gather, stream = _collective(communicator, device)
    with device.using(stream):
        rows, weights = (device.asarray(adopt(x, device, name)) for x, name in ((out, "out"), (lse, "lse")))
        if rows.ndim != 3 or weights.shape != rows.shape[:2] or weights.dtype != np.float32:
            raise ArgumentError(
                "`out` must have 3 dimensions (num_tokens, num_heads, head_dim), and `lse` be float32 of the first two; "
                f"got {rows.dtype} {tuple(rows.shape)} and {weights.dtype} {tuple(weights.shape)}."
            )
        if not rows.size:
            return out, lse
        begin, end = rows.nbytes, rows.nbytes + weights.nbytes  # of the log-sum-exps, behind the rows
        mine, everyone = device.empty((end,), np.uint8), device.empty((size, end), np.uint8)
        mine[:begin], mine[begin:] = (x.reshape(-1).view(np.uint8) for x in (rows, weights))
        gather(mine, everyone, end)
        outs = [part[:begin].view(rows.dtype).reshape(rows.shape) for part in everyone]
        lses = [part[begin:].view(np.float32).reshape(weights.shape) for part in everyone]
        merged = merge(outs, lses)
    return give_back(merged[0], out), give_back(merged[1], lse)


def _collective(communicator: Any, device: Device) -> tuple[int, Callable[[Any, Any, int], Any], Any]:
    """How many ranks there are, what gathers bytes from them, and the stream that orders it; None: the current one."""
    kind = type(communicator)
    torch = sys.modules.get("torch")  # whoever has a group of it has imported it
    if torch is not None and (communicator is None or kind.__module__.startswith("torch.")):
        group: Any = torch.distributed

        def gather_by_torch(mine: Any, everyone: Any, count: int) -> None:
            group.all_gather_into_tensor(torch.from_dlpack(everyone).reshape(-1), torch.from_dlpack(mine), group=communicator)

        stream = None if device.arch is None else torch.cuda.current_stream(device.index)
        return group.get_world_size(communicator), gather_by_torch, stream
    if hasattr(communicator, "allGather"):

        def gather_by_nccl(mine: Any, everyone: Any, count: int) -> None:
            addresses = device.address(mine), device.address(everyone)
            communicator.allGather(*addresses, count, _NCCL_UINT8, device.current_stream())

        return communicator.size(), gather_by_nccl, None
    if hasattr(communicator, "all_gather"):
        size = getattr(communicator, "size", None) or getattr(communicator, "_n_devices", None)  # CuPy's backends tell it to themselves
        if size is not None:
            return size, communicator.all_gather, None
    raise UnsupportedError(
        "`communicator` must be a group of torch.distributed, an NCCLBackend of cupyx.distributed, an NcclCommunicator of cupy.cuda.nccl, "
        f"or have `size` and `all_gather`; got {'None, and PyTorch is not imported' if communicator is None else kind.__name__}."
    )
