"""A model small enough to compare in milliseconds, with random weights."""

from __future__ import annotations

import numpy as np

from pagedattn.demo.model import Config
from pagedattn.demo.weights import Weights

CONFIG = Config(dim=32, num_layers=3, num_heads=8, num_kv_heads=2, head_dim=64, hidden_dim=48, context=160)


def random_weights(seed: int = 0) -> Weights:
    """Scaled so that every layer and every head matters: activations stay near 1."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in CONFIG.shapes().items():
        scale = 1.0 if name == "embedding" else shape[0] ** -0.5
        values = 1 + 0.1 * rng.standard_normal(shape) if len(shape) == 1 else scale * rng.standard_normal(shape)
        arrays[name] = values.astype(np.float16)
    return Weights(CONFIG, arrays, {})


def texts(*lengths: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, n).tolist() for n in lengths]
