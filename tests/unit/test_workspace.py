"""workspace_bytes is a bound for every batch up to its sizes, and a call takes the workspace that it is given, or refuses it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import arch as archs
from pagedattn import dispatch, workspace
from pagedattn.problem import Problem
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec
from pagedattn.values import splits
from tests.attention import test_attention
from tests.attention.cases import Case
from tests.attention.world import cache_of, make

SIZES: dict[str, Any] = {"batch_size": 8, "num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "max_seqlen_k": 20000, "max_seqlen_q": 3000}


class Gpu:
    """What dispatch asks of a device."""

    def __init__(self, sm_count: int, arch: str = "sm_90") -> None:
        self.arch = self.source = archs.parse(arch)
        self.sm_count, self.model = sm_count, ""

    def address(self, x: Any) -> int:
        return 0


@pytest.mark.parametrize("kv_dtype", [None, "int4"])
@pytest.mark.parametrize("num_splits", [None, 1, 7, "fixed:512"])
@pytest.mark.parametrize("sm_count", [4, 132])
def test_it_is_a_bound_that_is_reached(sm_count: int, num_splits: int | str | None, kv_dtype: str | None) -> None:
    rng, worst = np.random.default_rng(0), 0
    bound = pa.workspace_bytes(**SIZES, num_splits=num_splits, kv_dtype=kv_dtype, arch="sm_90", sm_count=sm_count)
    layout = pa.BlockLayout(8, 128, kv_dtype=kv_dtype)
    cuts = 0 if num_splits is None else splits(num_splits)
    for _ in range(300):
        size = int(rng.integers(1, 9))
        longest = int(rng.choice([1, 2, 16, 100, 3000]))
        seqlens_q = rng.integers(1, longest + 1, size)
        seqlens_k = np.minimum(seqlens_q + rng.integers(0, 20000, size), 20000)
        if not rng.integers(5):
            seqlens_k[0] = 20000
        batch = pa.Batch(np.zeros((size, 313), np.int32), seqlens_q, seqlens_k, device="cpu")
        q = np.broadcast_to(np.float16(0), (batch.num_tokens, 32, 128))
        problem = Problem("attention", layout, None, 0, batch, q=q, out=q, num_splits=cuts)
        launches = dispatch.select(problem, Gpu(sm_count))  # type: ignore[arg-type]
        room, counters = workspace.needed(launches)
        assert counters <= workspace.MOST_COUNTERS
        worst = max(worst, workspace.COUNTER_BYTES + room)
        workspace.require(bound, launches)
    assert bound * 0.8 <= worst <= bound
    with pytest.raises(pa.ArgumentError, match=f"`workspace` must have at least .* bytes for this call.*got {workspace.COUNTER_BYTES - 1}"):
        workspace.require(workspace.COUNTER_BYTES - 1, dispatch.select(problem_with_one_token(layout, cuts), Gpu(sm_count)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("kv_dtype", "tile"), [(None, 16), ("int4", 32)])
def test_every_group_has_its_place(kv_dtype: str | None, tile: int) -> None:
    """As many places as groups that a sequence of some length, or what a window leaves of it, can have; reached by the longest."""
    spec, rng = KernelSpec("decode", kv_dtype=kv_dtype, splits="cut"), np.random.default_rng(1)
    most = spec.group_keys // tile
    for cuts in (1, 3, 64, 1024, *(-tile * n for n in (1, 3, 5, 16, 31, 32, 33, 40, 64, 1000))):
        for longest in (1, 17, 500, 512, 513, 5000, 40001):
            found = []
            for length in (longest, *rng.integers(1, longest + 1, 20).tolist()):
                for low in (0, int(rng.integers(0, length))):
                    first, end = low // tile, -(-length // tile)
                    cut = -(-(end - first) // cuts) if cuts > 0 else -cuts // tile
                    origin = first if cuts > 0 else 0
                    found.append(len({((t - origin) // cut, (t - origin) % cut // most) for t in range(first, end)}))
            assert max(found) <= spec.group_places(cuts, longest)
            assert cuts > 0 or found[0] == spec.group_places(cuts, longest)


def problem_with_one_token(layout: pa.BlockLayout, num_splits: int) -> Problem:
    batch = pa.Batch(np.zeros((1, 313), np.int32), [1], [20000], device="cpu")
    q = np.broadcast_to(np.float16(0), (1, 32, 128))
    return Problem("attention", layout, None, 0, batch, q=q, out=q, num_splits=num_splits)


def test_too_many_segments() -> None:
    layout, size = pa.BlockLayout(8, 128), 140_000
    batch = pa.Batch(np.zeros((size, 1), np.int32), [1] * size, [1] * size, device="cpu")
    q = np.broadcast_to(np.float16(0), (size, 32, 128))
    launches = dispatch.select(Problem("attention", layout, None, 0, batch, q=q, out=q, num_splits=1), Gpu(132))  # type: ignore[arg-type]
    with pytest.raises(pa.ArgumentError, match=r"at most 1048576 zeroed words.* wants 1120000"):
        workspace.require(1 << 40, launches)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive integer; got 0"),
        ({"num_heads": 30}, "`num_heads` must be a multiple of num_kv_heads, 8; got 30"),
        ({"num_splits": True}, "`num_splits`"),
        ({"num_splits": "fixed:24"}, "`num_splits` must be None, .* 'fixed:N' with N a multiple of 16.*got 'fixed:24'"),
        ({"num_splits": "fixed:16", "kv_dtype": "int8"}, "N a multiple of 32"),
        ({"num_splits": "fixed:16", "arch": "sm_70"}, "N a multiple of 32"),
        ({"batch_size": np.array([1, 2])}, "`batch_size` must be a positive integer"),
        ({"sm_count": 1.5}, "`sm_count`"),
        ({"arch": "sm_0"}, "sm_0"),
        ({"head_dim": 100}, "`head_dim`"),
        ({"num_kv_heads": 0}, "`num_kv_heads`"),
    ],
)
def test_sizes_are_checked(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(pa.PagedAttnError, match=text):
        pa.workspace_bytes(**{**SIZES, **changes})


@pytest.mark.parametrize("device", ["cpu", "interpreter"])
@pytest.mark.parametrize("num_splits", [None, 3, "fixed:32"])
def test_a_call_uses_what_it_is_given(device: str, num_splits: int | str | None) -> None:
    """A workspace of NaN behind zeroed words, of exactly the size; the words are zero again after it."""
    keywords = {} if num_splits is None else {"num_splits": num_splits}
    case = Case("workspace", "", ((1, 200), (1, 1), (1, 40)), head_dim=64, num_heads=4, num_kv_heads=1, block_len=16, keywords=keywords)
    world = make(case)
    cache = cache_of(world, device)
    batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device=device)
    sizes = {"batch_size": 3, "num_heads": 4, "num_kv_heads": 1, "head_dim": 64, "max_seqlen_k": 200}
    size = pa.workspace_bytes(**sizes, num_splits=num_splits, arch="sm_80", sm_count=getattr(cache.device, "sm_count", 1))
    room = cache.device.zeros((size,), np.uint8)
    room[workspace.COUNTER_BYTES :] = 0xFF
    q, lse = cache.device.asarray(world.q), cache.device.asarray(np.full((3, 4), np.nan, np.float32))
    for _ in range(2):
        out, back = pa.paged_attention(q, cache, batch, workspace=room, lse=lse, return_lse=True, **keywords)
        assert back is lse
        test_attention.compare(world, cache.device.to_host(out), cache.device.to_host(lse))
        assert not room[: workspace.COUNTER_BYTES].any()
    with pytest.raises(pa.ArgumentError, match=f"`workspace` must have at least {size} bytes"):
        pa.paged_attention(q, cache, batch, workspace=room[:-16], **keywords)


def test_there_is_room_for_what_ctas_send() -> None:
    """One piece a CTA, on GPUs of more multiprocessors than there are."""
    specs = [spec for spec in shipped() if spec.op == "decode" and spec.splits == "flat"]
    assert max(spec.sent_words for spec in specs) == 16 * (256 + 2)
    for spec in specs:
        assert 208 * (spec.min_ctas or 1) * spec.sent_words <= workspace.MOST_COUNTERS, spec.name


def test_pieces_of_zeros_arrive() -> None:
    """A word that has not arrived is zero, so that zeros must be sent as something else; their sums are zeros again."""
    case = Case("zeros", "", ((1, 700), (1, 90)), head_dim=64, num_heads=4, num_kv_heads=1, block_len=16)
    world = make(case)
    world.pool[:] = 0
    cache = cache_of(world, "interpreter")
    batch = pa.Batch(world.table, world.seqlens_q, world.seqlens_k, device="interpreter")
    out, lse = pa.paged_attention(cache.device.asarray(world.q), cache, batch, return_lse=True)
    assert not cache.device.to_host(out).any()
    np.testing.assert_allclose(cache.device.to_host(lse), np.log([[700.0] * 4, [90.0] * 4]), rtol=1e-6)


def test_too_small_a_workspace_is_refused_before_anything_is_written() -> None:
    """On the CPU as on a GPU, which calls for more; with everything that a call can ask."""
    cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, kv_dtype="int8", device="cpu")
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 1])
    cache.pool[...] = 7
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((21, heads, 64)).astype(np.float16) for heads in (4, 2, 2))
    asked: dict[str, Any] = {"rope": pa.Rope(base=100.0), "alibi_slopes": np.ones(4, np.float32), "softcap": 9.0, "q_bias": q[0]}
    for keywords in ({}, asked):
        with pytest.raises(pa.ArgumentError, match=r"`workspace` must have at least .* bytes for this call.*got 16"):
            pa.paged_attention(q, cache, batch, k=k, v=v, num_splits=2, workspace=np.zeros(16, np.uint8), **keywords)
        assert (cache.pool == 7).all()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "workspace-list": ({"workspace": [0]}, "`workspace` must be an array"),
    "workspace-dtype": ({"workspace": np.zeros(4, np.float32)}, "`workspace` must be uint8 of one dimension"),
    "workspace-rank": ({"workspace": np.zeros((4, 4), np.uint8)}, "`workspace` must be uint8 of one dimension"),
    "workspace-odd": ({"workspace": np.zeros(1 << 23, np.uint8)[1:]}, "`workspace` must begin at a multiple of 16 bytes"),
    "stream": ({"stream": "x"}, "`stream` must be an address, a CuPy or PyTorch stream"),
    "workspace-strided": ({"workspace": np.zeros(8, np.uint8)[::2]}, "`workspace` must be uint8 of one dimension, contiguous"),
    "lse-shape": ({"lse": np.zeros((2, 4), np.float32)}, r"`lse` must be float32 \(1, 4\)"),
    "lse-dtype": ({"lse": np.zeros((1, 4))}, "`lse` must be float32"),
    "lse-strided": ({"lse": np.zeros((1, 8), np.float32)[:, ::2]}, "`lse` must be float32 .*contiguous"),
    "lse-read-only": ({"lse": np.broadcast_to(np.float32(0), (1, 4)).copy()}, "`lse` must be writable"),
}
WRONG["lse-read-only"][0]["lse"].flags.writeable = False


@pytest.mark.parametrize("device", ["cpu", "interpreter"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_ones_are_refused(name: str, device: str) -> None:
    changes, text = WRONG[name]
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence()], [1])
    cache.pool[...] = 7
    q, k = np.ones((1, 4, 64), np.float16), np.ones((1, 1, 64), np.float16)
    with pytest.raises(pa.ArgumentError, match=text):
        pa.paged_attention(q, cache, batch, k=k, v=k, **changes)
    assert (cache.pool == 7).all()
