"""Every kind of rope against Hugging Face transformers' own results (golden.json), as frequencies and through append on each device."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pagedattn as pa

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
DEVICES = ("cpu", "interpreter", pytest.param("cuda", marks=pytest.mark.cuda))
NAMES = sorted(GOLDEN["cases"])


def rope_of(name: str) -> pa.Rope:
    return pa.Rope(**GOLDEN["cases"][name]["rope"])


@pytest.mark.parametrize("name", NAMES)
def test_frequencies(name: str) -> None:
    golden, rope = GOLDEN["cases"][name], rope_of(name)
    found = rope.frequencies(GOLDEN["head_dim"], seqlen=max(GOLDEN["positions"]) + 1)
    # transformers computes in float32, a power of a rounded exponent among it: (ln base) / 2 units in the last place, and a few steps
    np.testing.assert_allclose(found, golden["inv_freq"], rtol=2e-6)
    assert rope.attention_factor == pytest.approx(golden["attention_factor"], rel=1e-7)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_rows_in_the_cache(name: str, device: str) -> None:
    golden, rope = GOLDEN["cases"][name], rope_of(name)
    positions = GOLDEN["grid"] if rope.axes == 3 else GOLDEN["positions"]
    count, dim = len(GOLDEN["positions"]), GOLDEN["head_dim"]
    cache = pa.KVCache(1, num_kv_heads=1, head_dim=dim, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence()], [count])
    rows = cache.device.asarray(np.tile(np.array(GOLDEN["x"], np.float16), (count, 1, 1)))
    seqlens = [max(GOLDEN["positions"]) + 1] if rope.kind == "dynamic" else None
    pa.append(rows, rows, cache, batch, rope=rope.at(positions, seqlens=seqlens))
    k, v = (cache.device.to_host(x)[:, 0].astype(np.float64) for x in pa.gather(cache, batch))
    np.testing.assert_array_equal(v, cache.device.to_host(rows)[:, 0])
    expected = np.array(golden["turned"])
    # transformers' float32 angles are off by 2e-6 of themselves at most; the rest is one rounding to float16
    furthest = np.max(np.atleast_2d(positions), axis=0)[:, None]
    bound = 2.0**-11 * np.abs(expected) + 1e-6 + 2e-6 * furthest * np.array(golden["inv_freq"]).max()
    assert (np.abs(k - expected) <= bound).all()
    assert np.abs(expected - GOLDEN["x"])[1:].max() > 100 * bound.max(), "rows have turned by far more than is granted"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_far_positions_are_as_exact_as_near_ones(device: str, interleaved: bool) -> None:
    """Pairs chosen so that one element cancels: what is left of it shows the angle's error through the rounding to float16."""
    dim, positions = 128, np.array([1, 1_000_000, 999_983, 2**31 - 1])
    freq = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    turns = np.array([[round(f / (2 * np.pi) * 2.0**64) * int(n) % 2**64 / 2.0**64 for f in freq] for n in positions])
    angle = 2 * np.pi * turns
    a, b = (f(angle).astype(np.float16).astype(np.float64) for f in (np.sin, np.cos))
    rows = np.empty((len(positions), 1, dim), np.float16)
    first, second = (np.s_[..., 0::2], np.s_[..., 1::2]) if interleaved else (np.s_[..., : dim // 2], np.s_[..., dim // 2 :])
    rows[first], rows[second] = a[:, None], b[:, None]
    cache = pa.KVCache(1, num_kv_heads=1, head_dim=dim, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence()], [len(positions)])
    k = cache.device.asarray(rows)
    pa.append(k, k, cache, batch, rope=pa.Rope(interleaved=interleaved).at(positions))
    found = cache.device.to_host(pa.gather(cache, batch)[0])[:, 0].astype(np.float64)
    left = a * np.cos(angle) - b * np.sin(angle)
    assert np.abs(left).max() < 1e-3
    bound = 3e-7 + 2.0**-11 * np.abs(left) + 2.0**-25
    assert (np.abs(found[first] - left) <= bound).all()
    np.testing.assert_allclose(found[second], a * np.sin(angle) + b * np.cos(angle), rtol=2.0**-11)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kind": "su"}, "`kind` must be one of none, default, linear, dynamic, yarn, llama3, mrope; got 'su'"),
        ({"dim": 6}, "`dim` must be a positive multiple of 4"),
        ({"dim": 0}, "`dim` must be a positive multiple of 4"),
        ({"base": 1.0}, "`base` must be above 1"),
        ({"base": float("nan")}, "`base` must be a positive finite number"),
        ({"factor": 0}, "`factor` must be a positive finite number"),
        ({"factor": 8.0}, "kind 'default' stretches nothing: `factor` must be 1; got 8.0. linear, dynamic, yarn, llama3 do."),
        ({"beta_fast": 32}, "`beta_fast` is no keyword of kind 'default', whose own are: mrope_section, mrope_interleaved"),
        ({"kind": "yarn"}, "kind 'yarn' needs `max_position`"),
        ({"kind": "yarn", "max_position": -1}, "`max_position` must be a positive finite number"),
        ({"kind": "llama3", "max_position": 8192, "high_freq_factor": 1}, "`high_freq_factor` must be above low_freq_factor"),
        ({"kind": "mrope"}, "kind 'mrope' needs `mrope_section`"),
        ({"kind": "mrope", "mrope_section": [16, 16]}, "`mrope_section` must be at least 3 counts of pairs"),
        ({"kind": "mrope", "mrope_section": [16, 8, 8.0]}, "`mrope_section` must be at least 3 counts of pairs"),
        ({"kind": ["a"]}, r"`kind` must be one of .*; got \['a'\]"),
        ({"dim": np.array([4, 8])}, "`dim` must be a positive multiple of 4"),
        ({"interleaved": "no"}, "`interleaved` must be True or False; got 'no'"),
        ({"kind": "yarn", "max_position": 64, "truncate": "x"}, "`truncate` must be True or False; got 'x'"),
        ({"kind": "yarn", "max_position": "64"}, "`max_position` must be a positive finite number; got '64'"),
        ({"kind": "mrope", "mrope_section": [1, 1, 1], "mrope_interleaved": 1}, "`mrope_interleaved` must be True or False; got 1"),
    ],
)
def test_refused(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(pa.ArgumentError, match=text):
        pa.Rope(**arguments)


def test_what_only_the_call_can_refuse() -> None:
    cache = pa.KVCache(2, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    batch = cache.extend([cache.new_sequence()], [3])
    k = np.ones((3, 1, 64), np.float16)
    for rope, text in (
        ("yarn", "`rope` must be a pagedattn.Rope"),
        (pa.Rope(dim=128), "`dim` must not pass the cache's head_dim, 64; got 128"),
        (pa.Rope("mrope", mrope_section=[8, 8, 8]), r"`mrope_section` must sum to the 32 pairs that turn; got \(8, 8, 8\), 24 in all"),
        (pa.Rope().at([1, 2]), r"`positions` must have the shape \(3,\), of the batch's new tokens; got \(2,\)"),
        (pa.Rope("mrope", mrope_section=[8, 12, 12]).at([1, 2, 3]), r"`positions` must have the shape \(3, 3\)"),
        (pa.Rope().at([0.5, 1, 2]), "`positions` must hold integers"),
        (pa.Rope().at([1, 2, 2**31]), "`positions` must lie below"),
        (pa.Rope("dynamic", factor=2, max_position=8).at(seqlens=[1, 2]), r"`seqlens` must be integers of shape \(1,\)"),
    ):
        before = cache.pool.copy()
        with pytest.raises(pa.ArgumentError, match=text):
            pa.append(k, k, cache, batch, rope=rope)
        np.testing.assert_array_equal(cache.pool, before)
    with pytest.raises(pa.ArgumentError, match="`seqlens` means something for kind 'dynamic' only"):
        pa.Rope().at(seqlens=[3])


def test_a_rope_is_a_value() -> None:
    one, two = (pa.Rope("mrope", mrope_section=s) for s in ([8, 12, 12], (8, 12, 12)))
    assert one == two
    assert len({one, two, pa.Rope(), pa.Rope("default", base=10000)}) == 2
    assert eval(repr(one), {"Rope": pa.Rope}) == one
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    for name in ("kind", "base", "own", "_key", "another"):
        with pytest.raises(AttributeError):
            setattr(one, name, 2.0)
    with pytest.raises(AttributeError, match="immutable"):
        del one.base
    with pytest.raises(TypeError):
        one.own["mrope_section"] = (1, 1, 1)  # type: ignore[index]
    assert one == two
    assert hash(one) == hash(two)
    assert pa.Rope("none").turns(64).size == 0
    assert pa.Rope("dynamic", factor=4, max_position=100).frequencies(64, 100).tolist() == pa.Rope().frequencies(64).tolist()
