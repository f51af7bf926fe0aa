"""Device: where arrays live and where an operation runs."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn.devices.streams import stream_address

if TYPE_CHECKING:
    from pagedattn.arch import Arch
    from pagedattn.kernel import Kernel
    from pagedattn.plan import Plan
    from pagedattn.problem import Problem


class Device(ABC):
    """Memory, and a way to run a Problem on it.

    Attributes
    ----------
    name : str
        "cpu", "cuda:0", "cuda:0+sm_75".
    index : int
        The CUDA device's number; 0 elsewhere.
    arch : Arch or None
        The target that kernels are compiled for; None: this device runs no kernels.
    source : Arch or None
        The target whose kernels run, tiles and all, compiled for `arch`: `arch` itself unless the device's name asks for another's.
    model : str
        What GPUs of its kind are called, by which rows that were tuned on one are found; empty: the shipped rows are used.
    array_type : type
        What its arrays are: numpy.ndarray or cupy.ndarray.
    """

    name: str
    index: int
    arch: Arch | None
    array_type: type
    model: str = ""

    @property
    def source(self) -> Arch | None:
        return self.arch

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: Any, stream: Any = None) -> Any:
        """An uninitialised C-contiguous array, for work on `stream`; None: the current one."""

    @abstractmethod
    def zeros(self, shape: Sequence[int], dtype: Any) -> Any:
        """A zeroed C-contiguous array."""

    @abstractmethod
    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """`x` (a host array or one of this device) as an array of this device; copied only where it must be."""

    @abstractmethod
    def to_host(self, x: Any) -> np.ndarray[Any, Any]:
        """A device array as a NumPy array."""

    @abstractmethod
    def memory_at(self, address: int, num_bytes: int) -> Any:
        """Somebody else's memory as a uint8 array."""

    def address_of(self, stream: Any) -> int:
        """A number for a stream; None: the current one."""
        return 0

    def using(self, stream: Any) -> AbstractContextManager[Any]:
        """What is made in its body is made for work on `stream`; None: the current one. What is no stream is refused."""
        if stream is not None:
            stream_address(stream)
        return nullcontext()

    def meeting(self) -> AbstractContextManager[Any]:
        """Its body comes after the work, and before the later work, of the current streams of all frameworks that are in use."""
        return nullcontext()

    def address(self, x: Any) -> int:
        """The address of an array's first element, as kernels see it."""
        raise NotImplementedError(f"{self.name} runs no kernels.")

    def aligned(self, q: Any, k: Any, v: Any, out: Any) -> bool:
        """Whether these arrays begin at multiples of ROW_ALIGNMENT bytes, as kernels move rows; None where there is none."""
        raise NotImplementedError(f"{self.name} leaves no plans.")

    def current_stream(self) -> int:
        """The address of this thread's current stream."""
        raise NotImplementedError(f"{self.name} has no streams.")

    def borrow(self, address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any, owner: Any) -> Any:
        """Memory of this device that `owner` keeps, as an array; `strides` in bytes."""
        raise NotImplementedError(f"{self.name} borrows through DLPack.")

    def capturing(self) -> bool:
        """Whether what comes on the current stream goes into a graph."""
        return False

    def synchronize(self) -> None:
        """Wait until the current stream has done its work."""
        return

    def copy(self, pairs: Sequence[tuple[Any, Any]], stream: Any = None) -> None:
        """Of each pair of arrays the first into the second, which is contiguous, of the same dtype, and of the same shape or wider."""
        for source, target in pairs:
            target[..., : source.shape[-1]] = source

    def seconds(self, work: Callable[[], object]) -> float:
        """What the work that `work` asks of this device takes."""
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    @abstractmethod
    def copy_blocks(self, pool: Any, sources: Sequence[int], targets: Sequence[int]) -> None:
        """pool[targets[i]] = pool[sources[i]], all layers."""

    @abstractmethod
    def run(self, problem: Problem) -> None:
        """Execute the problem: fill its outputs, or write its rows into the pool."""

    def prepare(self, problem: Problem) -> Plan | None:
        """What executing the problem, and all that share its key, takes: it is left with the batch. None: this device prepares nothing."""
        return None

    def follow(
        self, plan: Plan, arrays: Sequence[Any], pool: Any = None, layer: int = 0, stream: Any = None, workspace: Any = None
    ) -> None:
        """Execute what was prepared, on these arrays (`params.ARRAYS`, None where there is none)."""
        raise NotImplementedError(f"{self.name} leaves no plans.")

    def load(self, kernel: Kernel) -> None:
        """Make a kernel ready to run here."""
        raise NotImplementedError(f"{self.name} runs no kernels.")

    @abstractmethod
    def merge(self, outs: Sequence[Any], lses: Sequence[Any], out: Any, lse: Any) -> None:
        """Merge partial results by log-sum-exp into `out` (n, num_heads, head_dim) and `lse` (n, num_heads)."""

    def merging(self, outs: Sequence[Any], lses: Sequence[Any]) -> Callable[[Any, Any, Any], None]:
        """`merge` of parts that stay where they are: a function of `out`, `lse` and a stream, in which all else is done."""
        return lambda out, lse, stream: self.merge(outs, lses, out, lse)
