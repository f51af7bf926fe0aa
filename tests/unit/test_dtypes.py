"""How element types are recognised."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pagedattn import dtypes
from pagedattn.errors import ArgumentError


class Framework:
    """Prints as the dtypes of PyTorch and JAX do."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("float16", "float16"),
        (np.float16, "float16"),
        (np.dtype("float16"), "float16"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
        (Framework("torch.bfloat16"), "bfloat16"),
        (Framework("torch.float16"), "float16"),
        (dtypes.BFLOAT16, "bfloat16"),
    ],
)
def test_activations(value: Any, name: str) -> None:
    assert dtypes.activation(value).name == name


@pytest.mark.parametrize("value", ["float32", np.float32, "int8", None, Framework("torch.float64"), 16])
def test_other_activations(value: Any) -> None:
    with pytest.raises(ArgumentError, match="`dtype` must be one of float16, bfloat16; got"):
        dtypes.activation(value)


def test_stored() -> None:
    assert dtypes.stored(None, dtypes.BFLOAT16) is dtypes.BFLOAT16
    assert dtypes.stored("int4", dtypes.FLOAT16).bits == 4
    with pytest.raises(ArgumentError, match="must equal `dtype`, float16; got bfloat16"):
        dtypes.stored("bfloat16", dtypes.FLOAT16)
    with pytest.raises(ArgumentError, match="`kv_dtype` must be None or one of"):
        dtypes.stored("fp8", dtypes.FLOAT16)


@pytest.mark.parametrize("name", dtypes.STORED)
def test_numpy_holds_the_bits(name: str) -> None:
    found = dtypes.of(name)
    assert found.numpy.itemsize * 8 == max(found.bits, 8)
    assert found.is_activation == (found.bits == 16)
