"""merge: results of the same queries over different keys become the result over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import dtypes
from pagedattn.arrays import adopt, device_of, give_back, stream_of
from pagedattn.errors import ArgumentError

if TYPE_CHECKING:
    from pagedattn.devices.base import Device


def merge(outs: Sequence[Any], lses: Sequence[Any]) -> tuple[Any, Any]:
    """Merge results of the same queries over different keys, by log-sum-exp.

    Parameters
    ----------
    outs : sequence of arrays (num_tokens, num_heads, head_dim), float16 or bfloat16
        Partial outputs, each normalised over its own keys.
    lses : sequence of arrays (num_tokens, num_heads), float32
        Their log-sum-exps; -inf where a part has no keys.

    Returns
    -------
    out, lse : arrays
        What attention over all keys gives.

    Raises
    ------
    ArgumentError
        No parts, or parts that differ in shape, dtype or device.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> a, b = np.full((1, 1, 64), 1, np.float16), np.full((1, 1, 64), 3, np.float16)
    >>> out, lse = pa.merge([a, b], [np.zeros((1, 1), np.float32)] * 2)
    >>> float(out[0, 0, 0]), round(float(lse[0, 0]), 4)
    (2.0, 0.6931)
    """
    for name, given in (("outs", outs), ("lses", lses)):
        if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
            raise ArgumentError(f"`{name}` must be a sequence of arrays; got {type(given).__name__}.")
    if not len(outs) or len(outs) != len(lses):
        raise ArgumentError(f"`outs` and `lses` must have the same length, at least 1; got {len(outs)} and {len(lses)}.")
    device = device_of(outs[0], "outs[0]")
    with device.using(stream_of(outs[0], device)):
        return _merged(outs, lses, device)


def _merged(outs: Sequence[Any], lses: Sequence[Any], device: Device) -> tuple[Any, Any]:
    parts = [adopt(x, device, f"outs[{i}]") for i, x in enumerate(outs)]
    weights = [adopt(x, device, f"lses[{i}]") for i, x in enumerate(lses)]
    first = parts[0]
    if first.ndim != 3 or dtypes.activation(first.dtype, "outs[0].dtype") is None:
        raise ArgumentError(f"`outs[0]` must have 3 dimensions (num_tokens, num_heads, head_dim); got shape {first.shape}.")
    for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        if part.shape != first.shape or part.dtype != first.dtype:
            raise ArgumentError(f"`outs[{i}]` must be like outs[0], {first.dtype} {first.shape}; got {part.dtype} {part.shape}.")
        if weight.shape != first.shape[:2] or weight.dtype != np.float32:
            raise ArgumentError(f"`lses[{i}]` must be float32 {first.shape[:2]}; got {weight.dtype} {weight.shape}.")
    parts, weights = [device.asarray(x) for x in parts], [device.asarray(x) for x in weights]
    out, lse = device.empty(first.shape, first.dtype), device.empty(first.shape[:2], np.float32)
    if out.size:
        device.merge(parts, weights, out, lse)
    return give_back(out, outs[0]), give_back(lse, outs[0])
