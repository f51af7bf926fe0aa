"""The workspace of a call: words that are zero between launches, then room for pieces that CTAs share. Its size is a pure function."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pagedattn import arch as archs
from pagedattn import dispatch, tuned
from pagedattn.errors import ArgumentError
from pagedattn.layout import BlockLayout
from pagedattn.values import splits, whole

if TYPE_CHECKING:
    from pagedattn.dispatch import Launch
    from pagedattn.plan import Plan

# Counters, or what decode's CTAs send each other, always take the same room, so that calls of all shapes can share one workspace: what is
# zero stays zero between launches.
MOST_COUNTERS = 1 << 20
COUNTER_BYTES = 4 * MOST_COUNTERS


def workspace_bytes(
    *,
    batch_size: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    max_seqlen_k: int,
    max_seqlen_q: int = 1,
    dtype: str = "float16",
    kv_dtype: str | None = None,
    num_splits: int | str | None = None,
    arch: str | int = "sm_80",
    sm_count: int = 108,
) -> int:
    """Bytes of workspace that `paged_attention` takes at most for batches up to these sizes.

    Parameters
    ----------
    batch_size, max_seqlen_q, max_seqlen_k : int
        The largest numbers of sequences, of new tokens of one, and of all tokens of one. Calls with a `mask` are prefill's, single queries
        too: for them `max_seqlen_q` must be at least 2.
    num_heads, num_kv_heads, head_dim, dtype, kv_dtype
        As in the call and its cache.
    num_splits : int or "fixed:N", optional
        As in the call.
    arch, sm_count
        The GPU: its target, and its multiprocessors (an A100 has 108, an H200 132).

    Raises
    ------
    ArgumentError, UnsupportedError
        Sizes that are not positive, or that no kernel serves.

    Examples
    --------
    >>> sizes = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "max_seqlen_k": 1 << 20}
    >>> workspace_bytes(batch_size=64, **sizes, arch="sm_90", sm_count=132)
    4194304
    """
    sizes = {"batch_size": batch_size, "num_heads": num_heads, "max_seqlen_k": max_seqlen_k, "max_seqlen_q": max_seqlen_q}
    for name, value in {**sizes, "sm_count": sm_count}.items():
        if (number := whole(value)) is None or number < 1:
            raise ArgumentError(f"`{name}` must be a positive integer; got {value!r}.")
    layout = BlockLayout(num_kv_heads, head_dim, dtype=dtype, kv_dtype=kv_dtype)
    cuts = 0 if num_splits is None else splits(num_splits, dispatch.cut_tile(layout, archs.parse(arch)))
    if num_heads % num_kv_heads:
        raise ArgumentError(f"`num_heads` must be a multiple of num_kv_heads, {num_kv_heads}; got {num_heads}.")
    device: Any = SimpleNamespace(arch=archs.parse(arch), source=archs.parse(arch), sm_count=sm_count, model="")
    batch: Any = SimpleNamespace(batch_size=batch_size, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)
    batch.total_k = 0  # nobody says how many
    spec, grid, packs, places = dispatch.plan_decode(device, layout, num_heads // num_kv_heads, batch, cuts)
    room = spec.cut_bytes(grid, batch_size * num_kv_heads * packs, places) if cuts else places * spec.piece_bytes
    if max_seqlen_q > 1 and not cuts:
        batch.batch_size, batch.max_seqlen_q = 1, 2  # the fewest query tiles: if their keys are not shared, no others' are
        batch.num_tokens, batch.num_decode, batch.num_prefill = 2, 0, 1
        spec, *_ = dispatch.plan_prefill(device, layout, num_heads, batch, 0)
        device.sm_count = sm_count * max(1, tuned.MOST_CTAS // (spec.min_ctas or 1))  # a tuned row may make room for more CTAs
        _, _, _, parts = dispatch.plan_prefill(device, layout, num_heads, batch, 0)
        if parts > 1:
            room = max(room, sm_count * (spec.min_ctas or 1) * spec.piece_bytes)  # all CTAs that share make at most one wave
    return COUNTER_BYTES + room


def needed(launches: Plan | list[Launch]) -> tuple[int, int]:
    """Bytes and counters that the launches of a call take; they follow each other, and may use the same."""
    steps = launches if isinstance(launches, list) else launches.steps
    return max((x.partial_bytes for x in steps), default=0), max((x.counts for x in steps), default=0)


def require(given_bytes: int, launches: Plan | list[Launch]) -> None:
    """ArgumentError if a workspace of so many bytes is too small."""
    room, counters = needed(launches)
    if counters > MOST_COUNTERS:
        raise ArgumentError(
            f"a call with a `workspace` must want at most {MOST_COUNTERS} zeroed words: with `num_splits` one for each segment (sequences "
            f"x KV heads x packs of query heads), without it a piece for each CTA; this one wants {counters}. Leave `workspace` None, or "
            "make several batches."
        )
    if (room or counters) and given_bytes < COUNTER_BYTES + room:
        raise ArgumentError(
            f"`workspace` must have at least {COUNTER_BYTES + room} bytes for this call; got {given_bytes}. `workspace_bytes` tells "
            "how many a call takes; where a `mask` is given, ask it with max_seqlen_q=2 or more."
        )


def split(address: int) -> tuple[int, int]:
    """Where pieces and counters lie in a workspace at this address."""
    return address + COUNTER_BYTES, address
