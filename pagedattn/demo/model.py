"""A byte-level model of the Llama kind: RMSNorm, RoPE, grouped query attention, SwiGLU, tied embeddings.

Attention is the caller's: the same layers run over a paged cache and over a plain dense computation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from pagedattn import devices
from pagedattn.devices.base import Device

VOCABULARY = 256
END = 0  # between documents; a byte that no text contains

Attend: TypeAlias = Callable[[int, Any, Any, Any], Any]
"""(layer, q, k, v) -> out: q and out are (n, num_heads, head_dim), k and v (n, num_kv_heads, head_dim)."""


@dataclass(frozen=True)
class Config:
    """The shape of a model.

    Examples
    --------
    >>> Config().num_parameters
    1598880
    """

    dim: int = 160
    num_layers: int = 4
    num_heads: int = 8
    num_kv_heads: int = 2
    head_dim: int = 64
    hidden_dim: int = 384
    context: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights by name; a matrix (rows, columns) is applied as x @ matrix."""
        rows = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        layer = {
            "attention_norm": (self.dim,),
            "qkv": (self.dim, rows),
            "attention_out": (self.num_heads * self.head_dim, self.dim),
            "hidden_norm": (self.dim,),
            "gate_up": (self.dim, 2 * self.hidden_dim),
            "down": (self.hidden_dim, self.dim),
        }
        layers = {f"layers.{i}.{name}": shape for i in range(self.num_layers) for name, shape in layer.items()}
        return {"embedding": (VOCABULARY, self.dim), **layers, "norm": (self.dim,)}

    @property
    def num_parameters(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes().values())


class Model:
    """The layers, on a device.

    All arithmetic is float32; what attention reads and writes is rounded to `dtype`.

    Parameters
    ----------
    config : Config
    weights : mapping of str to ndarray
        As Config.shapes() names them, on the host.
    device : str or Device, optional
        None: a GPU if one is usable.
    dtype : str
        Type of q, k, v and of attention's output.
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, np.ndarray[Any, Any]],
        device: str | Device | None = None,
        dtype: str = "float16",
    ) -> None:
        self.config = config
        self.device = devices.get(device)
        self.dtype = np.dtype(dtype)
        self.xp = sys.modules[self.device.array_type.__module__.partition(".")[0]]
        self.weights = {name: self.device.asarray(np.asarray(weights[name], np.float32)) for name in config.shapes()}
        self._unembedding = self.device.asarray(np.ascontiguousarray(np.asarray(weights["embedding"], np.float32).T))
        self._rope = [self.device.asarray(table) for table in rope_tables(config)]

    def current(self) -> AbstractContextManager[Any]:
        """Within it, the model's device is the one that array operations use, on a machine with several GPUs."""
        return self.xp.cuda.Device(self.device.index) if hasattr(self.xp, "cuda") else nullcontext()

    def forward(self, tokens: Sequence[int], positions: Any, attend: Attend, rows: Any = None) -> Any:
        """The logits, float32 (len(rows), 256), of tokens at their positions; `rows` selects which (None: all).

        `tokens` and `positions` are of the host, one entry per row of q; several sequences may follow each other.
        """
        place = self.device.asarray(np.asarray(positions, np.int64))
        rope = [table[place][:, None, :] for table in self._rope]
        x = self.weights["embedding"][self.device.asarray(np.asarray(tokens, np.int64))]
        for layer in range(self.config.num_layers):
            x = self._layer(x, layer, rope, attend)
        if rows is not None:
            x = x[self.device.asarray(np.asarray(rows, np.int64))]
        return self._linear(self._norm(x, "norm"), self._unembedding)

    def _layer(self, x: Any, layer: int, rope: Sequence[Any], attend: Attend) -> Any:
        c, name = self.config, f"layers.{layer}."
        fused = self._linear(self._norm(x, name + "attention_norm"), self.weights[name + "qkv"])
        fused = fused.reshape(len(x), c.num_heads + 2 * c.num_kv_heads, c.head_dim)
        qk = self._rotate(fused[:, : c.num_heads + c.num_kv_heads], rope).astype(self.dtype)
        v = fused[:, c.num_heads + c.num_kv_heads :].astype(self.dtype)
        # q and k stay views of one buffer: rows are contiguous, a token's stride is larger.
        out = attend(layer, qk[:, : c.num_heads], qk[:, c.num_heads :], v)
        x = x + self._linear(out.astype(np.float32).reshape(len(x), -1), self.weights[name + "attention_out"])
        both = self._linear(self._norm(x, name + "hidden_norm"), self.weights[name + "gate_up"])
        gate, up = both[:, : c.hidden_dim], both[:, c.hidden_dim :]
        silu = 0.5 * gate * (1 + self.xp.tanh(0.5 * gate))  # gate * sigmoid(gate), without overflow
        return x + self._linear(silu * up, self.weights[name + "down"])

    def _norm(self, x: Any, name: str) -> Any:
        scale = 1 / self.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.config.norm_eps))
        return x * scale * self.weights[name]

    def _rotate(self, x: Any, rope: Sequence[Any]) -> Any:
        """RoPE on pairs (i, i + head_dim / 2)."""
        (cos, sin), half = rope, self.config.head_dim // 2
        a, b = x[..., :half], x[..., half:]
        return self.xp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)

    def _linear(self, x: Any, w: Any) -> Any:
        return x @ w if self.xp is np else summed_product(self.xp, x, w)


def summed_product(xp: Any, x: Any, w: Any, limit: int = 1 << 24) -> Any:
    """x @ w as a sum of products, `limit` of them in memory at once: CuPy's matmul needs cuBLAS, which this package does not install.

    >>> x, w = np.ones((5, 2)), np.ones((2, 3))
    >>> np.array_equal(summed_product(np, x, w, limit=12), x @ w)
    True
    """
    rows = max(1, limit // w.size)
    parts = [(x[i : i + rows, :, None] * w).sum(axis=1) for i in range(0, len(x), rows)]
    return parts[0] if len(parts) == 1 else xp.concatenate(parts)


def rope_tables(config: Config) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """cos and sin of every position's angles, float32 (context, head_dim / 2)."""
    frequencies = config.rope_base ** (-np.arange(0, config.head_dim, 2) / config.head_dim)
    angles = np.arange(config.context)[:, None] * frequencies
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
