"""ContextParallel: which tokens of every sequence a rank keeps, where several share the keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pagedattn.errors import ArgumentError
from pagedattn.values import whole

Array = np.ndarray[Any, Any]

MOST = 1024  # ranks


@dataclass(frozen=True)
class ContextParallel:
    """One rank of several that share the keys of every sequence.

    The token at position p of a sequence belongs to rank p % size, as its local token p // size. A rank's cache holds its own tokens only;
    lengths, positions and masks are the sequences' own, and every rank runs all queries and heads over its own keys.

    Parameters
    ----------
    rank : int
        0 .. size - 1.
    size : int
        Ranks, 1 to 1024.

    Raises
    ------
    ArgumentError
        Numbers outside that.

    Examples
    --------
    Two ranks, here one after the other on one device. `pagedattn.distributed.all_merge` is the last line where they are processes.

    >>> import numpy as np, pagedattn as pa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2, 64)).astype(np.float16)
    >>> parts = []
    >>> for rank in range(2):
    ...     cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="cpu", cp=pa.ContextParallel(rank, 2))
    ...     batch = cache.extend([cache.new_sequence()], [5])
    ...     parts.append(pa.paged_attention(q, cache, batch, k=k, v=v))  # this rank's (out, lse)
    >>> out, lse = pa.merge(*zip(*parts))
    >>> bool(np.array_equal(out[0], v[0]))  # the first token sees only itself
    True
    """

    rank: int
    size: int

    def __post_init__(self) -> None:
        for name in ("rank", "size"):
            value = getattr(self, name)
            if (number := whole(value)) is None:
                raise ArgumentError(f"`{name}` of ContextParallel must be an integer; got {value!r}.")
            object.__setattr__(self, name, number)
        if not 1 <= self.size <= MOST or not 0 <= self.rank < self.size:
            raise ArgumentError(
                f"ContextParallel must be a rank from 0 to size - 1, with 1 to {MOST} ranks; got rank {self.rank} of {self.size}."
            )

    def own(self, length: Any) -> Any:
        """How many of a sequence's first `length` tokens are this rank's; an int or an integer array, not negative.

        >>> [ContextParallel(rank, 3).own(7) for rank in range(3)]
        [3, 2, 2]
        """
        return (length + (self.size - 1 - self.rank)) // self.size


WHOLE = ContextParallel(0, 1)  # a rank that has every key
