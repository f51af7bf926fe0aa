"""What a call must satisfy. Each check passes, or raises what must hold, what came and what to do; none changes anything."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pagedattn import dispatch, dtypes, env
from pagedattn.arrays import adopt
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.layout import ROW_ALIGNMENT
from pagedattn.parallel import WHOLE, ContextParallel
from pagedattn.values import listed, whole
from pagedattn.values import splits as _splits

_MOST_SHARED = 2**30  # tokens of a sequence that ranks share: positions past its end stay in 32 bits
_SMALLEST, _LARGEST = 1e-15, 1e15  # of softmax_scale and softcap: their quotients stay in float32


class Words(NamedTuple):
    """What an error calls the things that rows must go with."""

    tokens: str = "the batch's new tokens"
    owner: str = "the cache's"  # of the dtype, of head_dim and of the KV heads
    remedy: str = "Convert it, or make a cache of that dtype."


_CACHE = Words()


def splits(num_splits: Any, cache: KVCache) -> int:
    """See values.splits: cuts lie between the tiles that decode has for this cache on this device."""
    return _splits(num_splits, dispatch.cut_tile(cache.layout, cache.device.source))


def parallel(cp: Any, cache: KVCache, batch: Batch) -> ContextParallel | None:
    """The call's context parallelism: its own, or the cache's."""
    if cp is None:
        cp = cache.cp
        if cp is None:
            return None
    if not isinstance(cp, ContextParallel):
        raise ArgumentError(f"`cp` must be a ContextParallel(rank, size), or None; got {type(cp).__name__}.")
    if cache.cp is not None and cp != cache.cp:
        raise ArgumentError(f"`cp` must be the cache's, rank {cache.cp.rank} of {cache.cp.size}, or None; got rank {cp.rank} of {cp.size}.")
    if cp.size > 1 and batch.max_seqlen_k > _MOST_SHARED:
        raise UnsupportedError(f"ranks share sequences of at most {_MOST_SHARED} tokens; got one of {batch.max_seqlen_k}.")
    return cp


def layer_of(cache: KVCache, batch: Batch, layer: int) -> int:
    """A batch and a layer that go with a cache."""
    if not isinstance(cache, KVCache):
        raise ArgumentError(f"`cache` must be a KVCache; got {type(cache).__name__}.")
    if not isinstance(batch, Batch):
        raise ArgumentError(f"`batch` must be a Batch, such as `cache.extend` returns; got {type(batch).__name__}.")
    if batch.device is not cache.device:
        raise ArgumentError(f"`batch` must be on {cache.device.name}, where the cache is; got one on {batch.device.name}.")
    layers = cache.layout.num_layers
    found = layer if type(layer) is int else whole(layer)
    if found is None or not 0 <= found < layers:
        raise ArgumentError(f"`layer` must be an integer from 0 to {layers - 1}, the cache's layers; got {layer!r}.")
    return found


def batch_of(cache: KVCache, batch: Batch, cp: ContextParallel | None = None) -> None:
    """A block table that fits the cache's blocks."""
    cp = cp or WHOLE
    batch.check_width(cache.layout.block_len, cp)
    if batch.blocks is not None:
        batch.blocks.check_apart(cache.layout.block_bytes)
    if cache.device.arch is None or batch.beyond_int32 or env.check_enabled():
        batch.check_cache(cache.layout, cache.pool.shape[0], cp)


def queries(q: Any, cache: KVCache, batch: Batch, words: Words = _CACHE) -> None:
    """Query rows, one for each new token."""
    rows(q, cache, "q", (batch.num_tokens, None, cache.layout.head_dim), words)
    num_heads, num_kv_heads = q.shape[1], cache.layout.num_kv_heads
    if num_heads == 0 or num_heads % num_kv_heads:
        raise ArgumentError(f"`q.shape[1]`, the query heads, must be a multiple of {words.owner} {num_kv_heads} KV heads; got {num_heads}.")


def output(out: Any, cache: KVCache, shape: tuple[int, ...], words: Words = _CACHE) -> None:
    """A place for the result."""
    rows(out, cache, "out", shape, words)
    token = shape[1] * shape[2] * out.itemsize
    if shape[0] > 1 and abs(out.strides[0]) < token:
        raise ArgumentError(
            f"`out`'s tokens must not overlap: {token} bytes each; got a token stride of {out.strides[0]}. Make a new array."
        )
    _require_writable(out, "out")


def gathered(given: Any, cache: KVCache, name: str, shape: tuple[int, ...], stream: Any = None) -> Any:
    """A place for what is gathered: the kernels write it without gaps."""
    found = adopt(given, cache.device, name, stream=stream, written=True)
    dtype = dtypes.of(cache.layout.dtype).numpy
    if tuple(found.shape) != shape or found.dtype != dtype or not found.flags.c_contiguous:
        raise ArgumentError(f"`{name}` must be {dtype.name} {shape}, contiguous; got {found.dtype} {tuple(found.shape)}.")
    if cache.device.arch is not None and cache.device.address(found) % ROW_ALIGNMENT:
        raise ArgumentError(f"`{name}` must begin at a multiple of {ROW_ALIGNMENT} bytes; got {cache.device.address(found):#x}.")
    _require_writable(found, name)
    return found


def apart(k: Any, v: Any, cache: KVCache) -> None:
    """Two contiguous places of one size that share no memory."""
    first, second = (x.ctypes.data if isinstance(x, np.ndarray) else cache.device.address(x) for x in (k, v))
    if abs(first - second) < k.nbytes:
        raise ArgumentError(f"`out`'s two arrays must not overlap; they begin {abs(first - second)} bytes apart and have {k.nbytes} each.")


def _require_writable(x: Any, name: str) -> None:
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ArgumentError(f"`{name}` must be writable; got a read-only array.")


def rows(rows: Any, cache: KVCache, name: str, shape: tuple[int | None, ...], words: Words = _CACHE) -> None:
    """A (tokens, heads, dims) array of the cache's device; None in `shape` is any length."""
    device, layout = cache.device, cache.layout
    actual = rows.shape
    if len(actual) != 3:
        raise ArgumentError(f"`{name}` must have 3 dimensions (tokens, heads, head_dim); got shape {tuple(actual)}.")
    if actual != shape:
        for axis, meaning in enumerate((words.tokens, "the KV heads", f"{words.owner} head_dim")):
            if shape[axis] is not None and actual[axis] != shape[axis]:
                if name == "out":
                    meaning = "that of q"
                raise ArgumentError(f"`{name}.shape[{axis}]` must equal {meaning}, {shape[axis]}; got {actual[axis]}.")
    if rows.dtype != dtypes.of(layout.dtype).numpy:
        got = rows.dtype.name if rows.dtype.isnative else f"{rows.dtype.str}, of another byte order"
        raise ArgumentError(f"`{name}` must have {words.owner} dtype, {layout.dtype}; got {got}. {words.remedy}")
    strides, width = rows.strides, layout.head_dim * rows.itemsize
    if (strides[2] != rows.itemsize or (strides[1] != width and actual[1] > 1)) and rows.size:
        raise ArgumentError(
            f"`{name}` must be contiguous in heads and dims (any token stride); got strides {tuple(strides)} bytes for shape "
            f"{tuple(actual)}. Copy it."
        )
    if device.arch is not None and (device.address(rows) % ROW_ALIGNMENT or (strides[0] % ROW_ALIGNMENT and actual[0] > 1)):
        raise ArgumentError(
            f"`{name}`'s tokens must begin at multiples of {ROW_ALIGNMENT} bytes; got address {device.address(rows):#x}, "
            f"token stride {strides[0]}. Copy it."
        )


def sinks(given: Any, cache: KVCache, num_heads: int, stream: Any = None) -> Any:
    found = adopt(given, cache.device, "sinks", stream=stream)
    if found.shape != (num_heads,) or found.dtype != np.float32:
        raise ArgumentError(
            f"`sinks` must be float32 of shape ({num_heads},), one logit per query head; got {found.dtype} {tuple(found.shape)}."
        )
    return cache.device.asarray(found)


def lse(given: Any, cache: KVCache, shape: tuple[int, ...], stream: Any = None) -> Any:
    """A place for the log-sum-exp."""
    found = adopt(given, cache.device, "lse", stream, True)
    if found.shape != shape or found.dtype != np.float32 or not found.flags.c_contiguous:
        raise ArgumentError(f"`lse` must be float32 {tuple(shape)}, contiguous; got {found.dtype} {tuple(found.shape)}.")
    _require_writable(found, "lse")
    return found


def workspace(given: Any, cache: KVCache, stream: Any = None) -> Any:
    """Memory for a call; how much is enough depends on its launches."""
    found = adopt(given, cache.device, "workspace", stream=stream, written=True)
    if found.dtype != np.uint8 or found.ndim != 1 or not found.flags.c_contiguous:
        raise ArgumentError(f"`workspace` must be uint8 of one dimension, contiguous; got {found.dtype} {tuple(found.shape)}.")
    address = found.ctypes.data if isinstance(found, np.ndarray) else cache.device.address(found)
    if address % ROW_ALIGNMENT:
        raise ArgumentError(f"`workspace` must begin at a multiple of {ROW_ALIGNMENT} bytes; got {address:#x}.")
    _require_writable(found, "workspace")
    return found


def positive(value: Any, name: str) -> float:
    number = float(value) if isinstance(value, np.floating) else value  # a float16 would round what it is compared with
    if isinstance(value, bool) or not isinstance(number, (int, float, np.integer)) or not _SMALLEST <= number <= _LARGEST:
        raise ArgumentError(f"`{name}` must be a positive finite number, {_SMALLEST:g} to {_LARGEST:g}, or None; got {value!r}.")
    return float(value)


def window(value: int) -> int:
    found = whole(value)
    if found is None or found < 1:
        raise ArgumentError(f"`window_size` must be a positive integer or None; got {value!r}.")
    return min(found, 2**30)


def slopes(given: Any, cache: KVCache) -> Any:
    """ALiBi's slopes, whose numbers are looked at where that needs no GPU."""
    if given is None:
        return None
    found = adopt(given, cache.device, "alibi_slopes")
    if isinstance(found, np.ndarray) and found.dtype.kind == "f" and not np.isfinite(found).all():
        raise ArgumentError(f"`alibi_slopes` must be finite; got {found[~np.isfinite(found)][0]}.")
    return found


def mask(given: Any) -> Any:
    """A mask that comes as a list, as an array; its shape and dtype are looked at where the batch is known."""
    return listed(given, "mask", "bools, in one flat row") if isinstance(given, (list, tuple)) else given
