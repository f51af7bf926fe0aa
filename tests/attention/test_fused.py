"""A decode launch that writes the new rows: the bytes of the pool, the output and the log-sum-exp are those of append and decode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import dispatch, dtypes
from pagedattn.devices.base import Device
from pagedattn.shipped import shipped
from tests.attention.cases import DTYPES, HEAD_DIMS
from tests.attention.rows import mixture
from tests.attention.world import NAN_BYTE, scattered

INTERPRETER = "interpreter:sm_80"
# Alone, last of a tile, first of a tile and of a block; and sequences without a query
LENGTHS = (1, 2, 16, 17, 33, 64, 65, 129, 130, 257, 1000)


@dataclass(frozen=True)
class Step:
    """A decode step and what it should try.

    Attributes
    ----------
    lengths : tuple of int
        Tokens of each sequence, the new one included; below 0: as many, and none of them new.
    odd : bool
        New rows of every kind that a quantiser knows, NaN and infinities among them.
    finished : tuple of int
        Sequences to skip.
    strided : bool
        q, k and v are views of one buffer.
    """

    id: str
    lengths: tuple[int, ...] = LENGTHS
    group: int = 4
    num_kv_heads: int = 2
    head_dim: int = 128
    block_len: int = 16
    dtype: str = "float16"
    kv_dtype: str | None = None
    odd: bool = False
    finished: tuple[int, ...] = ()
    strided: bool = False
    sinks: bool = False
    alibi: bool = False
    keywords: dict[str, Any] = field(default_factory=dict)


def small() -> list[Step]:
    """Each kernel of sm_80 once."""
    return [
        Step(
            s.name,
            (1, 17, 34),
            s.heads or 0,
            1,
            s.head_dim,
            dtype=s.dtype,
            kv_dtype=s.kv_dtype if s.quantised else None,
            keywords={"softcap": 20.0} if s.general else {},
        )
        for s in shipped(["sm_80"], ops=["decode"])
        if s.fused
    ]


def options(lengths: tuple[int, ...], kv_dtype: str | None) -> list[Step]:
    """What else may meet a new row."""
    common: dict[str, Any] = {"lengths": lengths, "kv_dtype": kv_dtype}
    name = kv_dtype or "16bit"
    return [
        Step(f"odd-rows-{name}", odd=True, **common),
        Step(f"window1-{name}", keywords={"window_size": 1}, **common),
        Step(f"window20-sinks-{name}", keywords={"window_size": 20}, sinks=True, **common),
        Step(f"softcap-alibi-{name}", keywords={"softcap": 10.0, "causal": False}, alibi=True, **common),
        Step(f"finished-{name}", finished=(0, 2), **common),
        Step(f"strided-{name}", strided=True, block_len=64, **common),
        Step(f"no-queries-{name}", **{**common, "lengths": (-5, *lengths, -40, 0, 3)}),
    ]


CASES = [
    *((step, INTERPRETER) for step in small()),
    *((step, INTERPRETER) for kv_dtype in (None, "int4") for step in options((1, 17, 48), kv_dtype)),
    *((step, "cuda") for kv_dtype in (None, "int8", "int4") for step in options(LENGTHS, kv_dtype)),
    *(
        (Step(f"d{dim}-{dtype}-{kv_dtype}-b{block_len}", head_dim=dim, dtype=dtype, kv_dtype=kv_dtype, block_len=block_len), "cuda")
        for dim in HEAD_DIMS
        for dtype in DTYPES
        for kv_dtype in (None, "int8", "int4")
        for block_len in (16, 64)
    ),
    *(
        (Step(f"group{group}-d{dim}-{kv_dtype}", group=group, head_dim=dim, kv_dtype=kv_dtype), "cuda")
        for dim in (64, 128)
        for group in (1, 8, 16)
        for kv_dtype in (None, "int8", "int4")
    ),
    *(
        (Step(f"many-{kv_dtype}", lengths, 2, 8, 64, kv_dtype=kv_dtype), device)  # several segments a warp
        for kv_dtype in (None, "int8", "int4")
        for lengths, device in (((5000, *(1 + i % 37 for i in range(150))), "cuda"), ((150, 1, 2, 1), INTERPRETER))
    ),
]


@pytest.mark.parametrize(
    ("step", "device"),
    [pytest.param(*case, id=f"{case[0].id}-{case[1]}", marks=[pytest.mark.cuda] if case[1] == "cuda" else []) for case in CASES],
)
def test_one_launch_does_what_two_do(step: Step, device: str) -> None:
    where = pa.devices.get(device)
    expected, found = (run(step, where, unshared) for unshared in (False, True))
    for name, one, two in zip(("the pool", "out", "lse"), found, expected, strict=True):
        np.testing.assert_array_equal(one, two, name)


def run(step: Step, where: Device, unshared: bool) -> list[np.ndarray]:
    """The bits of the pool, of out and of lse after a step over a pool of old rows, NaN elsewhere."""
    rng = np.random.default_rng(3)
    total, new = np.abs(step.lengths), np.array([n > 0 for n in step.lengths], np.int64)
    table, num_blocks = scattered(rng, total, step.block_len)
    shape = {"num_kv_heads": step.num_kv_heads, "head_dim": step.head_dim, "block_len": step.block_len, "num_layers": 2}
    shape |= {"dtype": step.dtype, "kv_dtype": step.kv_dtype}
    pool = np.full((num_blocks, pa.BlockLayout(**shape).block_bytes), NAN_BYTE, np.uint8)  # type: ignore[arg-type]
    cache = pa.KVCache(num_blocks, **shape, device=where, pool=where.asarray(pool))  # type: ignore[arg-type]
    element = dtypes.of(step.dtype).numpy

    def rows(tokens: int, heads: int, odd: bool = False) -> np.ndarray:
        if odd:
            return mixture(rng, tokens * heads, step.head_dim, step.dtype).view(element).reshape(tokens, heads, -1)
        return rng.standard_normal((tokens, heads, step.head_dim)).astype(np.float32).astype(element)

    old = total - new
    k, v = (where.asarray(rows(int(old.sum()), step.num_kv_heads)) for _ in "kv")
    pa.append(k, v, cache, pa.Batch(table, old, old, device=where), layer=1)
    tokens, heads = int(new.sum()), step.group * step.num_kv_heads
    given = [rows(tokens, heads), rows(tokens, step.num_kv_heads, step.odd), rows(tokens, step.num_kv_heads, step.odd)]
    if step.strided:
        buffer = where.asarray(np.concatenate(given, axis=1))
        q, k, v = buffer[:, :heads], buffer[:, heads : heads + step.num_kv_heads], buffer[:, heads + step.num_kv_heads :]
    else:
        q, k, v = (where.asarray(x) for x in given)
    finished = np.isin(np.arange(len(total)), step.finished) if step.finished else None
    batch = pa.Batch(table, new, total, finished=finished, unshared=unshared, device=where)
    keywords: dict[str, Any] = {**step.keywords, "layer": 1, "k": k, "v": v}
    if step.sinks:
        keywords["sinks"] = where.asarray(np.linspace(-2, 3, heads, dtype=np.float32))
    if step.alibi:
        keywords["alibi_slopes"] = where.asarray(np.linspace(0.01, 0.5, heads, dtype=np.float32))
    launches = [s.spec for s in pa.explain(q, cache, batch, **keywords).steps]
    assert [(s.op, s.fused) for s in launches if s] == ([("decode", True)] if unshared else [("append", False), ("decode", False)])
    out, lse = pa.paged_attention(q, cache, batch, return_lse=True, **keywords)
    return [where.to_host(cache.pool), where.to_host(out).view(np.uint16), where.to_host(lse).view(np.uint32)]


def test_small_steps_run_every_fused_kernel() -> None:
    """What `small` asks for is what dispatch then takes."""
    fused = [s for s in shipped(["sm_80"], ops=["decode"]) if s.fused]
    assert len(fused) > 40
    where: Any = pa.devices.get(INTERPRETER)
    for s in fused:
        layout = pa.BlockLayout(1, s.head_dim, 16, 1, s.dtype, str(s.kv_dtype) if s.quantised else None)
        batch = pa.Batch([[0]], [1], [1], unshared=True, device=INTERPRETER)
        assert dispatch.plan_decode(where, layout, s.heads or 0, batch, 0, adjusted=s.general, fused=True)[0] == s


def test_rows_that_another_sequence_reads_take_two_launches() -> None:
    """The same blocks in two rows of the table, one query each at its own length: the second sees what the first appends."""
    device = INTERPRETER
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=device)
    rng = np.random.default_rng(0)
    k, v = rng.standard_normal((2, 18, 1, 64)).astype(np.float16)
    q = rng.standard_normal((2, 4, 64)).astype(np.float16)
    pa.append(k[:16], v[:16], cache, pa.Batch([[2, 1]], [16], [16], device=device))
    twice = pa.Batch([[2, 1], [2, 1]], [1, 1], [17, 18], device=device)
    out = pa.paged_attention(q, cache, twice, k=k[16:], v=v[16:])
    at_once = pa.paged_attention(q, cache, pa.Batch([[2, 1]], [2], [18], device=device))
    np.testing.assert_allclose(out.astype(np.float32), at_once.astype(np.float32), rtol=0, atol=2e-3)
