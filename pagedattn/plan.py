"""Plan: what a call left with its batch, so that the next call of its kind only names its arrays, its layer and its stream.

A call is of a kind with another if nothing differs but addresses: same batch, layout, shapes, strides, dtypes and options. What depends on
those alone, checks, choice of kernels and AttentionParams, has then been done.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pagedattn.spec import KernelSpec

MOST = 64  # plans of one batch: a caller who varies an option without end must not fill the memory


class Step(NamedTuple):
    """One launch of a loaded kernel.

    Attributes
    ----------
    spec : KernelSpec
    function : int
        The driver's handle of the kernel on the plan's device.
    grid : int
        CTAs.
    image : bytes
        What the driver is told but for the operands and the stream, from `Launcher.image`.
    partial_bytes, counts : int
        Workspace: bytes of pieces, and words that are zero between launches.
    """

    spec: KernelSpec
    function: int
    grid: int
    image: bytes
    partial_bytes: int
    counts: int


@dataclass(slots=True)
class Plan:
    """The launches of a call, in order.

    Attributes
    ----------
    steps : tuple of Step
    layer_bytes : int
        What lies in a block from one layer to the next.
    writes : bool
        Whether attention's launch writes the new rows, too.
    """

    steps: tuple[Step, ...]
    layer_bytes: int
    writes: bool = False


class Plans(dict[Hashable, Plan]):
    """The plans of a batch by the key of their problems. It never refers to the batch, whose memory goes with its last reference.

    >>> plans = Plans()
    >>> plans.keep("a kind of call", Plan((), 0)), plans.get("a kind of call"), plans.get("another")
    (None, Plan(steps=(), layer_bytes=0, writes=False), None)
    """

    __slots__ = ()

    def keep(self, key: Hashable, plan: Plan) -> None:
        if len(self) >= MOST:
            self.clear()
        self[key] = plan
