"""Results of ranks that are processes: gathered through the communicator that the caller has, and merged."""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import collective, dtypes
from pagedattn.arrays import adopt, device_of, give_back, room_like
from pagedattn.errors import ArgumentError, UnsupportedError

if TYPE_CHECKING:
    from pagedattn.collective import Collective
    from pagedattn.devices.base import Device

_KEPT_BYTES = 1 << 20  # of a rank's result; preparing takes no part in the time of larger ones, whose memory would lie idle
_KEPT_ROOMS = 16


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
        Arrays that do not belong together; a group without this process.
    UnsupportedError
        A communicator of another kind; a stream that is being captured: for graphs there is `AllMerge`.

    Notes
    -----
    Work is ordered on the current stream: PyTorch's for tensors and where it gathers, else CuPy's. What is sent is
    num_heads * (2 * head_dim + 4) bytes a token and rank. What small results are packed and gathered in is kept for the next call of the
    thread with such arrays on that stream.

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
    device, ranks = device_of(out, "out"), collective.of(communicator)
    torch = _torch_of_stream(out, device, ranks)
    stream = None if torch is None else int(torch.cuda.current_stream(device.index).cuda_stream)
    with device.using(stream):
        rows, weights = adopt(out, device, "out", stream=stream), adopt(lse, device, "lse", stream=stream)
        if rows.ndim != 3 or weights.shape != rows.shape[:2] or weights.dtype != np.float32:
            raise ArgumentError(
                "`out` must have 3 dimensions (num_tokens, num_heads, head_dim), and `lse` be float32 of the first two; "
                f"got {rows.dtype} {tuple(rows.shape)} and {weights.dtype} {tuple(weights.shape)}."
            )
        if not rows.size:
            return out, lse
        if device.capturing():
            raise UnsupportedError("all_merge keeps memory for later calls, which a captured graph cannot share: capture an AllMerge.")
        room = _kept_room(rows, device, ranks)
        device.copy(((rows, room.rows), (weights, room.weights)))
        made = room_like(out, rows.shape), room_like(lse, weights.shape, "float32")
        total, weight = (_target(x, own, device, stream) for x, own in zip(made, (rows, weights), strict=True))
        room.merge(total, weight, stream)
    return give_back(total, out) if made[0] is None else made[0], give_back(weight, lse) if made[1] is None else made[1]


class AllMerge:
    """`all_merge` with memory of its own: attention writes where it is sent from, and the result comes back there. For CUDA graphs, too.

    Parameters
    ----------
    like : array (num_tokens, num_heads, head_dim)
        What the results are like in shape and dtype, and where: the queries. Of the same shape and dtype on every rank.
    communicator : optional
        As `all_merge` takes it.

    Attributes
    ----------
    out, lse : array like `like`, and float32 array (num_tokens, num_heads)
        What `paged_attention` writes into, and where the call leaves the result: PyTorch's if `like` is, else NumPy's or CuPy's.

    Raises
    ------
    ArgumentError
        `like` is no such array; a group without this process.
    UnsupportedError
        A communicator of another kind.

    Notes
    -----
    The call gathers and merges on the current stream, as `all_merge` does; it copies and allocates nothing. What is done with one AllMerge
    must follow each other, as on one stream: the memory is always the same.

    Examples
    --------
    >>> import pagedattn as pa
    >>> class Alone:
    ...     size = 1
    ...
    ...     def all_gather(self, mine, everyone, count):
    ...         everyone[0] = mine
    >>> cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu", cp=pa.ContextParallel(0, 1))
    >>> q = k = v = np.ones((3, 1, 64), np.float16)
    >>> merge = AllMerge(q, Alone())
    >>> _ = pa.paged_attention(q, cache, cache.extend([cache.new_sequence()], [3]), k=k, v=v, out=merge.out, lse=merge.lse)
    >>> out, lse = merge()
    >>> out is merge.out, float(out[2, 0, 0])
    (True, 1.0)
    """

    def __init__(self, like: Any, communicator: Any = None) -> None:
        self._device, ranks = device_of(like, "like"), collective.of(communicator)
        self._torch = _torch_of_stream(like, self._device, ranks)
        with self._device.using(self._stream()):
            shown = adopt(like, self._device, "like")
            dtypes.activation(shown.dtype, "like.dtype")
            if shown.ndim != 3:
                raise ArgumentError(f"`like` must have 3 dimensions (num_tokens, num_heads, head_dim); got shape {tuple(shown.shape)}.")
            self._room = _Room(shown.shape, shown.dtype, self._device, ranks, like) if shown.size else None
            arrays = (
                (self._room.rows, self._room.weights)
                if self._room is not None
                else (self._device.empty(shown.shape, shown.dtype), self._device.empty(shown.shape[:2], np.float32))
            )
            self.out, self.lse = (give_back(x, like) for x in arrays) if _is_tensor(like) else arrays
            self._device.synchronize()  # calls may come on any stream

    def __call__(self) -> tuple[Any, Any]:
        """Gather and merge what lies in `out` and `lse`; they are returned."""
        if self._room is not None:
            self._room.merge(self._room.rows, self._room.weights, self._stream())
        return self.out, self.lse

    def _stream(self) -> int | None:
        return None if self._torch is None else int(self._torch.cuda.current_stream(self._device.index).cuda_stream)


class _Room:
    """Memory for what this rank sends and for what all have sent; bound to the collective, and to the merge of the parts where they lie.

    A tensor's rooms are PyTorch's memory.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, device: Device, ranks: Collective, like: Any = None) -> None:
        dtypes.activation(dtype, "out.dtype")
        begin = int(np.prod(shape)) * dtype.itemsize  # of the log-sum-exps, behind the rows
        end = begin + 4 * shape[0] * shape[1]

        def memory(*size: int) -> Any:
            tensor = room_like(like, size, "uint8")
            return device.empty(size, np.uint8) if tensor is None else adopt(tensor, device, "like")

        def views(part: Any) -> tuple[Any, Any]:
            return part[:begin].view(dtype).reshape(shape), part[begin:].view(np.float32).reshape(shape[:2])

        self._mine, self._everyone = memory(end), memory(ranks.size, end)
        self.identity = ranks.identity
        self.rows, self.weights = views(self._mine)
        self._gather = ranks.bind(self._mine, self._everyone, device)
        outs, lses = zip(*(views(part) for part in self._everyone), strict=True)
        self._merge = device.merging(outs, lses)

    def merge(self, out: Any, lse: Any, stream: int | None) -> None:
        """Gather what lies in `rows` and `weights`, and merge all of it into arrays, which may be those two."""
        self._gather(stream)
        self._merge(out, lse, stream)


class _Rooms(threading.local):
    """This thread's rooms, each for arrays of one kind, one communicator and one stream: there, its calls follow each other."""

    def __init__(self) -> None:
        self.kept: dict[Hashable, _Room] = {}


_ROOMS = _Rooms()
atexit.register(_ROOMS.kept.clear)  # memory that CuPy and PyTorch share goes while both are there


def _kept_room(rows: Any, device: Device, ranks: Collective) -> _Room:
    if rows.nbytes > _KEPT_BYTES:
        return _Room(rows.shape, rows.dtype, device, ranks)
    key = id(ranks.identity), ranks.size, rows.shape, rows.dtype, device.name, device.address_of(None)
    room = _ROOMS.kept.get(key)
    if room is None:
        room = _Room(rows.shape, rows.dtype, device, ranks)
        while len(_ROOMS.kept) >= _KEPT_ROOMS:
            del _ROOMS.kept[next(iter(_ROOMS.kept))]
        _ROOMS.kept[key] = room  # with its communicator, so that no other gets that id
    return room


def _target(made: Any, like: Any, device: Device, stream: int | None) -> Any:
    """Memory for a result, as an array of the device: PyTorch's where it has been made, else the device's."""
    return device.empty(like.shape, like.dtype) if made is None else adopt(made, device, "out", stream=stream)


def _torch_of_stream(x: Any, device: Device, ranks: Collective) -> Any:
    """The torch module, where its current stream is the one that counts: for its tensors on a GPU, and where it gathers from one."""
    if device.arch is None:
        return None
    return sys.modules["torch"] if ranks.by_torch or _is_tensor(x) else None


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)
