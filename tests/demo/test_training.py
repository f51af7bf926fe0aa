"""The training script's PyTorch model is the demo's model, and the script runs."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagedattn.demo import dense, weights
from pagedattn.demo.model import Model
from tests.demo.small import CONFIG, random_weights, texts

torch = pytest.importorskip("torch", reason="only training needs PyTorch")

SCRIPT = Path(__file__).parents[2] / "examples" / "train_demo_model.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_it_computes_what_the_demo_computes(script: dict[str, Any]) -> None:
    made = random_weights()
    trained = script["TorchModel"](CONFIG).eval()
    with torch.no_grad():
        for name, array in made.arrays.items():
            trained.tensors[name.replace(".", "/")].copy_(torch.from_numpy(array.astype(np.float32)))
        (text,) = texts(CONFIG.context)
        got = trained(torch.tensor([text]))[0].numpy()
    # both are float32 throughout: only the order of sums differs
    expected = dense.logits(Model(CONFIG, made.arrays, "cpu", dtype="float32"), text)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert all(np.array_equal(trained.export()[name], array) for name, array in made.arrays.items())


def test_it_trains_and_writes_weights(script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, log = tmp_path / "weights.npz", tmp_path / "log.json"
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, "--seconds", "3", "--tiny", "--device", "cpu", "--out", str(path), "--log", str(log)])
    script["main"]()
    loaded, told = weights.load(path), json.loads(log.read_text())
    assert loaded.training["bits_per_byte"] == told["bits_per_byte"] < 8
    assert told["curves"]["held_out"]
    assert abs(told["export"]["float16"] - told["export"]["training_precision"]) < 0.01
