"""What one run of the demo used and measured: sentences for people, figures for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import pagedattn as pa
from pagedattn.demo import dense
from pagedattn.demo.generate import Continuation, Run
from pagedattn.demo.model import Model
from pagedattn.demo.weights import Weights
from pagedattn.spec import KernelSpec

# The paged and the dense computation both round q, k, v and the output; the paged one also rounds the probabilities. So each lies about
# one effect of float16 from the exact one, and at most about two from the other. Twice that, since each is the maximum over a sample.
BOUND_FACTOR = 4.0


@dataclass(frozen=True)
class Check:
    """Agreement with dense attention without a cache.

    Attributes
    ----------
    max_difference : float
        Largest |paged - dense| of all logits of the run.
    float16_effect : float
        Largest |dense - exact|, where `exact` rounds nothing that attention reads or writes.
    max_logit : float
        Largest |dense|.
    """

    max_difference: float
    float16_effect: float
    max_logit: float

    @property
    def bound(self) -> float:
        return BOUND_FACTOR * self.float16_effect

    @property
    def passed(self) -> bool:
        return self.max_difference <= self.bound


def check(continuations: Sequence[Continuation], weights: Weights, dtype: str = "float16") -> Check:
    """Compute every logits row of a run again, densely and from the whole text."""
    rounded, exact = (Model(weights.config, weights.arrays, "cpu", dtype=t) for t in (dtype, "float32"))
    differences, effects, sizes = [], [], []
    for c in continuations:
        prompt = c.request.tokens
        tokens = [*prompt, *c.text][: len(prompt) + len(c.logits) - 1]
        expected, unrounded = (dense.logits(model, tokens, len(prompt) - 1) for model in (rounded, exact))
        differences.append(np.abs(np.stack(c.logits) - expected).max())
        effects.append(np.abs(unrounded - expected).max())
        sizes.append(np.abs(expected).max())
    return Check(float(max(differences)), float(max(effects)), float(max(sizes)))


def kernels(model: Model, cache: pa.KVCache, run: Run) -> dict[str, str]:
    """Names of the kernels of a run, each with where it came from; empty on a device that has none."""
    arch = model.device.arch
    if arch is None:
        return {}
    layout = cache.layout
    specs = [KernelSpec("append", dtype=layout.dtype, kv_dtype=layout.kv_dtype, head_dim=layout.head_dim, arch=arch.name)]
    for batch in run.batches:
        q = model.device.empty((batch.num_tokens, model.config.num_heads, cache.layout.head_dim), model.dtype)
        specs += [step.spec for step in pa.explain(q, cache, batch).steps if step.spec]
    built = [pa.compile(spec) for spec in specs]
    return {k.name: "from the store" if k.origin == "store" else f"compiled in {k.seconds:.2f} s" for k in built}


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes
    ----------
    model : Model
    weights : Weights
    cache : KVCache
    kernels : dict of str to str
        See `kernels`.
    run : Run
    check : Check
    ready_seconds, seconds : float
        To get the kernels ready; in all.
    """

    model: Model
    weights: Weights
    cache: pa.KVCache
    kernels: dict[str, str]
    run: Run
    check: Check
    ready_seconds: float
    seconds: float

    def sentences(self) -> list[tuple[str, str]]:
        """(label, sentence), in the order of reading."""
        run, layout, result = self.run, self.cache.layout, self.check
        verdict = "agrees with" if result.passed else "DIFFERS from"
        prefill = f"{run.batches[0].batch_size} prompts, {run.prefill_tokens:,} tokens"
        decode = f"{len(run.continuations)} sequences, {run.decode_tokens:,} tokens"
        used, blocks = run.peak_blocks * layout.block_bytes / 1e6, f"{self.cache.num_blocks} blocks of {layout.block_len} tokens"
        differ = f"logits up to {result.max_logit:.1f} differ by at most {result.max_difference:.4f}"
        lines = [("kernels" if i == 0 else "", f"{name}, {origin}") for i, (name, origin) in enumerate(self.kernels.items())]
        lines += [
            ("prefill", f"{prefill} in {run.prefill_seconds:.3f} s: {run.prefill_tokens / run.prefill_seconds:,.0f} tokens/s"),
            ("decode", f"{decode} in {run.decode_seconds:.3f} s: {run.decode_tokens / run.decode_seconds:,.0f} tokens/s"),
            ("cache", f"{layout.token_bytes:,} bytes a token; at most {run.peak_blocks} of {blocks} in use, {used:.1f} MB"),
            ("forks", f"share their prefix: {run.shared_blocks} blocks saved"),
            ("check", f"{verdict} dense attention without a cache: {differ}"),
            ("", f"(the rounding of q, k, v and output to {layout.dtype} moves them by {result.float16_effect:.4f})"),
            ("total", f"{self.seconds:.1f} s" + (f", {self.ready_seconds:.1f} s of them to get the kernels ready" if self.kernels else "")),
        ]
        return lines

    def figures(self) -> dict[str, Any]:
        """The same and more, as JSON takes it."""
        run, layout = self.run, self.cache.layout
        return {
            **place(self.model),
            "kernels": self.kernels,
            "model": {
                **asdict(self.model.config),
                "parameters": self.model.config.num_parameters,
                "weights_bytes": self.weights.nbytes,
                "training": {name: value for name, value in self.weights.training.items() if name != "arguments"},
            },
            "cache": {
                "block_len": layout.block_len,
                "num_blocks": self.cache.num_blocks,
                "token_bytes": layout.token_bytes,
                "pool_bytes": int(self.cache.pool.nbytes),
                "peak_blocks": run.peak_blocks,
                "shared_blocks": run.shared_blocks,
            },
            "prefill": _speed(run.prefill_tokens, run.prefill_seconds),
            "decode": _speed(run.decode_tokens, run.decode_seconds),
            "dense": {**asdict(self.check), "bound": self.check.bound, "passed": self.check.passed},
            "sequences": [
                {
                    "title": c.request.title,
                    "prompt": c.request.prompt.decode(),
                    "text": c.text.decode(errors="replace"),
                    "bits_per_byte": round(c.bits_per_byte, 4),
                }
                for c in run.continuations
            ],
            "ready_seconds": round(self.ready_seconds, 3),
            "seconds": round(self.seconds, 3),
        }


def place(model: Model) -> dict[str, str | None]:
    """Where a model runs."""
    device = model.device
    return {"device": device.name, "gpu": getattr(device, "description", None), "arch": device.arch.name if device.arch else None}


def introduction(model: Model, weights: Weights) -> list[tuple[str, str]]:
    """(label, sentence): what can be said before anything has run."""
    c, where, training = model.config, place(model), weights.training
    kind = f"{where['gpu']}, {where['arch']}" if where["arch"] else f"NumPy {np.__version__}, no GPU"
    return [
        ("device", f"{where['device']} ({kind})"),
        (
            "model",
            f"{c.num_parameters:,} parameters, float16, {weights.nbytes / 1e6:.1f} MB: {c.num_layers} layers, "
            f"{c.num_heads} query heads on {c.num_kv_heads} KV heads of {c.head_dim}",
        ),
        ("learned", f"{training['text']}; {training['bits_per_byte']:.2f} bits per byte on files held out"),
    ]


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"tokens": tokens, "seconds": round(seconds, 6), "tokens_per_second": round(tokens / seconds, 1)}
