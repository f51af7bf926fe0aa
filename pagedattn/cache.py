"""KVCache: a pool of blocks, and the sequences that live in them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import devices, figures, pools
from pagedattn.arrays import place
from pagedattn.batch import Batch
from pagedattn.block_manager import BlockManager
from pagedattn.convert import Blocks, copy_tokens
from pagedattn.errors import ArgumentError
from pagedattn.layout import BlockLayout
from pagedattn.parallel import WHOLE, ContextParallel
from pagedattn.spec import KernelSpec
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

Array = np.ndarray[Any, Any]


class KVCache:
    """Keys and values of many sequences, in blocks of `block_len` tokens.

    Parameters
    ----------
    num_blocks : int
        Blocks of the pool; each holds `block_len` tokens of one sequence, all layers.
    num_kv_heads, head_dim, block_len, num_layers, dtype, kv_dtype
        See BlockLayout. `kv_dtype` "int8" or "int4" stores codes, with a scale and a zero for each token and KV head: 1.94 and 3.76 times
        as many tokens in the same memory at head_dim 128. A row with a NaN or an infinity reads back as NaN.
    device : str or Device, optional
        "cuda", "cuda:1", "cpu". None: where `pool` is, or the default device.
    pool : uint8 array (num_blocks, block_bytes), optional
        Memory to use instead of allocating; C-contiguous, on the device. What it holds does not matter.
    cp : ContextParallel, optional
        The rank whose tokens the cache keeps. Sequences are counted in all their tokens and take blocks for those of the rank; calls
        with this cache are this rank's.

    Attributes
    ----------
    layout : BlockLayout
    cp : ContextParallel or None
    pool : uint8 array (num_blocks, layout.block_bytes)
    device : Device

    Raises
    ------
    ArgumentError
        A size, dtype, device or pool that does not fit.
    UnsupportedError
        What this version does not serve.

    Examples
    --------
    >>> cache = KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
    >>> prompt = cache.new_sequence()
    >>> batch = cache.extend([prompt], [20])
    >>> twin = cache.fork(prompt)
    >>> cache.seqlen(twin), cache.num_free_blocks
    (20, 5)
    >>> cache
    KVCache(cpu, float16, 2 KV heads x 64, 1 layer: 2 sequences, 40 tokens; 3 of 8 blocks of 16 used, 0.023 of 0.062 MiB, 512 bytes a token)
    """

    def __init__(
        self,
        num_blocks: int,
        *,
        num_kv_heads: int,
        head_dim: int,
        block_len: int = 64,
        num_layers: int = 1,
        dtype: str = "float16",
        kv_dtype: str | None = None,
        device: str | Device | None = None,
        pool: Any = None,
        cp: ContextParallel | None = None,
    ) -> None:
        if not 1 <= (whole(num_blocks) or 0) < 2**31:
            raise ArgumentError(f"`num_blocks` must be a positive integer below 2**31; got {num_blocks!r}.")
        if cp is not None and not isinstance(cp, ContextParallel):
            raise ArgumentError(f"`cp` must be a ContextParallel(rank, size), or None; got {type(cp).__name__}.")
        self.layout, self.cp = BlockLayout(num_kv_heads, head_dim, block_len, num_layers, dtype, kv_dtype), cp
        if device is None and pool is not None:
            where = place(pool)
            device = None if where == "managed" else where
        self.device = devices.get(device)
        if self.device.arch is not None and self.device.source is not None:  # refuses what no kernel stores
            KernelSpec("append", self.layout.dtype, self.layout.kv_dtype, head_dim, self.device.arch.name, self.device.source.family)
        shape = (int(num_blocks), self.layout.block_bytes)
        with self.device.meeting():
            self.pool = self.device.empty(shape, np.uint8) if pool is None else pools.adopted(pool, self.device, shape)
        self._manager = BlockManager(shape[0], self.layout.block_len, cp)
        self._checked = (self.layout.block_len, shape[0], cp or WHOLE)

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""
        return self._manager.allocator.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._manager.allocator.num_free

    @property
    def num_sequences(self) -> int:
        """Sequences that were not freed."""
        return len(self._manager.sequences)

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences; those that sequences share count for each."""
        return self._manager.sequences.num_tokens

    def new_sequence(self) -> int:
        """A new, empty sequence's id; ids are never used twice."""
        return self._manager.sequences.add()

    def seqlen(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return self._manager.sequences.length_of(sequence)

    def extend(self, sequences: Sequence[int], num_new: Sequence[int]) -> Batch:
        """Make room for new tokens, and return the batch whose last tokens they are.

        A shared block that new tokens would be written to is copied first.

        Parameters
        ----------
        sequences : sequence of int
            Ids, each at most once.
        num_new : sequence of int
            New tokens of each; 0 is allowed.

        Raises
        ------
        OutOfBlocksError
            Too few free blocks; every sequence is as it was.
        ArgumentError
            Unknown or repeated ids, or negative counts; every sequence is as it was.

        Examples
        --------
        >>> cache = KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
        >>> a, b = cache.new_sequence(), cache.new_sequence()
        >>> cache.extend([a, b], [17, 3]).block_table.tolist()
        [[0, 1], [2, 0]]
        """
        return self._manager.extend(sequences, num_new, self._extended)

    def _extended(self, table: Array, new: Array, lengths: Array, sources: Array, targets: Array) -> Batch:
        disjoint = self._manager.disjoint
        batch = Batch.of_cache(self.device, table, new, lengths, self._checked, unshared=True, disjoint=disjoint)
        if len(sources):
            self._copy_blocks(sources.tolist(), targets.tolist())
        return batch

    def batch(self, sequences: Sequence[int]) -> Batch:
        """The batch in which each sequence's last token is the query; an empty sequence has none.

        Raises
        ------
        ArgumentError
            Unknown or repeated ids.
        """
        table, lengths = self._manager.of(sequences)
        return Batch.of_cache(self.device, table, np.minimum(lengths, 1), lengths, self._checked, disjoint=self._manager.disjoint)

    def truncate(self, sequence: int, n: int) -> None:
        """Keep the first `n` tokens of a sequence; blocks that hold none of them are released.

        Raises
        ------
        ArgumentError
            An unknown id, or `n` outside 0 .. seqlen(sequence).
        """
        self._manager.truncate(sequence, n)

    def fork(self, sequence: int) -> int:
        """A new sequence with the same tokens. Full blocks are shared; a partly filled last one is copied.

        Fork after the new tokens' rows are appended in every layer: the copy is of what the block holds now.

        Raises
        ------
        OutOfBlocksError
            No free block for the copy; nothing changed.
        ArgumentError
            An unknown id.
        """
        return self._manager.fork(sequence, self._copy_blocks)

    def free(self, sequence: int) -> None:
        """Forget a sequence; its blocks are released. Its id is not used again.

        Raises
        ------
        ArgumentError
            An unknown id.
        """
        self._manager.free(sequence)

    def convert(self, kv_dtype: str | None) -> KVCache:
        """A new cache on the same device that stores the same tokens as `kv_dtype`.

        It has the same sequences, ids and block tables, and shares blocks where this one does. This cache stays as it is.

        Parameters
        ----------
        kv_dtype : str or None
            "int8", "int4", or None for the cache's `dtype`. Codes are made of the rows as this cache reads them.

        Raises
        ------
        ArgumentError, UnsupportedError
            A `kv_dtype` that does not exist, or that this cache's head_dim or device does not permit.

        Examples
        --------
        >>> cache = KVCache(8, num_kv_heads=2, head_dim=128, block_len=16, device="cpu")
        >>> sequence = cache.new_sequence()
        >>> batch = cache.extend([sequence], [20])
        >>> small = cache.convert("int4")
        >>> small.seqlen(sequence), round(cache.pool.nbytes / small.pool.nbytes, 2)
        (20, 3.76)
        """
        old = self.layout
        new = KVCache(
            self.num_blocks,
            num_kv_heads=old.num_kv_heads,
            head_dim=old.head_dim,
            block_len=old.block_len,
            num_layers=old.num_layers,
            dtype=old.dtype,
            kv_dtype=kv_dtype,
            device=self.device,
            cp=self.cp,
        )
        new._manager = copy.deepcopy(self._manager)
        if new.layout == old:
            new.pool[...] = self.pool
        else:
            copy_tokens(self.device, Blocks(old, self.pool), Blocks(new.layout, new.pool), self._manager.tokens_in_blocks())
        return new

    def _copy_blocks(self, sources: list[int], targets: list[int]) -> None:
        self.device.copy_blocks(self.pool, sources, targets)

    def __repr__(self) -> str:
        return figures.line(self)

    def _repr_html_(self) -> str:
        return figures.table(self)
