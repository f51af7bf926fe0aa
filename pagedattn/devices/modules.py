"""Modules: the kernels that are loaded on a GPU."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from pagedattn.errors import DeviceFault

if TYPE_CHECKING:
    from pagedattn.kernel import Kernel
    from pagedattn.spec import KernelSpec

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CUfunction_attribute


class Loaded(NamedTuple):
    """A kernel on a GPU: the driver's handle, and of each CTA the threads and the dynamic shared memory."""

    function: int
    threads: int
    shared_bytes: int
    module: Any  # keeps the code on the device


class Modules(dict["KernelSpec", Loaded]):
    """What is loaded on one GPU, by spec. Nothing is unloaded: captured graphs hold functions, too.

    Parameters
    ----------
    cupy : module
    index : int
        The CUDA device's number.
    where : str
        What errors call the GPU.
    """

    def __init__(self, cupy: Any, index: int, where: str) -> None:
        super().__init__()
        self._cuda, self._index, self._where = cupy.cuda, index, where
        self._guard = threading.Lock()

    def load(self, kernel: Kernel) -> Loaded:
        """Put a kernel's code on the GPU."""
        spec = kernel.spec
        with self._guard, self._cuda.Device(self._index):
            module = self._cuda.function.Module()
            try:
                module.load(kernel.cubin)
            except self._cuda.driver.CUDADriverError as error:
                raise DeviceFault(f"{spec.name} could not be loaded on {self._where}: {error}") from error
            function = module.get_function(spec.name).ptr
            if spec.shared_bytes:  # 48 KB, static shared memory included, are granted unasked
                self._cuda.driver.funcSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, spec.shared_bytes)
            loaded = self[spec] = Loaded(function, spec.threads, spec.shared_bytes, module)
        return loaded
