"""BlockLayout against a walk over a block, byte by byte in the order that the format gives."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.layout import BLOCK_LENS, HEAD_DIMS, BlockLayout

LAYOUTS = [
    BlockLayout(1, 64, 16),
    BlockLayout(3, 96, 32, num_layers=2, dtype="bfloat16"),
    BlockLayout(8, 128, 64, num_layers=3),
    BlockLayout(2, 192, 128),
    BlockLayout(2, 256, 256, num_layers=2),
    BlockLayout(2, 128, 16, num_layers=2, kv_dtype="int8"),
    BlockLayout(3, 64, 32, num_layers=2, kv_dtype="int4", dtype="bfloat16"),
]


def walk(layout: BlockLayout) -> tuple[dict[tuple[str, int, int, int], int], int]:
    """Where each row and each parameter lies, found by laying them out one after the other; and where the block ends."""
    bits = {"float16": 16, "bfloat16": 16, "int8": 8, "int4": 4}[str(layout.kv_dtype)]
    kinds = [("data", layout.head_dim * bits // 8)]
    if bits < 16:
        kinds.append(("param", 4))  # scale and zero, two bytes each
    places, at = {}, 0
    for layer in range(layout.num_layers):
        for kind, size in kinds:
            for head in range(layout.num_kv_heads):
                for which in "kv":
                    for token in range(layout.block_len):
                        places[f"{which}_{kind}", layer, head, token] = at
                        at += size
    return places, at


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_offset(layout: BlockLayout) -> None:
    places, end = walk(layout)
    assert layout.block_bytes == end
    assert layout.layer_bytes * layout.num_layers == end
    assert layout.token_bytes * layout.block_len == end
    for (name, layer, head, token), offset in places.items():
        assert getattr(layout, name)(layer, head, token) == offset, (name, layer, head, token)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_arrays_as_well_as_ints(layout: BlockLayout) -> None:
    layer, head, token = (np.arange(n) for n in (layout.num_layers, layout.num_kv_heads, layout.block_len))
    grid = np.ix_(layer, head, token)
    found = layout.v_data(*grid)
    assert found.shape == (layout.num_layers, layout.num_kv_heads, layout.block_len)
    assert found[-1, -1, -1] == layout.v_data(layer[-1], head[-1], token[-1])


def test_names_are_resolved() -> None:
    layout = BlockLayout(2, 64, dtype=np.float16)  # type: ignore[arg-type]
    assert (layout.dtype, layout.kv_dtype, layout.block_len, layout.num_layers) == ("float16", "float16", 64, 1)
    assert layout == BlockLayout(2, 64, 64, 1, "float16", "float16")
    assert hash(layout) == hash(BlockLayout(2, 64))
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_parameters_of_a_plain_cache() -> None:
    with pytest.raises(ArgumentError, match="float16 cache has no parameters"):
        BlockLayout(2, 64).k_param(0, 0, 0)


@pytest.mark.parametrize("name", ["num_kv_heads", "head_dim", "block_len", "num_layers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, None])
def test_sizes_are_positive_integers(name: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=f"`{name}` must be a positive integer; got"):
        BlockLayout(**{"num_kv_heads": 2, "head_dim": 64, name: value})


@pytest.mark.parametrize(("name", "served", "value", "nearest"), [("head_dim", HEAD_DIMS, 80, 64), ("block_len", BLOCK_LENS, 100, 128)])
def test_unserved_sizes_name_the_nearest(name: str, served: tuple[int, ...], value: int, nearest: int) -> None:
    with pytest.raises(UnsupportedError, match=f"got {value}. The nearest is {nearest}"):
        BlockLayout(**{"num_kv_heads": 2, "head_dim": 64, name: value})
    for good in served:
        BlockLayout(**{"num_kv_heads": 2, "head_dim": 64, name: good})


@pytest.mark.parametrize(
    ("keywords", "text"), [({"dtype": "float32"}, "`dtype`"), ({"kv_dtype": "fp8"}, "`kv_dtype`"), ({"kv_dtype": "bfloat16"}, "16-bit")]
)
def test_dtypes(keywords: dict[str, str], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        BlockLayout(2, 64, **keywords)  # type: ignore[arg-type]


def test_a_block_of_2_gib_is_refused() -> None:
    with pytest.raises(ArgumentError, match="smaller than 2 GiB"):
        BlockLayout(64, 256, 256, num_layers=128)
