"""Batch: which sequences take part in a call, how many new and how many total tokens each has, and where their blocks are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import devices
from pagedattn.arrays import place
from pagedattn.assignment import require_assignable, room_of
from pagedattn.block_table import BlockTable
from pagedattn.blocks import Blocks
from pagedattn.errors import ArgumentError
from pagedattn.integers import INT32_MAX, flags, integers, narrowed, token_counts
from pagedattn.parallel import ContextParallel
from pagedattn.plan import Plans
from pagedattn.values import flag

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

Array = np.ndarray[Any, Any]


class Batch(BlockTable):
    """Sequences of a paged cache, as a call sees them. A batch does not change; make a new one for the next step.

    A captured CUDA graph reads its batch's device arrays at every replay: there `assign` puts the next step into them.

    Parameters
    ----------
    block_table : array or nested list of int, (batch_size, max_blocks)
        Row b lists the blocks of sequence b in order. Entries past its last token are not read and may hold anything. Under context
        parallelism blocks are filled with this rank's tokens only; the lengths stay those of the sequences.
    seqlens_q, seqlens_k : array or list of int, (batch_size,)
        New tokens of each sequence, and all its tokens, the new ones included. Zero is a length.
    finished : bool array or list (batch_size,), optional
        Sequences to skip: append writes none of their rows, attention leaves theirs of `out=` untouched (zero where it makes the
        result, -inf in lse), gather likewise, and their blocks are not looked at. Their new tokens stay in q, k and v. An array of
        bool on the device is used as it is: what it holds when a kernel runs counts.
    unshared : bool
        That no block which takes a new token is in another sequence's row; `KVCache.extend` makes it so. A decode step may then write and
        attend in one launch. Whether it holds is looked at on `cpu`, and with PAGEDATTN_CHECK=1.
    disjoint : bool
        That no block at all is in two rows, not even of a common prefix; it makes the batch `unshared`, too. L2 then keeps what decode
        reads more than once. Where only a prefix is shared after all, results are right and time is lost.
    device : str or Device, optional
        Where the calls run. None: where `block_table` is, or for a host array the default device.

    Attributes
    ----------
    block_table : int32 (batch_size, max_blocks)
        On the device. A contiguous int32 array on a GPU is used as it is, anything else is copied.
    cu_seqlens_q, cu_seqlens_k : int32 (batch_size + 1)
        Cumulative lengths, on the device.
    seqlens_q, seqlens_k : numpy.ndarray of int64 (batch_size)
        The lengths, on the host.
    batch_size, max_blocks, max_seqlen_q, max_seqlen_k, num_tokens, total_k : int
        Sequences, columns of the table, longest lengths, and sums of the lengths (`num_tokens`: of the new tokens).
    num_decode, num_prefill : int
        Sequences with exactly one new token, and with more.
    finished : bool (batch_size), or None
        On the device.
    blocks : Blocks or None
        Where the blocks are, if not in a cache's pool: `from_block_ptrs`.
    unshared, disjoint : bool
    plans : Plans
        What calls have left for the next of their kind.

    Raises
    ------
    ArgumentError
        Wrong ranks or sizes, negative lengths, more new tokens than tokens, or 2**31 tokens and more.

    Examples
    --------
    >>> batch = Batch([[0, 2], [1, -1]], seqlens_q=[1, 5], seqlens_k=[20, 5], device="cpu")
    >>> batch
    Batch(2 sequences on cpu: 6 new of 25 tokens, longest 20; 2 blocks a row)
    >>> batch.cu_seqlens_k.tolist(), batch.num_decode, batch.num_prefill
    ([0, 20, 25], 1, 1)
    """

    __slots__ = (
        "_buffer",
        "batch_size",
        "cu_seqlens_k",
        "cu_seqlens_q",
        "disjoint",
        "max_seqlen_q",
        "notes",
        "num_decode",
        "num_prefill",
        "num_tokens",
        "plans",
        "seqlens_q",
        "total_k",
        "unshared",
    )

    def __init__(
        self,
        block_table: Any,
        seqlens_q: Any,
        seqlens_k: Any,
        *,
        finished: Any = None,
        unshared: bool = False,
        disjoint: bool = False,
        device: str | Device | None = None,
    ) -> None:
        where = place(block_table)
        if device is None and where is not None and where.startswith("cuda"):
            device = "cuda" if where == "cuda" else where
        target = devices.get(device)
        lengths_q, lengths_k = token_counts(seqlens_q, "seqlens_q", target), token_counts(seqlens_k, "seqlens_k", target)
        if len(lengths_q) != len(lengths_k):
            raise ArgumentError(f"`seqlens_q` and `seqlens_k` must have the same length; got {len(lengths_q)} and {len(lengths_k)}.")
        if (longer := np.flatnonzero(lengths_q > lengths_k)).size:
            b = int(longer[0])
            raise ArgumentError(
                f"`seqlens_k` counts the new tokens too, so seqlens_q <= seqlens_k must hold; "
                f"sequence {b} has {lengths_q[b]} new tokens of {lengths_k[b]}."
            )
        table = integers(block_table, "block_table", 2, target, columns=True)
        if len(table) != len(lengths_q):
            raise ArgumentError(f"`block_table` must have a row for each of the {len(lengths_q)} sequences; got {len(table)}.")
        borrowed = not isinstance(table, np.ndarray) and table.dtype == np.int32 and table.flags.c_contiguous
        if borrowed:
            self._place(target, None, lengths_q, lengths_k, table.shape[1])
            self.block_table = table
        else:
            host = target.to_host(table)
            narrow = narrowed(host)
            self._place(target, narrow, lengths_q, lengths_k, table.shape[1])
            if not np.array_equal(narrow, host):
                self._wide = np.array(host)
        self._frozen = not borrowed
        self.disjoint = flag(disjoint, "disjoint")
        self.unshared = flag(unshared, "unshared") or self.disjoint
        if finished is not None:
            with target.meeting():
                self.finished = flags(finished, len(lengths_q), target)

    @classmethod
    def from_block_ptrs(
        cls,
        block_ptrs: Any,
        cu_block_nums: Any,
        seqlens_q: Any,
        seqlens_k: Any,
        *,
        finished: Any = None,
        unshared: bool = False,
        disjoint: bool = False,
        device: str | Device | None = None,
    ) -> Batch:
        """A batch over blocks at any addresses, as TurboMind keeps them.

        Pass it with a cache of the blocks' layout; the cache's own pool is not touched. The addresses are read once, on the host.

        Parameters
        ----------
        block_ptrs : array or list of int, (number of blocks,)
            Addresses of blocks on the device, `layout.block_bytes` each: multiples of 16, and not further apart than 2**31 times their
            greatest common distance. 0 is no block. Sequences may share blocks; no two others may overlap. The memory must live as long as
            the batch is used.
        cu_block_nums : array or list of int, (batch_size + 1,)
            The blocks of sequence b are block_ptrs[cu_block_nums[b]], ..., block_ptrs[cu_block_nums[b + 1] - 1].
        seqlens_q, seqlens_k, finished, unshared, disjoint, device
            See Batch.

        Raises
        ------
        ArgumentError
            Addresses or counts that do not fit; see also Batch.

        Examples
        --------
        >>> import pagedattn as pa
        >>> cache = pa.KVCache(1, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
        >>> mine = np.zeros((2, cache.layout.block_bytes), np.uint8)
        >>> pointers = [mine[1].ctypes.data, mine[0].ctypes.data]
        >>> batch = pa.Batch.from_block_ptrs(pointers, [0, 2], [20], [20], device="cpu")
        >>> k = np.ones((20, 1, 64), np.float16)
        >>> pa.append(k, k, cache, batch)
        >>> [int(block.any()) for block in mine]
        [1, 1]
        """
        where = place(block_ptrs)
        target = devices.get(where if device is None and where is not None and where.startswith("cuda") else device)
        pointers, nums = (
            target.to_host(integers(x, name, 1, target)) for x, name in ((block_ptrs, "block_ptrs"), (cu_block_nums, "cu_block_nums"))
        )
        blocks, table = Blocks.of(pointers, nums)
        batch = cls(table, seqlens_q, seqlens_k, finished=finished, unshared=unshared, disjoint=disjoint, device=target)
        batch.blocks = blocks
        return batch

    @classmethod
    def of_cache(
        cls,
        device: Device,
        block_table: Array,
        seqlens_q: Array,
        seqlens_k: Array,
        checked: tuple[int, int, ContextParallel],
        unshared: bool = False,
        disjoint: bool = False,
    ) -> Batch:
        """A batch whose parts the cache vouches for: an int32 table, int64 lengths; `checked` is (block_len, num_blocks, cp)."""
        batch = cls.__new__(cls)
        batch._place(device, block_table, seqlens_q, seqlens_k, block_table.shape[1])
        batch._frozen = True
        batch._checked, batch.unshared, batch.disjoint = checked, unshared, disjoint
        return batch

    def _place(self, device: Device, table: Array | None, seqlens_q: Array, seqlens_k: Array, max_blocks: int) -> None:
        """Fill every attribute; the device arrays are views of one buffer, uploaded by one copy."""
        size = len(seqlens_q)
        cells = 0 if table is None else size * max_blocks
        lengths, sums = np.array((seqlens_q, seqlens_k)), np.zeros((2, size + 1), np.int64)
        np.add.accumulate(lengths, 1, out=sums[:, 1:])
        totals: list[int] = sums[:, -1].tolist()
        for name, total in zip(("seqlens_q", "seqlens_k"), totals, strict=True):
            if total > INT32_MAX:
                raise ArgumentError(f"`{name}` must sum to less than 2**31 tokens; got {total}. Make several batches.")
        host = np.empty(cells + 2 * (size + 1), np.int32)
        if table is not None:
            host[:cells].reshape(size, max_blocks)[...] = table
        host[cells:] = sums.ravel()
        with device.meeting():
            self._buffer = buffer = device.asarray(host)
        if isinstance(buffer, np.ndarray):
            buffer = buffer.view()
            buffer.flags.writeable = False
        self.device = device
        self.block_table = buffer[:cells].reshape(size, max_blocks) if table is not None else None
        self.cu_seqlens_q = buffer[cells : cells + size + 1]
        self.cu_seqlens_k = buffer[cells + size + 1 :]
        self.seqlens_q, self.seqlens_k = seqlens_q, seqlens_k
        self.batch_size, self.max_blocks = size, max_blocks
        self.num_tokens, self.total_k = totals
        self.max_seqlen_q, self.max_seqlen_k = np.maximum.reduce(lengths, 1, initial=0).tolist()
        self.num_decode = int(np.count_nonzero(seqlens_q == 1)) if self.max_seqlen_q > 1 else self.num_tokens
        self.num_prefill = int(np.count_nonzero(seqlens_q)) - self.num_decode if self.max_seqlen_q > 1 else 0
        self.plans = Plans()
        self.finished = None
        self.unshared = self.disjoint = False
        self.blocks = None
        self._checked = None
        self.notes: dict[Any, Any] = {}  # what calls have worked out for this batch
        self._wide = None

    def assign(self, other: Batch) -> None:
        """Put another batch's block table and lengths into this one's device arrays, on the current stream.

        Launches that were captured with this batch then are of the other's sequences. What the launches take by value stays as it is:
        `max_seqlen_k` and `max_blocks` are the room that this batch was made with, and a captured dynamic Rope keeps the base that it
        had. `finished` flags are written where this batch's lie, in the caller's array if it was given one.

        Raises
        ------
        ArgumentError
            Another device or number of sequences, other numbers of new tokens, more than there is room for, a batch that is not `unshared`
            where this one is, or a block table that is the caller's own memory. Nothing has changed.

        Examples
        --------
        >>> room = Batch([[0] * 4] * 2, [1, 1], [64, 64], device="cpu")
        >>> room.assign(Batch([[3], [1]], [1, 1], [7, 16], device="cpu"))
        >>> room.block_table[:, 0].tolist(), room.cu_seqlens_k.tolist(), room.max_seqlen_k
        ([3, 1], [0, 7, 23], 64)
        """
        if not isinstance(other, Batch):
            raise ArgumentError(f"`other` must be a Batch; got {type(other).__name__}.")
        if not self._frozen:
            raise ArgumentError("`block_table` must be the batch's own to be assigned to; this one is the caller's array. Write to that.")
        require_assignable(self, other)
        if other is self:
            return
        table, lengths = room_of(self)
        with self.device.meeting():
            self.device.copy(((other.block_table, table), (other.cu_seqlens_k, lengths)))
            if self.finished is not None:
                self.finished[...] = False if other.finished is None else other.finished
        self.seqlens_k, self.total_k = other.seqlens_k, other.total_k
        self._checked, self._wide = other._checked, other._wide

    def own(self, cp: ContextParallel) -> Batch:
        """The tokens of these sequences that are a rank's, as a batch of its own, without new ones."""
        lengths = cp.own(self.seqlens_k)
        batch = Batch.__new__(Batch)
        batch._place(self.device, None, np.zeros_like(lengths), lengths, self.max_blocks)
        batch.block_table, batch.finished, batch.blocks = self.block_table, self.finished, self.blocks
        batch._frozen, batch._wide = self._frozen, self._wide
        return batch

    def __repr__(self) -> str:
        return (
            f"Batch({self.batch_size} sequences on {self.device.name}: {self.num_tokens} new of {self.total_k} tokens, "
            f"longest {self.max_seqlen_k}; {self.max_blocks} blocks a row)"
        )
