"""PyTorch's streams on a GPU: calls follow the current one, an explicit one of any kind is taken, and graphs of PyTorch's capture calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pagedattn as pa

pytestmark = pytest.mark.cuda
torch = pytest.importorskip("torch", reason="PyTorch is not installed")

LENGTHS = [1500, 17, 800, 64]


class Setup:
    """A filled cache, the batch that asks for each sequence's last token, two sets of queries and what they give."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.cache = pa.KVCache(64, num_kv_heads=2, head_dim=64, block_len=64, device="cuda")
        self.sequences = [self.cache.new_sequence() for _ in LENGTHS]
        prompt = self.cache.extend(self.sequences, LENGTHS)
        pa.append(*torch.randn((2, prompt.num_tokens, 2, 64), device="cuda").half(), self.cache, prompt)
        self.batch = self.cache.batch(self.sequences)
        self.queries = torch.randn((2, len(LENGTHS), 8, 64), device="cuda").half()
        self.expected = [pa.paged_attention(q, self.cache, self.batch).float() for q in self.queries]
        torch.cuda.synchronize()

    def assert_right(self, found: Any, i: int) -> None:
        np.testing.assert_allclose(found.float().cpu().numpy(), self.expected[i].cpu().numpy(), rtol=0, atol=2e-3)


def keep_busy(seconds: float = 0.05) -> None:
    """The current stream of PyTorch gets work for so long."""
    torch.cuda._sleep(int(seconds * 1e9))


def test_queries_that_are_still_being_made() -> None:
    """On a side stream: the call reads its queries after the work that makes them, and what follows reads the result after the call."""
    setup = Setup()
    for given in (False, True):
        with torch.cuda.stream(torch.cuda.Stream()):
            keep_busy()
            q = setup.queries[0] * 1
            out = pa.paged_attention(q, setup.cache, setup.batch, out=torch.full_like(q, float("nan")) if given else None)
            q.zero_()  # after the call has read it
            late = out * 1
            torch.cuda.current_stream().synchronize()
        setup.assert_right(late, 0)


def test_the_cache_between_pytorchs_work() -> None:
    """Batches, forks and gathers come after the appends of PyTorch's stream, and before its next calls."""
    with torch.cuda.stream(torch.cuda.Stream()):
        cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=64, device="cuda")
        sequence = cache.new_sequence()
        keep_busy()
        batch = cache.extend([sequence], [100])
        rows = torch.randn((2, 100, 2, 64), device="cuda").half()
        pa.append(*rows, cache, batch)
        twin = cache.fork(sequence)  # copies the block that the append is still to write
        found = [torch.from_dlpack(x) * 1 for x in pa.gather(cache, cache.batch([twin]))]
        mine = pa.gather(cache, cache.batch([twin]), out=tuple(torch.zeros_like(rows)))
        torch.cuda.current_stream().synchronize()
    for x, y, z in zip(found, mine, rows, strict=True):
        assert torch.equal(x, z)
        assert torch.equal(y, z)


@pytest.mark.parametrize("kind", ["torch", "cupy", "address"])
def test_an_explicit_stream(kind: str) -> None:
    """It alone: PyTorch's current stream stays busy, and nothing waits for it."""
    import cupy

    setup = Setup()
    makers: dict[str, Callable[[], Any]] = {
        "torch": torch.cuda.Stream,
        "cupy": lambda: cupy.cuda.Stream(non_blocking=True),
        "address": lambda: torch.cuda.Stream().cuda_stream,
    }
    stream = makers[kind]()
    out, other = torch.full_like(setup.queries[0], float("nan")), torch.cuda.Stream()
    pa.paged_attention(setup.queries[0], setup.cache, setup.batch, out=out, stream=stream)  # what is made once is made
    torch.cuda.synchronize()
    with torch.cuda.stream(other):
        keep_busy(0.5)
        pa.paged_attention(setup.queries[1], setup.cache, setup.batch, out=out, stream=stream)
        address = stream if kind == "address" else stream.ptr if kind == "cupy" else stream.cuda_stream
        torch.cuda.ExternalStream(address).synchronize()
        assert not other.query()
    setup.assert_right(out, 1)


def test_a_graph_of_pytorchs() -> None:
    """Captured on PyTorch's capturing stream, with results from its pool."""
    setup = Setup()
    q = setup.queries[0].clone()
    workspace = torch.zeros(
        pa.workspace_bytes(
            batch_size=4,
            num_heads=8,
            num_kv_heads=2,
            head_dim=64,
            max_seqlen_k=2048,
            arch=setup.cache.device.arch.name,
            sm_count=setup.cache.device.sm_count,
        ),
        dtype=torch.uint8,
        device="cuda",
    )
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        pa.paged_attention(q, setup.cache, setup.batch, workspace=workspace)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        out = pa.paged_attention(q, setup.cache, setup.batch, workspace=workspace) * 2
    for i in range(2):
        q.copy_(setup.queries[i])
        graph.replay()
        torch.cuda.synchronize()
        setup.assert_right(out / 2, i)


def test_merge_and_varlen_on_a_side_stream() -> None:
    rows = torch.randn((3, 40, 2, 64), device="cuda").half()
    expected = pa.varlen_attention(*rows, [0, 30, 40], [0, 30, 40], return_lse=True)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        keep_busy()
        late = rows * 1
        out, lse = pa.varlen_attention(*late, [0, 30, 40], [0, 30, 40], return_lse=True)
        merged, _ = pa.merge([out, out], [lse, lse])
        late.zero_()
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, expected[0])
    assert (merged - out).abs().max() < 2e-3
