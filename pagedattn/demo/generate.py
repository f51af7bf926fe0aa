"""Text from the model: ragged prefill of several prompts, forks of a shared prefix, then batched decode, all through one paged cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import pagedattn as pa
from pagedattn.demo.dense import log2_softmax
from pagedattn.demo.model import END, Attend, Model
from pagedattn.errors import ArgumentError
from pagedattn.values import whole

BLOCK_LEN = 16


@dataclass(frozen=True)
class Request:
    """A prompt and how many continuations it gets."""

    title: str
    prompt: bytes
    samples: int = 1

    @property
    def tokens(self) -> list[int]:
        """What the model reads: the prompt as the beginning of a document."""
        return [END, *self.prompt]


@dataclass(eq=False)
class Continuation:
    """One sequence of the batch.

    Attributes
    ----------
    text : bytearray
        What was generated.
    logits : list of ndarray
        float32 (256), one row for every byte drawn, END included.
    bits : list of float
        -log2 of the model's probability for every byte drawn.
    """

    request: Request
    sequence: int
    rng: np.random.Generator
    text: bytearray = field(default_factory=bytearray)
    logits: list[np.ndarray[Any, Any]] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    done: bool = False

    @property
    def bits_per_byte(self) -> float:
        """How unsure the model was on average; the best of several continuations has the least."""
        return float(np.mean(self.bits))


@dataclass
class Run:
    """What `generate` did.

    Attributes
    ----------
    continuations : list of Continuation
        In the order of the requests, those of one request side by side.
    batches : list of Batch
        The prefill's, and the first of decode.
    prefill_tokens, decode_tokens : int
    prefill_seconds, decode_seconds : float
        Of computing; drawing is not in them.
    peak_blocks, shared_blocks : int
        Most blocks in use at once, and how many more there would have been without sharing.
    """

    continuations: list[Continuation]
    batches: list[pa.Batch]
    prefill_tokens: int
    prefill_seconds: float
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    peak_blocks: int = 0
    shared_blocks: int = 0


def make_cache(model: Model, requests: Sequence[Request], max_new_tokens: int, kv_dtype: str | None = None) -> pa.KVCache:
    """A cache with just enough blocks for the requests, forked prefixes counted once."""
    blocks = 0
    for request in requests:
        shared = len(request.tokens) // BLOCK_LEN
        own = -(-(len(request.tokens) + max_new_tokens) // BLOCK_LEN) - shared
        blocks += shared + own * request.samples
    return cache_for(model, blocks, kv_dtype)


def cache_for(model: Model, num_blocks: int, kv_dtype: str | None = None) -> pa.KVCache:
    """A cache of the model's shape."""
    c = model.config
    return pa.KVCache(
        num_blocks,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        block_len=BLOCK_LEN,
        num_layers=c.num_layers,
        dtype=str(model.dtype),
        kv_dtype=kv_dtype,
        device=model.device.name,
    )


def paged(cache: pa.KVCache, batch: pa.Batch) -> Attend:
    """Attention through the cache: the new rows are appended, then everything is read."""

    def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
        pa.append(k, v, cache, batch, layer=layer)
        return pa.paged_attention(q, cache, batch, layer=layer)

    return attend


def step(model: Model, cache: pa.KVCache, batch: pa.Batch, tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Run the batch's new tokens through the model; the logits after each sequence's last one, on the host."""
    spans = zip(batch.seqlens_k - batch.seqlens_q, batch.seqlens_k, strict=True)
    positions = np.concatenate([np.arange(first, end) for first, end in spans])
    logits = model.forward(tokens, positions, paged(cache, batch), rows=np.cumsum(batch.seqlens_q) - 1)
    return model.device.to_host(logits)


def generate(
    model: Model,
    cache: pa.KVCache,
    requests: Sequence[Request],
    max_new_tokens: int,
    temperature: float = 0.7,
    seed: int = 0,
    on_step: Callable[[Sequence[Continuation]], None] | None = None,
) -> Run:
    """Continue every request's prompt by up to `max_new_tokens` bytes; a continuation may end its document before.

    A continuation draws from its own random numbers, whatever else is in the batch. All blocks are free again afterwards.

    Parameters
    ----------
    on_step : callable, optional
        Gets all continuations after every step.

    Raises
    ------
    ArgumentError
        A request longer than the model's context.
    """
    _check(model, requests, max_new_tokens, temperature, seed)
    start = time.perf_counter()
    ids = [cache.new_sequence() for _ in requests]
    batch = cache.extend(ids, [len(r.tokens) for r in requests])
    logits = step(model, cache, batch, [token for r in requests for token in r.tokens])
    run = Run([], [batch], batch.num_tokens, time.perf_counter() - start)

    start = time.perf_counter()
    rows = []
    for row, (request, first) in enumerate(zip(requests, ids, strict=True)):
        for sample in range(request.samples):
            sequence = cache.fork(first) if sample else first
            run.continuations.append(Continuation(request, sequence, np.random.default_rng([seed, row, sample])))
            rows.append(row)
    logits = logits[rows]
    live = run.continuations
    while True:
        _draw(live, logits, temperature, max_new_tokens)
        run.decode_tokens += len(live)
        run.decode_seconds += time.perf_counter() - start
        if on_step:
            on_step(run.continuations)
        start = time.perf_counter()
        _measure(run, cache, live)
        for continuation in live:
            if continuation.done:
                cache.free(continuation.sequence)
        live = [c for c in live if not c.done]
        if not live:
            return run
        batch = cache.extend([c.sequence for c in live], [1] * len(live))
        if len(run.batches) == 1:
            run.batches.append(batch)
        logits = step(model, cache, batch, [c.text[-1] for c in live])


def _draw(live: Sequence[Continuation], logits: np.ndarray[Any, Any], temperature: float, max_new_tokens: int) -> None:
    surprise = -log2_softmax(logits)
    cumulative = np.cumsum(np.exp2(log2_softmax(logits / np.float32(temperature))), axis=-1)
    for row, continuation in enumerate(live):
        # the last sum may round to less than 1; the byte drawn is below 256 all the same
        byte = min(int(np.searchsorted(cumulative[row], continuation.rng.random(), side="right")), 255)
        continuation.logits.append(logits[row])
        continuation.bits.append(float(surprise[row, byte]))
        if byte != END:
            continuation.text.append(byte)
        continuation.done = byte == END or len(continuation.text) == max_new_tokens


def _measure(run: Run, cache: pa.KVCache, live: Sequence[Continuation]) -> None:
    used = cache.num_blocks - cache.num_free_blocks
    if used > run.peak_blocks:
        alone = sum(-(-cache.seqlen(c.sequence) // BLOCK_LEN) for c in live)
        run.peak_blocks, run.shared_blocks = used, alone - used


def _check(model: Model, requests: Sequence[Request], max_new_tokens: int, temperature: float, seed: int) -> None:
    longest = max(len(r.tokens) for r in requests)
    limit = model.config.context - longest
    if not 1 <= max_new_tokens <= limit:
        raise ArgumentError(f"`max_new_tokens` must be from 1 to {limit}, the context less the longest prompt; got {max_new_tokens}.")
    if not temperature > 0:
        raise ArgumentError(f"`temperature` must be positive; got {temperature}.")
    if whole(seed) is None or seed < 0:
        raise ArgumentError(f"`seed` must be an integer, 0 or more; got {seed!r}.")
