"""varlen_attention: ragged sequences whose keys and values are contiguous."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import checks, devices, dtypes
from pagedattn.append import append
from pagedattn.arrays import adopt, device_of, give_back, place, room_like, stream_of
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.extras import resolve
from pagedattn.layout import BlockLayout
from pagedattn.ops import paged_attention
from pagedattn.problem import Problem
from pagedattn.rope import Rope
from pagedattn.values import flag, listed
from pagedattn.values import splits as splits_of
from pagedattn.workspace import require

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

_BLOCK_LEN = 64
_Q_WORDS, _K_WORDS = (checks.Words(f"the total of cu_seqlens_{x}", "k's", "Convert it.") for x in "qk")
_MOST_ROW_BYTES = 1 << 24  # from one token of k or v to the next: 64 of them stay in int32


class _Space(NamedTuple):
    """What a cache tells the checks."""

    device: Device
    layout: BlockLayout


def varlen_attention(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    *,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    mask: Any = None,
    rope: Any = None,
    q_bias: Any = None,
    logn_max_position: int | None = None,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    num_splits: int | str | None = None,
    cp: Any = None,
    workspace: Any = None,
    stream: Any = None,
    device: Any = None,
) -> Any:
    """Attention of ragged sequences over contiguous keys and values, without a cache.

    Query j of a sequence stands at position seqlen_k - seqlen_q + j. Every keyword means what it means for `paged_attention`.

    Parameters
    ----------
    q : array (total_q, num_heads, head_dim), float16 or bfloat16
        Heads and dims contiguous; any token stride.
    k, v : array (total_k, num_kv_heads, head_dim), like q
        Views of a fused buffer are fine.
    cu_seqlens_q, cu_seqlens_k : integers (batch_size + 1)
        Where each sequence's rows begin in q, and in k and v: 0, ..., total. They are read on the host: an array on a GPU is waited for.
    rope : Rope, optional
        Turns queries and keys; the turned keys, and the values, go through a temporary paged cache, as they do for `q_bias` and
        `logn_max_position`.
    device : str or Device, optional
        None: where `q` is. "interpreter" runs the GPU's kernels on host arrays.

    Returns
    -------
    out : array like q
        With `return_lse`, the pair (out, lse).

    Raises
    ------
    ArgumentError
        Shapes, dtypes, devices or values that do not fit.
    UnsupportedError
        `cp`, and a rope with positions of the caller's.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> q, k, v = np.random.default_rng(0).standard_normal((3, 5, 2, 64)).astype(np.float16)
    >>> out = pa.varlen_attention(q, k, v, [0, 3, 5], [0, 3, 5])
    >>> bool(np.array_equal(out[3], v[3]))  # the second sequence's first token sees only itself
    True
    """
    if cp is not None:
        raise UnsupportedError(
            "`cp` must be None: ranks share the keys of a paged cache, KVCache(..., cp=...); append to one and call paged_attention."
        )
    target = device_of(q, "q") if device is None else devices.get(device)
    if stream is None:
        stream = stream_of(q, target)
    rows, keys, values = (adopt(x, target, name, stream=stream) for name, x in (("q", q), ("k", k), ("v", v)))
    space: Any = _Space(target, _layout(keys))
    with target.using(stream):
        batch = _batch(cu_seqlens_q, cu_seqlens_k, target)
    checks.queries(rows, space, batch, _Q_WORDS)
    for name, x in (("k", keys), ("v", values)):
        checks.rows(x, space, name, (batch.total_k, space.layout.num_kv_heads, space.layout.head_dim), _K_WORDS)
        if x.strides[0] > _MOST_ROW_BYTES:
            raise ArgumentError(f"`{name}`'s token stride must be at most {_MOST_ROW_BYTES} bytes; got {x.strides[0]}. Copy it.")
    changes: dict[str, Any] = {"q_bias": q_bias, "logn_max_position": logn_max_position}
    causal, return_lse = flag(causal, "causal"), flag(return_lse, "return_lse")
    with target.using(stream):
        options: dict[str, Any] = {"alibi_slopes": checks.slopes(alibi_slopes, space), "mask": checks.mask(mask)}
    if not (rope is q_bias is logn_max_position is None):  # queries change on their way beside keys that go into a cache
        rope = Rope("none") if rope is None else rope
        return _turned(
            (q, keys, values),
            space,
            batch,
            rope,
            stream,
            **changes,
            **options,
            softmax_scale=softmax_scale,
            causal=causal,
            window_size=window_size,
            softcap=softcap,
            sinks=sinks,
            out=out,
            lse=lse,
            return_lse=return_lse,
            num_splits=num_splits,
            workspace=workspace,
        )
    scale = space.layout.softmax_scale if softmax_scale is None else checks.positive(softmax_scale, "softmax_scale")
    window = 0 if window_size is None else checks.window(window_size)
    cap = 0.0 if softcap is None else checks.positive(softcap, "softcap")
    splits = 0 if num_splits is None else splits_of(num_splits)
    with target.using(stream):
        extras = resolve(space, batch, rows.shape[1], **options, softmax_scale=scale)
    if rows is not q:
        out = room_like(q, rows.shape) if out is None else out
        lse = room_like(q, rows.shape[:2], "float32") if lse is None and return_lse else lse
    found = target.empty(rows.shape, rows.dtype, stream) if out is None else adopt(out, target, "out", stream=stream, written=True)
    checks.output(found, space, rows.shape, _Q_WORDS)
    if sinks is not None:
        sinks = checks.sinks(sinks, space, rows.shape[1], stream)
    room = target.empty(rows.shape[:2], np.float32, stream) if lse is None and return_lse else None
    if lse is not None:
        room = checks.lse(lse, space, rows.shape[:2], stream)
    problem = Problem(
        "varlen",
        space.layout,
        None,
        0,
        batch,
        q=rows,
        k=keys,
        v=values,
        out=found,
        lse=room,
        sinks=sinks,
        softmax_scale=scale,
        causal=causal,
        window_size=window,
        softcap=cap,
        num_splits=splits,
        extras=extras,
        workspace=None if workspace is None else checks.workspace(workspace, space, stream),
        stream=stream,
    )
    plan = target.prepare(problem)
    if problem.workspace is not None and plan is not None:
        require(problem.workspace.nbytes, plan)
    if plan is not None:
        target.follow(plan, problem.arrays, None, 0, stream, problem.workspace)
    else:
        target.run(problem)
    result = give_back(found, q) if out is None else out
    return (result, give_back(room, q) if lse is None else lse) if return_lse else result


def _layout(k: Any) -> BlockLayout:
    if len(k.shape) != 3:
        raise ArgumentError(f"`k` must have 3 dimensions (tokens, heads, head_dim); got shape {tuple(k.shape)}.")
    return BlockLayout(k.shape[1], k.shape[2], _BLOCK_LEN, dtype=dtypes.activation(k.dtype, "k.dtype").name)


def _batch(cu_seqlens_q: Any, cu_seqlens_k: Any, device: Device) -> Batch:
    """The sequences, with no blocks."""
    lengths = []
    for name, x in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        found = listed(x, name, "integers, in one row") if place(x) in (None, "cpu") else device.to_host(adopt(x, device, name))
        rises = found.ndim == 1 and found.dtype.kind in "iu" and found.size and found[0] == 0 and (found[1:] >= found[:-1]).all()
        if not rises:
            what = f"{found.dtype} of shape {found.shape}: {np.array2string(found.reshape(-1)[:9], separator=', ')}"
            raise ArgumentError(f"`{name}` must be integers that rise from 0, in one row, one more than sequences; got {what}.")
        lengths.append(np.diff(found.astype(np.int64)))
    if len(lengths[0]) != len(lengths[1]):
        raise ArgumentError(
            f"`cu_seqlens_q` and `cu_seqlens_k` must be of the same sequences; got {len(lengths[0])} and {len(lengths[1])} of them."
        )
    return Batch(np.zeros((len(lengths[0]), 0), np.int32), *lengths, device=device)


def _turned(arrays: tuple[Any, Any, Any], space: Any, batch: Batch, rope: Any, stream: Any, **keywords: Any) -> Any:
    """The call through a paged cache of its own, whose keys turn as they are written."""
    if not isinstance(rope, Rope):
        raise UnsupportedError(
            "`rope` of varlen_attention must be a Rope: keys and queries stand at their places. Append to a cache instead."
        )
    q, k, v = arrays
    layout: Any = space.layout
    counts = -(-batch.seqlens_k // _BLOCK_LEN)
    sizes: dict[str, Any] = {
        "num_kv_heads": layout.num_kv_heads,
        "head_dim": layout.head_dim,
        "block_len": _BLOCK_LEN,
        "dtype": layout.dtype,
    }
    with space.device.using(stream):
        cache = KVCache(max(1, int(counts.sum())), **sizes, device=space.device)
        table = np.arange(max(1, int(counts.max(initial=0))), dtype=np.int32) + (np.cumsum(counts) - counts)[:, None]
        whole, asked = (Batch(table, new, batch.seqlens_k, device=space.device) for new in (batch.seqlens_k, batch.seqlens_q))
    append(k, v, cache, whole, rope=rope, stream=stream)
    return paged_attention(q, cache, asked, rope=rope, stream=stream, **keywords)
