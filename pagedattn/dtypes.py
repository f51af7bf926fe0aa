"""The element types of activations (T) and of the cache (Tkv), and how to recognise them in what callers bring."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pagedattn.errors import ArgumentError


@dataclass(frozen=True)
class DType:
    """One element type.

    Attributes
    ----------
    name : str
        As users write it: "float16".
    bits : int
        Width of one stored element.
    c_type : str
        The type's name in kernels/.
    """

    name: str
    bits: int
    c_type: str

    @property
    def is_activation(self) -> bool:
        """Whether q, k, v and out may have this type."""
        return self.name in ACTIVATIONS

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype of one element; bfloat16 comes from ml_dtypes, codes are uint8."""
        if self.name == "bfloat16":
            import ml_dtypes

            bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bfloat16
        return np.dtype("float16" if self.name == "float16" else "uint8")


FLOAT16 = DType("float16", 16, "half_t")
BFLOAT16 = DType("bfloat16", 16, "bfloat16_t")
INT8 = DType("int8", 8, "u8")
INT4 = DType("int4", 4, "u4")

_ALL = {d.name: d for d in (FLOAT16, BFLOAT16, INT8, INT4)}
ACTIVATIONS = ("float16", "bfloat16")
STORED = ("float16", "bfloat16", "int8", "int4")


def of(name: str | None) -> DType:
    """The DType of a resolved name.

    >>> of("bfloat16").c_type
    'bfloat16_t'
    """
    return _ALL[str(name)]


def activation(value: object, argument: str = "dtype") -> DType:
    """The activation type that `value` names: a string, a NumPy dtype or a framework's dtype.

    Raises ArgumentError for anything but float16 and bfloat16.

    >>> activation("float16").bits
    16
    >>> activation(np.float16).name
    'float16'
    """
    name = _name(value)
    if name not in ACTIVATIONS:
        raise ArgumentError(f"`{argument}` must be one of {', '.join(ACTIVATIONS)}; got {value!r}.")
    return _ALL[name]


def stored(value: object, dtype: DType) -> DType:
    """The stored type for activations of `dtype`: `value`, or `dtype` itself for None.

    >>> stored(None, FLOAT16).name
    'float16'
    """
    if value is None:
        return dtype
    name = _name(value)
    if name not in STORED:
        raise ArgumentError(f"`kv_dtype` must be None or one of {', '.join(STORED)}; got {value!r}.")
    found = _ALL[name]
    if found.is_activation and found != dtype:
        raise ArgumentError(f"a 16-bit `kv_dtype` must equal `dtype`, {dtype.name}; got {name}. Pass kv_dtype=None, or convert q, k and v.")
    return found


def _name(value: object) -> str:
    if isinstance(value, DType):
        return value.name
    if isinstance(value, str):
        return value
    try:
        return np.dtype(value).name  # type: ignore[call-overload, no-any-return]
    except TypeError:
        return str(value).rpartition(".")[2]  # torch.float16, jax.numpy.bfloat16
