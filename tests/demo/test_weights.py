"""The shipped weights: what the file is, that it refuses to be anything else, and that the model knows its text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pagedattn.demo import corpus, dense, weights
from pagedattn.demo.model import Model
from pagedattn.errors import ArgumentError
from tests.demo.small import random_weights

MAX_BITS_PER_BYTE = 1.4


def test_the_file_is_float16_and_small() -> None:
    loaded = weights.load()
    assert {a.dtype for a in loaded.arrays.values()} == {np.dtype(np.float16)}
    assert 1_000_000 <= loaded.config.num_parameters <= 2_000_000
    assert loaded.nbytes == 2 * loaded.config.num_parameters
    assert 2.5e6 <= weights.SHIPPED.stat().st_size <= 4e6
    assert all(np.isfinite(a).all() for a in loaded.arrays.values())


def test_the_file_says_how_it_was_made() -> None:
    training = weights.load().training
    assert "PSF licence" in training["text"]
    assert training["text_bytes"]["training"] > 5e6
    assert training["tokens"] > 1e6
    assert 0.5 < training["bits_per_byte"] < MAX_BITS_PER_BYTE


def test_the_model_knows_text_that_it_was_not_trained_on() -> None:
    loaded = weights.load()
    _, held_out = corpus.read()
    windows = held_out[np.linspace(0, len(held_out) - 257, 12).astype(int)[:, None] + np.arange(257)]
    assert dense.bits_per_byte(Model(loaded.config, loaded.arrays, "cpu"), windows) < MAX_BITS_PER_BYTE


def test_save_and_load(tmp_path: Path) -> None:
    made = random_weights()
    path = tmp_path / "weights.npz"
    weights.save(path, made.config, {name: a.astype(np.float32) for name, a in made.arrays.items()}, {"text": "none"})
    loaded = weights.load(path)
    assert loaded.config == made.config
    assert loaded.training == {"text": "none"}
    assert all(np.array_equal(loaded.arrays[name], made.arrays[name]) for name in made.arrays)


def changed(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    made = random_weights()
    about = {"config": vars(made.config), "training": {}}
    arrays = {"about": np.array(json.dumps(about)), **made.arrays, **changes}
    return {name: a for name, a in arrays.items() if a is not None}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"norm": None}, r"'norm' must be float16 \(32,\); got nothing"),
        ({"norm": np.ones(33, np.float16)}, r"'norm' must be float16 \(32,\); got float16 \(33,\)"),
        ({"norm": np.ones(32, np.float32)}, r"'norm' must be float16 \(32,\); got float32 \(32,\)"),
        ({"about": None}, "must hold a text `about`"),
    ],
    ids=["missing", "shape", "dtype", "no text"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, np.ndarray | None], text: str) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **changed(**changes))
    with pytest.raises(ArgumentError, match=text):
        weights.load(path)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, **changed(norm=np.array([object()])))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        weights.load(path)
