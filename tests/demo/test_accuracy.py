"""The accuracy benchmark on a small model: codes cost what their bits say, and the shipped model hardly notices eight of them."""

from __future__ import annotations

import numpy as np
import pytest

import pagedattn as pa
from benchmarks import accuracy
from pagedattn.demo import dense, weights
from pagedattn.demo.generate import cache_for
from pagedattn.demo.model import Model
from tests.demo.small import CONFIG, random_weights, texts

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "WINDOW", 32)


@pytest.mark.parametrize("device", DEVICES)
def test_random_rows(device: str) -> None:
    errors = accuracy.random_rows(pa.devices.get(device), "float16", 64, 100, 3)
    assert 0.001 < errors["int8"] < 0.02
    assert 10 < errors["int4"] / errors["int8"] < 25, "a step of 4 bits is 17 times one of 8"


@pytest.mark.parametrize("device", DEVICES)
def test_the_models_rows(device: str) -> None:
    model = Model(CONFIG, random_weights().arrays, device)
    layers = accuracy.model_rows(model, texts(32, 32))
    assert len(layers) == CONFIG.num_layers
    for errors in layers:
        assert 0 < errors["int8"] < errors["int4"] < 1


@pytest.mark.parametrize("device", DEVICES)
def test_bits_per_byte(device: str) -> None:
    loaded = weights.load()
    windows = [list(text[:32]) for text in (b"\0import os\nimport sys\n\n\ndef main(", b"\0class Error(Exception):\n    pass\n")]
    model = Model(loaded.config, loaded.arrays, device)
    wide, eight, four = (accuracy.bits_per_byte(model, windows, name) for name in (None, "int8", "int4"))
    assert wide == pytest.approx(dense.bits_per_byte(Model(loaded.config, loaded.arrays, "cpu"), windows), rel=2e-3)
    assert wide == pytest.approx(eight, rel=0.02)
    assert wide == pytest.approx(four, rel=0.3)
    assert four != eight != wide


def test_a_cache_of_codes_is_the_models_too() -> None:
    cache = cache_for(Model(CONFIG, random_weights().arrays, "cpu"), 3, "int4")
    assert cache.layout == pa.BlockLayout(CONFIG.num_kv_heads, CONFIG.head_dim, 16, CONFIG.num_layers, "float16", "int4")


def test_windows_are_of_text_held_out() -> None:
    windows = accuracy.held_out(3)
    assert windows.shape == (3, 32)
    assert np.unique(windows).size > 10
