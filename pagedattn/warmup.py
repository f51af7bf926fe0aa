"""warmup: the kernels that a model's calls can ask for, built and loaded before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagedattn import devices, dispatch
from pagedattn.errors import ArgumentError
from pagedattn.layout import BlockLayout
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device
    from pagedattn.kernel import Kernel


@dataclass(frozen=True)
class Warmth:
    """What `warmup` loaded; prints as a table.

    Attributes
    ----------
    device : str
        Where the kernels are ready.
    kernels : tuple of Kernel
        One for each spec; empty on a device that runs none.
    """

    device: str
    kernels: tuple[Kernel, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "device": self.device,
            "kernels": [{"name": k.name, "origin": k.origin, "seconds": round(k.seconds, 3)} for k in self.kernels],
        }

    def __str__(self) -> str:
        width = max((len(k.name) for k in self.kernels), default=0)
        if not self.kernels:
            return f"{self.device} runs no kernels: nothing to warm up"
        origins = ["from the store" if k.origin == "store" else f"compiled in {k.seconds:.2f} s" for k in self.kernels]
        lines = [f"{k.name:<{width}}  {origin}" for k, origin in zip(self.kernels, origins, strict=True)]
        return "\n".join([*lines, f"{len(lines)} kernels ready on {self.device}"])


def warmup(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: str = "float16",
    kv_dtype: str | None = None,
    device: str | Device | None = None,
) -> Warmth:
    """Build and load every kernel that calls of a model's shape can ask for; afterwards no call compiles, loads or synchronises.

    Parameters
    ----------
    num_heads, num_kv_heads : int
        Query heads and KV heads.
    head_dim, dtype, kv_dtype
        See BlockLayout.
    device : str or Device, optional
        None: the default device. On "cpu" there is nothing to do.

    Raises
    ------
    ArgumentError, UnsupportedError
        A shape that no kernel serves.

    Examples
    --------
    >>> print(warmup(num_heads=32, num_kv_heads=8, head_dim=128, device="cpu"))
    cpu runs no kernels: nothing to warm up
    """
    layout = BlockLayout(num_kv_heads, head_dim, dtype=dtype, kv_dtype=kv_dtype)
    if (heads := whole(num_heads)) is None or heads < 1 or heads % num_kv_heads:
        raise ArgumentError(f"`num_heads` must be a positive multiple of num_kv_heads, {num_kv_heads}; got {num_heads!r}.")
    target = devices.get(device)
    if target.arch is None or target.source is None:
        return Warmth(target.name, ())
    from pagedattn import build  # here and not above: `import pagedattn` stays quick

    kernels = [build.build(spec) for spec in dispatch.specs_of(layout, num_heads, target.arch, target.source, target.model)]
    for kernel in kernels:
        target.load(kernel)
    return Warmth(target.name, tuple(kernels))
