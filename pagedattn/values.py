"""Single values that callers bring: an integer, a flag, splits, a list that becomes an array; anything else is refused with a text."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from pagedattn.errors import ArgumentError

Array = np.ndarray[Any, Any]


def whole(value: Any) -> int | None:
    """`value` as an int if it is an integer, NumPy's included; None if it is not. A bool is none, and an array neither.

    >>> whole(np.int64(3)), whole(3.0), whole(True), whole(np.array([3, 4]))
    (3, None, None, None)
    """
    if type(value) is int:
        return value
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def flag(value: Any, name: str) -> bool:
    """`value`, which must be a bool of Python or NumPy.

    >>> flag(np.False_, "causal")
    False
    """
    if type(value) is bool:
        return value
    if not isinstance(value, np.bool_):
        raise ArgumentError(f"`{name}` must be True or False; got {value!r}.")
    return bool(value)


def listed(value: Any, name: str, kind: str) -> Array:
    """A caller's list, or whatever NumPy takes for one, as an array; `kind` says what it must hold.

    >>> listed([1, 2], "seqlens", "integers").tolist()
    [1, 2]
    """
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"`{name}` must hold {kind}; NumPy says: {error}") from error


def splits(value: int | str, tile: int = 16) -> int:
    """`num_splits` as a number: n cuts as n, cuts of N keys as -N. Cuts lie between decode's tiles, of `tile` keys.

    >>> splits(4), splits("fixed:256")
    (4, -256)
    """
    if isinstance(value, str):
        kind, _, keys = value.partition(":")
        if kind == "fixed" and keys.isdecimal() and len(keys) < 10 and int(keys) > 0 and int(keys) % tile == 0:
            return -int(keys)
    elif (cuts := whole(value)) is not None and 1 <= cuts <= 1024:
        return cuts
    raise ArgumentError(
        f"`num_splits` must be None, an integer from 1 to 1024, or 'fixed:N' with N a multiple of {tile}, decode's tile; got {value!r}."
    )
