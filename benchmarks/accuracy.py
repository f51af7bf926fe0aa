"""What codes cost: python -m benchmarks.accuracy [--device cpu|cuda] [--windows N] [--json FILE]

Errors of attention on int8 and int4 caches against 16 bits, on random rows and on the demo model's; the model's bits per byte with each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pagedattn as pa
from pagedattn import dtypes
from pagedattn.demo import corpus, weights
from pagedattn.demo.dense import log2_softmax
from pagedattn.demo.generate import BLOCK_LEN, cache_for, paged
from pagedattn.demo.model import Model

CODES = ("int8", "int4")
GRANTED = 1e-3  # what int8 may add to the bits per byte, as a share
WINDOW = 512  # bytes; the first half is prefill, the second decode


def difference(found: Any, expected: Any, device: pa.devices.base.Device) -> float:
    """Root mean square of the difference, as a share of that of what is expected."""
    a, b = (device.to_host(x).astype(np.float64) for x in (found, expected))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def random_rows(device: pa.devices.base.Device, dtype: str, head_dim: int, num_keys: int, tokens: int) -> dict[str, float]:
    """The errors on normally distributed q, k and v: the last `tokens` of two sequences of `num_keys`."""
    rng, element = np.random.default_rng(0), dtypes.of(dtype).numpy

    def normal(count: int, heads: int) -> Any:
        return device.asarray(rng.standard_normal((count, heads, head_dim), np.float32).astype(element))

    cache = pa.KVCache(2 * -(-num_keys // 64), num_kv_heads=2, head_dim=head_dim, dtype=dtype, device=device)
    sequences = [cache.new_sequence(), cache.new_sequence()]
    batch = cache.extend(sequences, [num_keys] * 2)
    pa.append(normal(batch.num_tokens, 2), normal(batch.num_tokens, 2), cache, batch)
    for sequence in sequences:
        cache.truncate(sequence, num_keys - tokens)
    batch = cache.extend(sequences, [tokens] * 2)  # the same tokens again, as queries: their rows are there already
    q = normal(batch.num_tokens, 8)
    expected = pa.paged_attention(q, cache, batch)
    return {name: difference(pa.paged_attention(q, cache.convert(name), batch), expected, device) for name in CODES}


def model_rows(model: Model, windows: Sequence[Sequence[int]]) -> list[dict[str, float]]:
    """The errors in each layer on the model's own q, k and v, while it reads text through a 16-bit cache."""
    cache = cache_for(model, len(windows) * -(-WINDOW // BLOCK_LEN))
    batch = cache.extend([cache.new_sequence() for _ in windows], [len(w) for w in windows])
    through, queries, outs = paged(cache, batch), [], []

    def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
        queries.append(q)
        outs.append(through(layer, q, k, v))
        return outs[-1]

    model.forward([t for w in windows for t in w], np.concatenate([np.arange(len(w)) for w in windows]), attend, rows=[0])
    caches = {name: cache.convert(name) for name in CODES}
    return [
        {name: difference(pa.paged_attention(q, codes, batch, layer=layer), out, model.device) for name, codes in caches.items()}
        for layer, (q, out) in enumerate(zip(queries, outs, strict=True))
    ]


def bits_per_byte(model: Model, windows: Sequence[Sequence[int]], kv_dtype: str | None) -> float:
    """Mean of -log2 p of bytes 1, 2, ... of each window: the first half in one prefill, then one decode step for each byte."""
    cache = cache_for(model, len(windows) * -(-WINDOW // BLOCK_LEN), kv_dtype)
    sequences = [cache.new_sequence() for _ in windows]
    text = np.asarray(windows)
    bits, first = [], 0
    for last in (WINDOW // 2, *range(WINDOW // 2 + 1, text.shape[1])):
        batch = cache.extend(sequences, [last - first] * len(windows))
        logits = model.forward(text[:, first:last].reshape(-1).tolist(), np.tile(np.arange(first, last), len(windows)), paged(cache, batch))
        surprise = -log2_softmax(model.device.to_host(logits))
        bits.append(surprise[np.arange(len(surprise)), text[:, first + 1 : last + 1].reshape(-1)])
        first = last
    return float(np.concatenate(bits).mean())


def held_out(count: int) -> np.ndarray[Any, Any]:
    """`count` windows of text that the model has not learned, spread evenly."""
    text = corpus.read()[1]
    starts = np.linspace(0, len(text) - WINDOW, count).astype(int)
    return text[starts[:, None] + np.arange(WINDOW)].astype(np.int64)


def measure(device: str | None, num_windows: int) -> dict[str, Any]:
    """Every figure, printed as it comes."""
    loaded = weights.load()
    model = Model(loaded.config, loaded.arrays, device)
    results: dict[str, Any] = {"device": model.device.name, "random": [], "model": [], "bits_per_byte": {}}
    with model.current():
        print(f"{model.device.name}: relative error of attention's output against a 16-bit cache\n{'':44}{'int8':>10}{'int4':>10}")
        for dtype in dtypes.ACTIVATIONS:
            for head_dim, num_keys, tokens in ((64, 1024, 1), (128, 128, 1), (128, 4096, 1), (128, 1024, 64), (256, 1024, 1)):
                row = {"dtype": dtype, "head_dim": head_dim, "num_keys": num_keys, "tokens": tokens}
                errors = random_rows(model.device, dtype, head_dim, num_keys, tokens)
                results["random"].append(row | errors)
                line(f"random, {dtype}, head_dim {head_dim}, {tokens} of {num_keys}", errors)
        windows = held_out(num_windows)
        for layer, errors in enumerate(model_rows(model, windows[:4].tolist())):
            results["model"].append({"layer": layer} | errors)
            line(f"the model's own rows, layer {layer}", errors)
        print(f"\nbits per byte of {num_windows} x {WINDOW} bytes held out")
        for name in ("float16", *CODES):
            found = bits_per_byte(model, windows.tolist(), None if name == "float16" else name)
            results["bits_per_byte"][name] = found
            print(f"{name:>10}{found:10.5f}   {found / results['bits_per_byte']['float16'] - 1:+.4%}", flush=True)
    return results


def line(what: str, errors: dict[str, float]) -> None:
    print(f"{what:44}" + "".join(f"{errors[name]:10.5f}" for name in CODES), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda, cuda:N; default: a GPU if one is usable")
    parser.add_argument("--windows", type=int, default=16, help=f"pieces of {WINDOW} bytes (default 16)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    results = measure(arguments.device, arguments.windows)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    bits = results["bits_per_byte"]
    if abs(bits["int8"] / bits["float16"] - 1) > GRANTED:
        print(f"int8 must be within {GRANTED:.1%} of float16", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
