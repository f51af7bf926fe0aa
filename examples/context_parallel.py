"""One long sequence whose keys several GPUs share: each keeps every n-th token, and all get the whole result.

python examples/context_parallel.py --ranks 2               a process for each GPU; CuPy's NCCL gathers
torchrun --nproc-per-node 2 examples/context_parallel.py    the same through torch.distributed
python examples/context_parallel.py --ranks 3 --device cpu  threads in place of processes, on any machine
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any

import numpy as np

import pagedattn as pa
from pagedattn.devices import cuda
from pagedattn.distributed import all_merge

HEADS, KV_HEADS, DIM, BLOCK = 8, 2, 64, 16
PROMPT, STEPS = 1000, 5


def rows(step: int, tokens: int) -> list[np.ndarray[Any, Any]]:
    """q, k and v of a step: a model that runs on every rank gives the same to all."""
    rng = np.random.default_rng(step)
    return [rng.standard_normal((tokens, heads, DIM)).astype(np.float16) for heads in (HEADS, KV_HEADS, KV_HEADS)]


def generate(cp: pa.ContextParallel, communicator: Any, device: str) -> list[np.ndarray[Any, Any]]:
    """A prompt and some steps of decoding by one rank: nothing but `cp` and `all_merge` differs from a single GPU."""
    cache = pa.KVCache(-(-(PROMPT + STEPS) // BLOCK), num_kv_heads=KV_HEADS, head_dim=DIM, block_len=BLOCK, device=device, cp=cp)
    sequence, results = cache.new_sequence(), []
    for step in range(STEPS + 1):
        tokens = 1 if step else PROMPT
        q, k, v = (cache.device.asarray(x) for x in rows(step, tokens))
        batch = cache.extend([sequence], [tokens])  # counts all tokens, takes blocks for this rank's
        out, lse = pa.paged_attention(q, cache, batch, k=k, v=v)  # appends this rank's rows, attends to its keys
        out, lse = all_merge(out, lse, communicator)
        results.append(cache.device.to_host(out))
    return results


def difference(results: list[np.ndarray[Any, Any]], device: str) -> float:
    """The largest difference from a cache that holds every key."""
    whole = generate(pa.ContextParallel(0, 1), Threads(1), device)
    return max(float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max()) for a, b in zip(results, whole, strict=True))


class Threads:
    """What a communicator does, between threads: one for each rank."""

    def __init__(self, size: int) -> None:
        self.size, self.sent, self.barrier = size, [None] * size, threading.Barrier(size)
        self.rank = threading.local()

    def all_gather(self, mine: Any, everyone: Any, count: int) -> None:
        self.sent[getattr(self.rank, "number", 0)] = mine
        self.barrier.wait()
        for rank, part in enumerate(self.sent):
            everyone[rank] = part
        self.barrier.wait()

    def run(self, device: str) -> list[list[np.ndarray[Any, Any]]]:
        def work(rank: int) -> list[np.ndarray[Any, Any]]:
            self.rank.number = rank
            return generate(pa.ContextParallel(rank, self.size), self, device)

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))


def report(rank: int, results: list[np.ndarray[Any, Any]], device: str, how: str) -> None:
    if rank == 0:
        print(f"{PROMPT} tokens of prompt and {STEPS} of decoding {how}; within {difference(results, device):.1e} of a single cache")


def process(rank: int, size: int, nccl_id: Any) -> None:
    import cupy
    from cupy.cuda import nccl

    with cupy.cuda.Device(rank):
        communicator = nccl.NcclCommunicator(size, nccl_id, rank)
        report(rank, generate(pa.ContextParallel(rank, size), communicator, f"cuda:{rank}"), f"cuda:{rank}", f"on {size} GPUs, by CuPy")
        cupy.cuda.Device().synchronize()
        communicator.destroy()


def meeting_place(ranks: int) -> Any:
    """What the ranks' communicators find each other by; where something is missing, the program ends with what it is."""
    otherwise = "Run it with --device cpu: threads take the place of GPUs."
    if not cuda.usable():
        raise SystemExit(f"No GPU is usable here (`pagedattn doctor` says why). {otherwise}")
    import cupy
    from cupy.cuda import nccl

    count = cupy.cuda.runtime.getDeviceCount()
    if count < ranks:
        raise SystemExit(f"{ranks} ranks need as many GPUs; here are {count}. {otherwise}")
    if not nccl.available:
        raise SystemExit(
            "CuPy finds no NCCL, and its warning says how to install it. Or let PyTorch gather: torchrun examples/context_parallel.py."
        )
    return nccl.get_unique_id()


def torch_process() -> None:
    import torch
    import torch.distributed as dist

    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.device_count() <= local:
        raise SystemExit(f"each rank needs a GPU that PyTorch sees; here are {torch.cuda.device_count()}.")
    torch.cuda.set_device(local)
    dist.init_process_group("nccl")
    report(rank, generate(pa.ContextParallel(rank, size), None, f"cuda:{local}"), f"cuda:{local}", f"on {size} GPUs, by PyTorch")
    dist.destroy_process_group()


def main(ranks: int = 2, device: str = "cuda") -> None:
    if ranks < 1:
        raise SystemExit(f"--ranks must be 1 or more; got {ranks}.")
    if device == "cpu":
        answers = Threads(ranks).run(device)
        assert all(np.array_equal(a, b) for other in answers[1:] for a, b in zip(answers[0], other, strict=True))
        report(0, answers[0], device, f"on {ranks} threads")
        return
    spawn = multiprocessing.get_context("spawn")
    nccl_id = meeting_place(ranks)
    workers = [spawn.Process(target=process, args=(rank, ranks, nccl_id)) for rank in range(ranks)]
    for worker in workers:
        worker.start()
    left = list(workers)
    while left and not any(worker.exitcode for worker in workers):
        wait([worker.sentinel for worker in left])
        left = [worker for worker in left if worker.is_alive()]
    for worker in left:  # they wait for the one that has failed
        worker.kill()
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit(1)


if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        torch_process()
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--ranks", type=int, default=2)
        parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        main(**vars(parser.parse_args()))
