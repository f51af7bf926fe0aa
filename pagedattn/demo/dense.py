"""The same layers without a cache: plain causal attention over one whole sequence, in NumPy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pagedattn.demo.model import Model

Array = np.ndarray[Any, Any]


def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
    """Causal attention of one sequence, in float32: q (n, num_heads, head_dim), k and v (n, num_kv_heads, head_dim)."""
    n, num_heads, head_dim = q.shape
    group = num_heads // k.shape[1]
    queries, keys, values = (np.moveaxis(x.astype(np.float32), 0, 1) for x in (q, k, v))
    queries = queries.reshape(-1, group * n, head_dim)  # the heads of a group share their keys
    scores = (queries @ keys.swapaxes(1, 2)).reshape(num_heads, n, n) / np.float32(np.sqrt(head_dim))
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    out = (weights.reshape(-1, group * n, n) @ values).reshape(num_heads, n, head_dim)
    result: Array = np.moveaxis(out, 0, 1).astype(q.dtype)
    return result


def logits(model: Model, tokens: Sequence[int], first: int = 0) -> Array:
    """The logits after tokens[first], tokens[first + 1], ...: float32 (len(tokens) - first, 256). `model` is on "cpu"."""
    result: Array = model.forward(tokens, range(len(tokens)), attend, rows=range(first, len(tokens)))
    return result


def bits_per_byte(model: Model, texts: Iterable[Sequence[int]]) -> float:
    """How well `model` predicts bytes 1, 2, ... of each text from those before: mean of -log2 p. 8 is no knowledge at all."""
    bits = [-log2_softmax(logits(model, text[:-1]))[np.arange(len(text) - 1), text[1:]] for text in texts]
    return float(np.concatenate(bits).mean())


def log2_softmax(x: Array) -> Array:
    """Base-2 logarithms of softmax over the last axis, in float64."""
    x = x.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    result: Array = (x - np.log(np.exp(x).sum(axis=-1, keepdims=True))) / np.log(2)
    return result
