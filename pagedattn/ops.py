"""paged_attention: a call is checked, becomes a Problem, and follows the plan that another of its kind has left, or runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pagedattn import checks, dispatch
from pagedattn.append import write_rows
from pagedattn.arrays import adopt, give_back, room_like, stream_of
from pagedattn.errors import ArgumentError
from pagedattn.extras import resolve
from pagedattn.fusion import fuses
from pagedattn.parallel import WHOLE
from pagedattn.problem import Problem
from pagedattn.results import new_result, prepared_queries
from pagedattn.values import flag
from pagedattn.workspace import require

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache


def paged_attention(
    q: Any,
    cache: KVCache,
    batch: Batch,
    *,
    k: Any = None,
    v: Any = None,
    layer: int = 0,
    softmax_scale: float | None = None,
    causal: bool = True,
    window_size: int | None = None,
    softcap: float | None = None,
    alibi_slopes: Any = None,
    sinks: Any = None,
    mask: Any = None,
    rope: Any = None,
    q_bias: Any = None,
    k_bias: Any = None,
    v_bias: Any = None,
    logn_max_position: int | None = None,
    out: Any = None,
    lse: Any = None,
    return_lse: bool = False,
    num_splits: int | str | None = None,
    workspace: Any = None,
    cp: Any = None,
    stream: Any = None,
) -> Any:
    """Attention of new queries over a paged cache: decode, prefill, chunks and mixtures of them.

    Query j of sequence b stands at position seqlens_k[b] - seqlens_q[b] + j. Query head h reads KV head h // (num_heads / num_kv_heads).
    Scores, softmax and output accumulate in float32.

    Parameters
    ----------
    q : array (num_tokens, num_heads, head_dim), of the cache's dtype
        Heads and dims contiguous; any token stride.
    cache : KVCache
    batch : Batch
        The sequences; their keys and values are in the cache, unless `k` and `v` bring them.
    k, v : array (num_tokens, num_kv_heads, head_dim), optional
        New rows to append first; a decode step of a batch that is `unshared` writes them and attends in one launch where it can:
        `explain` says so.
    layer : int
        The cache's layer.
    softmax_scale : float, optional
        Factor on q.k, 1e-15 to 1e15; None: 1 / sqrt(head_dim).
    causal : bool
        Keys after the query's position do not count.
    window_size : int, optional
        Only keys p - window_size + 1 .. p count for a query at p (and later ones where `causal` is False). Values up to 63 keys before them
        may be read and multiplied by 0: they must not be infinite or NaN.
    softcap : float, optional
        Scores s become softcap * tanh(s / softcap); 1e-15 to 1e15.
    alibi_slopes : array (num_heads) float32, optional
        slope * (key position - query position) is added to the scores, after `softcap`. For keys before the query that is FlashAttention's
        ALiBi; keys after it (`causal` False) gain where FlashAttention's lose. Finite; on a GPU nobody looks whether they are.
    mask : bool (or uint8, where 0 hides) array (sum of seqlens_q * seqlens_k), optional
        Which keys each query may see, as for a tree of drafted tokens: for each sequence its seqlens_q x seqlens_k entries, row by row, one
        sequence after the other. `causal` and `window_size` hold besides. Where tokens of a tree stand is told to the rope: `Rope.at`.
        A batch of long sequences allocates a little at its first such call on each stream, in each thread: make one before a
        capture.
    sinks : array (num_heads) float32, optional
        A logit per head that joins the softmax's sum and has no value.
    rope : Rope, or what its `at` returns, optional
        Turns the queries, and the keys of `k`; keys in the cache stay as they are.
    q_bias, k_bias, v_bias : array (heads, head_dim), of the cache's dtype, optional
        Added to q, k and v before they turn.
    logn_max_position : int, optional
        Queries at a position p above it are scaled by log(p) / log(logn_max_position), after they turn.
    out : array like q, optional
        Where the result goes; it is returned.
    return_lse : bool
        Also return the log-sum-exp, float32 (num_tokens, num_heads), natural logarithm.
    lse : array float32 (num_tokens, num_heads), contiguous, optional
        Where it goes; it is returned where `return_lse`.
    num_splits : int or "fixed:N", optional
        How decode cuts a sequence's keys for parallel work. None: one list of tiles, balanced over the GPU. An int: that many cuts.
        "fixed:N": at every N keys (a multiple of 16; of 32 for int8 and int4, and on sm_70). A sequence that is cut has the same bits in
        every batch, in every place of it, on GPUs of one kind however many multiprocessors they have. Longer queries are read by several
        CTAs only where num_splits is None and there are too few of them to fill the GPU.
    workspace : uint8 array (at least `workspace_bytes(...)`), optional
        Memory for what CTAs share, zeroed once before its first call. Calls that use it must follow each other, as on one stream; they may
        be of any shapes. None: the device keeps one for each stream. With `out`, and `lse` if it is wanted, the call allocates nothing.
    cp : ContextParallel, optional
        The rank that this is, of several that share the keys; None: the cache's. Every rank is given all queries (and rows of `k` and `v`,
        of which it appends its own), and gets attention over its own keys: where it has none, 0 and a log-sum-exp of -inf. `sinks` join
        rank 0's. `merge`, or `distributed.all_merge`, makes one result of the ranks'. "fixed:N" counts a rank's own keys.
    stream : optional
        The CUDA stream, where the arrays are ready: of CuPy or PyTorch, or its address. None: the current one, for tensors PyTorch's.

    Returns
    -------
    out : array like q
        With `return_lse`, and always under context parallelism, the pair (out, lse).

    Raises
    ------
    ArgumentError
        Shapes, dtypes, devices or values that do not fit; nothing was written.
    Notes
    -----
    FlashAttention-2 (Dao, 2023) for the online softmax; Flash-Decoding (Dao et al., 2023) for splits;
    PagedAttention (Kwon et al., 2023) for the cache.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
    >>> batch = cache.extend([cache.new_sequence()], [3])
    >>> rng = np.random.default_rng(0)
    >>> q = rng.standard_normal((3, 8, 64)).astype(np.float16)
    >>> k, v = rng.standard_normal((2, 3, 2, 64)).astype(np.float16)
    >>> out = pa.paged_attention(q, cache, batch, k=k, v=v)
    >>> out.shape, bool(np.array_equal(out[0, 0], v[0, 0]))  # the first token sees only itself
    ((3, 8, 64), True)
    """
    layer = checks.layer_of(cache, batch, layer)
    if cp is not None or cache.cp is not None:
        cp = checks.parallel(cp, cache, batch)
    layout, device = cache.layout, cache.device
    scale = layout.softmax_scale if softmax_scale is None else checks.positive(softmax_scale, "softmax_scale")
    window = 0 if window_size is None else checks.window(window_size)
    cap = 0.0 if softcap is None else checks.positive(softcap, "softcap")
    splits = 0 if num_splits is None else checks.splits(num_splits, cache)
    causal, return_lse = flag(causal, "causal"), flag(return_lse, "return_lse") or cp is not None
    if stream is None:
        stream = stream_of(q, device)
    elif device.array_type is np.ndarray:
        device.using(stream)  # which refuses what is no stream, as a GPU does
    rows = adopt(q, device, "q", stream)
    if rows is not q and batch.finished is None:
        out = room_like(q, rows.shape) if out is None else out
        lse = room_like(q, rows.shape[:2], "float32") if lse is None and return_lse else lse
    if out is None:
        target, like = None, None
    else:
        target = adopt(out, device, "out", stream, True)
        like = (target.shape, target.strides, target.dtype)
    if (k is None) != (v is None):
        raise ArgumentError(f"`k` and `v` must come together; got only `{'v' if k is None else 'k'}`.")
    extras, asked, seen = None, None, rows
    if not (rope is q_bias is k_bias is v_bias is logn_max_position is alibi_slopes is mask is batch.finished is None):
        if k is None and not (k_bias is v_bias is None):
            raise ArgumentError(
                "`k_bias` and `v_bias` are added to new rows, and must come with `k` and `v`; got none. Pass them to append."
            )
        checks.queries(rows, cache, batch)
        with device.using(stream):
            extras = resolve(
                cache,
                batch,
                rows.shape[1],
                rope=rope,
                q_bias=q_bias,
                k_bias=k_bias,
                v_bias=v_bias,
                logn_max_position=logn_max_position,
                alibi_slopes=checks.slopes(alibi_slopes, cache),
                mask=checks.mask(mask),
                softmax_scale=scale,
            )
        asked = extras.packed("attention", device.address) if device.arch else b""
        if device.arch is not None and extras.prepares("attention"):
            seen = prepared_queries(rows, cache, batch, stream)
    given = None
    if k is not None:
        k, v = adopt(k, device, "k", stream), adopt(v, device, "v", stream)
        if batch.unshared:  # then attention's launch may write them, and the call is of their kind, too
            given = k.shape, k.strides, k.dtype, v.shape, v.strides, v.dtype
    key = (layout.kind, rows.shape, rows.strides, rows.dtype, like, given, scale, causal, window, cap, splits, asked, cp)
    plan = batch.plans.get(key)
    if plan is None or not device.aligned(rows, k, v, target):
        plan, fused = None, False
        checks.batch_of(cache, batch, cp)
        checks.queries(rows, cache, batch)
        if target is not None:
            checks.output(target, cache, rows.shape)
        if given is not None:
            shape = (batch.num_tokens, layout.num_kv_heads, layout.head_dim)
            checks.rows(k, cache, "k", shape)
            checks.rows(v, cache, "v", shape)
            fused = fuses(device, layout, rows.shape[1], batch, splits, extras, cp)  # type: ignore[arg-type]
    else:
        fused = plan.writes
    new_k, new_v = (k, v) if fused else (None, None)
    if sinks is not None:
        sinks = checks.sinks(sinks, cache, rows.shape[1], stream)
        if cp is not None and cp.rank:  # once for all ranks
            sinks = None
    if lse is not None:
        room = checks.lse(lse, cache, rows.shape[:2], stream)
    if target is None:
        target = new_result(rows.shape, rows.dtype, 0, cache, batch, stream)
    if lse is None:
        room = new_result(rows.shape[:2], np.float32, -np.inf, cache, batch, stream) if return_lse else None
    if workspace is not None:
        workspace = checks.workspace(workspace, cache, stream)
    if plan is None:
        problem = Problem(
            "attention",
            layout,
            batch.pool_of(cache),
            layer,
            batch,
            q=seen,
            k=new_k,
            v=new_v,
            out=target,
            lse=room,
            sinks=sinks,
            softmax_scale=scale,
            causal=causal,
            window_size=window,
            softcap=cap,
            num_splits=splits,
            cp=cp or WHOLE,
            extras=extras,
            workspace=workspace,
            stream=stream,
            key=key,
        )
        plan = device.prepare(problem)
    if workspace is not None and (plan is not None or device.arch is not None):  # before anything is written
        require(workspace.nbytes, dispatch.select(problem, device) if plan is None else plan)  # type: ignore[arg-type]
    if seen is not rows:
        write_rows(k, v, cache, batch, layer, extras, stream, cp, rows, seen)
    elif k is not None and not fused:
        write_rows(k, v, cache, batch, layer, extras, stream, cp)
    if plan is not None:
        device.follow(plan, (seen, new_k, new_v, target, room, sinks), batch.pool_of(cache), layer, stream, workspace)
    else:
        device.run(problem)
    result = give_back(target, q) if out is None else out
    return (result, give_back(room, q) if lse is None else lse) if return_lse else result
