"""KVCache.convert: the same sequences in another stored type, and what the cache says about its size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dtypes, quant

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))
LAYERS = 2


def filled(device: str, dtype: str = "float16", kv_dtype: str | None = None) -> tuple[pa.KVCache, list[int]]:
    """A poisoned pool of 16-token blocks with an empty sequence and others of 37, 37 and 20 tokens that share blocks, and 5 more."""
    where = pa.devices.get(device)
    layout = pa.BlockLayout(2, 64, 16, LAYERS, dtype, kv_dtype)
    pool = where.asarray(np.full((20, layout.block_bytes), 0xFF, np.uint8))
    cache = pa.KVCache(
        20, num_kv_heads=2, head_dim=64, block_len=16, num_layers=LAYERS, dtype=dtype, kv_dtype=kv_dtype, device=device, pool=pool
    )
    gone, first, empty, short = (cache.new_sequence() for _ in range(4))
    cache.extend([gone], [16])
    write(cache, first, 37)
    write(cache, short, 5)
    cache.free(gone)
    twin, cut = cache.fork(first), cache.fork(first)
    cache.truncate(cut, 20)
    return cache, [first, empty, short, twin, cut]


def write(cache: pa.KVCache, sequence: int, count: int, seed: int = 0) -> None:
    batch = cache.extend([sequence], [count])
    element = dtypes.of(cache.layout.dtype).numpy
    rows = np.random.default_rng([sequence, seed]).standard_normal((LAYERS, 2, count, 2, 64), np.float32).astype(element)
    for layer, (k, v) in enumerate(rows):
        pa.append(cache.device.asarray(k), cache.device.asarray(v), cache, batch, layer=layer)


def read(cache: pa.KVCache, sequence: int) -> list[Any]:
    batch = cache.batch([sequence])
    return [cache.device.to_host(x) for layer in range(LAYERS) for x in pa.gather(cache, batch, layer=layer)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("source", [None, "int8", "int4"])
@pytest.mark.parametrize("target", [None, "int8", "int4"])
def test_the_same_sequences(source: str | None, target: str | None, dtype: str, device: str) -> None:
    cache, sequences = filled(device, dtype, source)
    before = cache.device.to_host(cache.pool).tobytes()
    new = cache.convert(target)
    assert new.layout.kv_dtype == (target or dtype)
    assert new.device is cache.device
    assert [new.seqlen(s) for s in sequences] == [cache.seqlen(s) for s in sequences] == [37, 0, 5, 37, 20]
    assert new.num_free_blocks == cache.num_free_blocks
    np.testing.assert_array_equal(
        new.device.to_host(new.batch(sequences[:1]).block_table), cache.device.to_host(cache.batch(sequences[:1]).block_table)
    )
    for sequence in sequences:
        for found, kept in zip(read(new, sequence), read(cache, sequence), strict=True):
            bits = dtypes.of(target or dtype).bits
            expected = kept if target in (None, source) else quant.dequantise(*quant.quantise(kept, bits), bits)
            np.testing.assert_array_equal(found.view(np.uint16), expected.view(np.uint16))

    # from here on each goes its own way, and sharing works as before
    held = [read(new, s) for s in sequences]
    write(cache, sequences[0], 20, seed=1)
    after = cache.device.to_host(cache.pool).tobytes()
    assert after != before
    write(new, sequences[4], 1, seed=2)
    assert cache.device.to_host(cache.pool).tobytes() == after
    for sequence, rows in zip(sequences, held, strict=True):
        for found, kept in zip(read(new, sequence), rows, strict=True):
            np.testing.assert_array_equal(found[: len(kept)].view(np.uint16), kept.view(np.uint16))
    assert new.new_sequence() == cache.new_sequence()
    for sequence in sequences:
        new.free(sequence)
    assert new.num_free_blocks == 20


def test_many_blocks_at_a_time_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, sequences = filled("cpu")
    whole = [read(cache.convert("int8"), s) for s in sequences]
    monkeypatch.setattr("pagedattn.convert._ELEMENTS", 1)
    for sequence, rows in zip(sequences, whole, strict=True):
        for found, expected in zip(read(cache.convert("int8"), sequence), rows, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("kv_dtype", "text"), [("fp8", "`kv_dtype` must be None or one of"), ("bfloat16", "must equal `dtype`, float16")])
def test_refused(kv_dtype: str, text: str) -> None:
    cache, _ = filled("cpu")
    with pytest.raises(pa.ArgumentError, match=text):
        cache.convert(kv_dtype)


@pytest.mark.parametrize(
    ("kv_dtype", "text"),
    [
        (None, "1024 bytes a token)"),
        ("int8", "528 bytes a token, 1.94x the tokens of float16)"),
        ("int4", "272 bytes a token, 3.76x the tokens of float16)"),
    ],
)
def test_a_cache_tells_what_a_token_takes(kv_dtype: str | None, text: str) -> None:
    cache = pa.KVCache(4, num_kv_heads=2, head_dim=128, block_len=16, kv_dtype=kv_dtype, device="cpu")
    assert repr(cache).endswith(text)
    assert text[:-1] in cache._repr_html_()
    assert (f"float16 stored as {kv_dtype}" in repr(cache)) == (kv_dtype is not None)
