"""all_merge and AllMerge through real groups of torch.distributed, a process a rank: gloo on the CPU, NCCL between two GPUs."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pagedattn as pa
from pagedattn.distributed import AllMerge, all_merge

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
RANKS = 2
KINDS = [("float16", 3), ("bfloat16", 3), ("float16", 40), ("float16", 3), ("bfloat16", 0)]
SECONDS = 240


def parts(dtype: str, tokens: int, seed: int, device: str) -> list[tuple[Any, Any]]:
    """(out, lse) of each rank, the same in all processes."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for rank in range(RANKS):
        out = torch.randn((tokens, 4, 64), generator=generator).to(getattr(torch, dtype))
        lse = torch.randn((tokens, 4), generator=generator)
        if rank and tokens:
            out[0], lse[0] = 0, -torch.inf  # a rank without keys
        made.append((out.to(device), lse.to(device)))
    return made


def expect(answer: Any, given: list[tuple[Any, Any]]) -> None:
    for found, right in zip(answer, pa.merge([x for x, _ in given], [x for _, x in given]), strict=True):
        assert type(found) is torch.Tensor
        assert found.dtype == right.dtype
        assert found.device == right.device
        assert found.shape == right.shape
        if found.numel():
            assert torch.equal(found.view(torch.uint8), right.view(torch.uint8))


def functions(rank: int, device: str) -> None:
    """Kinds of arrays in turn, twice; the earlier results stay as they are."""
    rounds = [parts(*kind, i, device) for i, kind in enumerate(KINDS * 2)]
    for _ in range(2):
        answers = [all_merge(*given[rank]) for given in rounds]
        for answer, given in zip(answers, rounds, strict=True):
            expect(answer, given)


def objects(rank: int, device: str) -> None:
    for i, kind in enumerate(KINDS):
        merge = AllMerge(parts(*kind, 0, device)[rank][0])
        for seed in (i, i + 9):
            given = parts(*kind, seed, device)
            merge.out.copy_(given[rank][0])
            merge.lse.copy_(given[rank][1])
            expect(merge(), given)


def numpy_arrays(rank: int, device: str) -> None:
    given = [tuple(x.numpy() for x in pair) for pair in parts("float16", 3, 0, device)]
    for found, right in zip(all_merge(*given[rank]), pa.merge(*zip(*given, strict=True)), strict=True):
        assert type(found) is type(right)
        assert (found == right).all()


def streams(rank: int, device: str) -> None:
    """On a stream of its own, behind work that takes long: what is sent is what that leaves."""
    large = torch.randn((4096, 4096), device=device)
    side = torch.cuda.Stream()
    merge = AllMerge(parts("float16", 3, 0, device)[rank][0])
    for seed in range(3):
        given = parts("float16", 3, seed, device)
        out, lse = (torch.zeros_like(x) for x in given[rank])
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            for _ in range(8):
                large @ large
            for x, y in zip((out, lse, merge.out, merge.lse), given[rank] * 2, strict=True):
                x.copy_(y)
            answers = all_merge(out, lse), merge()
            for answer in answers:
                expect(answer, given)


def graphs(rank: int, device: str) -> None:
    """Captured with the attention before it, and replayed over other queries."""
    cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, device=device, cp=pa.ContextParallel(rank, RANKS))
    whole = pa.KVCache(16, num_kv_heads=2, head_dim=64, block_len=16, device=device)
    q, k, v = (torch.randn((150, heads, 64), generator=torch.Generator().manual_seed(heads)).half().to(device) for heads in (4, 2, 2))
    batches = []
    for each in (cache, whole):
        sequence = each.new_sequence()
        pa.append(k, v, each, each.extend([sequence], [150]))
        batches.append(each.batch([sequence]))
    now = q[:1].clone()
    merge = AllMerge(now)

    def work() -> None:
        pa.paged_attention(now, cache, batches[0], out=merge.out, lse=merge.lse)
        merge()

    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        work()
        with pytest.raises(pa.UnsupportedError, match="capture an AllMerge"):
            all_merge(merge.out, merge.lse)
    for i in range(4):
        now.copy_(q[i : i + 1])
        graph.replay()
        right = pa.paged_attention(now, whole, batches[1])
        torch.testing.assert_close(merge.out, right, rtol=3e-3, atol=1e-4)


def process(rank: int, folder: str, device: str, checks: list[Callable[[int, str], None]]) -> None:
    place = f"cuda:{rank}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(rank)
    distributed = torch.distributed
    distributed.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    for check in checks:
        check(rank, place)
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("device", "checks"),
    [
        ("cpu", [functions, objects, numpy_arrays]),
        pytest.param("cuda", [functions, objects, streams, graphs], marks=pytest.mark.cuda),
    ],
)
def test_processes(device: str, checks: list[Any], tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.device_count() < RANKS:
        pytest.skip(f"needs {RANKS} GPUs")
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=process, args=(rank, str(tmp_path), device, checks)) for rank in range(RANKS)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + SECONDS
    try:
        while any(worker.is_alive() for worker in workers) and not any(worker.exitcode for worker in workers):
            assert time.monotonic() < end, "the ranks wait for each other"
            time.sleep(0.05)
        assert [worker.exitcode or 0 for worker in workers] == [0] * RANKS
    finally:
        for worker in workers:
            worker.kill()
