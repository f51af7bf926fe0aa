"""One long sequence decoded by one GPU and by several that share its keys, checked against each other first.

python -m benchmarks.context_parallel [--ranks 2] [--tokens 1048576] [--backend torch cupy] [--kv-dtype float16 int8 int4] [--json FILE]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import sys
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cupy as cp

import pagedattn as pa
from benchmarks import measure
from benchmarks.tables import context_parallel_table
from pagedattn.distributed import AllMerge, all_merge

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 64
CHUNK = 1 << 15
PORT = 29577
STEPS = 16  # in a graph
HOST_CALLS = 40  # few enough for the driver's queue: the host never waits for the GPU


class Share:
    """One rank's keys of the sequence, and decode steps over them."""

    def __init__(self, rank: int, ranks: int, device: int, tokens: int, kv_dtype: str) -> None:
        part = pa.ContextParallel(rank, ranks)
        shape: dict[str, Any] = {"num_kv_heads": KV_HEADS, "head_dim": DIM, "block_len": BLOCK, "kv_dtype": kv_dtype}
        self.cache = pa.KVCache(-(-part.own(tokens) // BLOCK) + 1, **shape, device=f"cuda:{device}", cp=part)
        sequence = self.cache.new_sequence()
        for first in range(0, tokens, CHUNK):  # the same rows on every GPU
            count = min(CHUNK, tokens - first)
            rng = cp.random.default_rng(first)
            k, v = (rng.standard_normal((count, KV_HEADS, DIM), dtype=cp.float32).astype(cp.float16) for _ in "kv")
            pa.append(k, v, self.cache, self.cache.extend([sequence], [count]))
        self.q = cp.random.default_rng(1).standard_normal((1, HEADS, DIM), dtype=cp.float32).astype(cp.float16)
        self.batch = self.cache.batch([sequence])
        self.out, self.lse = cp.empty_like(self.q), cp.empty((1, HEADS), cp.float32)

    def attend(self, _: int = 0) -> None:
        pa.paged_attention(self.q, self.cache, self.batch, out=self.out, lse=self.lse)

    def attend_and_merge(self, communicator: Any) -> Any:
        self.attend()
        return all_merge(self.out, self.lse, communicator)[0]

    def attend_into(self, merge: AllMerge) -> Any:
        pa.paged_attention(self.q, self.cache, self.batch, out=merge.out, lse=merge.lse)
        return merge()[0]


def work(rank: int, options: argparse.Namespace, nccl_id: Any) -> None:
    """One rank's process; rank 0 writes down what it sees."""
    with cp.cuda.Device(rank):
        communicators = {name: _join(name, rank, options.ranks, nccl_id) for name in options.backend}
        runs = []
        for kv_dtype in options.kv_dtype:
            share = Share(rank, options.ranks, rank, options.tokens, kv_dtype)
            alone: dict[str, float] = {}
            whole: Any = None
            if rank == 0:
                all_keys = Share(0, 1, rank, options.tokens, kv_dtype)
                all_keys.attend()
                whole = all_keys.out.astype(cp.float32)
                alone["one GPU"] = measure.graph(all_keys.attend, calls=8)
                del all_keys
            alone["kernel of a rank"] = measure.graph(share.attend, calls=8)
            for backend, communicator in communicators.items():
                found = {"kv_dtype": kv_dtype, "backend": backend, "us": alone | _measured(share, backend, communicator, whole)}
                runs.append(found)
        if rank == 0:
            _report(runs, options)
        cp.cuda.Device().synchronize()
        _leave(communicators)


def _measured(share: Share, backend: str, communicator: Any, whole: Any) -> dict[str, float]:
    merge = AllMerge(share.q, communicator)

    def on_this_stream(_: int) -> None:
        """PyTorch gathers on its own current stream: that must be the one that is captured."""
        if backend == "torch":
            torch = sys.modules["torch"]
            with torch.cuda.stream(torch.cuda.ExternalStream(cp.cuda.get_current_stream().ptr)):
                share.attend_into(merge)
        else:
            share.attend_into(merge)

    def check(result: Any) -> None:
        if whole is not None:
            difference, size = float(cp.abs(result.astype(cp.float32) - whole).max()), float(cp.abs(whole).mean())
            assert difference <= 0.05 * size, f"{difference} where values are {size} on average"

    check(share.attend_and_merge(communicator))
    check(share.attend_into(merge))
    found = {"step, captured": measure.graph(on_this_stream, calls=STEPS)}
    check(merge.out)
    found["all_merge"] = measure.events(lambda _: all_merge(share.out, share.lse, communicator), repeat=200, warmup=50)
    found["AllMerge"] = measure.events(lambda _: merge(), repeat=200, warmup=50)
    found["all_merge, host"] = measure.host(lambda: all_merge(share.out, share.lse, communicator), calls=HOST_CALLS)
    found["AllMerge, host"] = measure.host(merge, calls=HOST_CALLS)
    found["step, all_merge"] = measure.events(lambda _: share.attend_and_merge(communicator), repeat=200, warmup=50)
    found["step, AllMerge"] = measure.events(lambda _: share.attend_into(merge), repeat=200, warmup=50)
    check(share.attend_into(merge))
    return found


def _join(backend: str, rank: int, ranks: int, nccl_id: Any) -> Any:
    if backend == "cupy":
        from cupy.cuda import nccl

        return nccl.NcclCommunicator(ranks, nccl_id, rank)
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=ranks)
    return None


def _leave(communicators: dict[str, Any]) -> None:
    if "torch" in communicators:
        sys.modules["torch"].distributed.destroy_process_group()
    if "cupy" in communicators:
        communicators["cupy"].destroy()


def _report(runs: list[dict[str, Any]], options: argparse.Namespace) -> None:
    sizes = {"num_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": DIM, "block_len": BLOCK}
    gpu = cp.cuda.runtime.getDeviceProperties(0)["name"].decode()
    results = {"gpu": gpu, "ranks": options.ranks, "tokens": options.tokens, **sizes, "runs": runs}
    for run in runs:
        print(f"{run['kv_dtype']}, {run['backend']}: " + ", ".join(f"{name} {us:.0f}" for name, us in run["us"].items()) + " us")
    print(context_parallel_table(results))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _nccl_id(options: argparse.Namespace) -> Any:
    """What CuPy's communicators meet by. What is missing here is said before any process starts."""
    try:
        count = cp.cuda.runtime.getDeviceCount()
    except cp.cuda.runtime.CUDARuntimeError as error:
        raise SystemExit(f"several GPUs and their driver are needed; CUDA says: {error}") from None
    if options.ranks < 2:
        raise SystemExit(f"--ranks must be 2 or more; got {options.ranks}.")
    if count < options.ranks:
        raise SystemExit(f"{options.ranks} ranks need as many GPUs; here are {count}. Pass --ranks.")
    if "torch" in options.backend and importlib.util.find_spec("torch") is None:
        raise SystemExit("PyTorch is not installed: pass --backend cupy.")
    if "cupy" not in options.backend:
        return None
    from cupy.cuda import nccl

    if not nccl.available:
        raise SystemExit("CuPy finds no NCCL (its warning says how to install it): pass --backend torch.")
    return nccl.get_unique_id()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--backend", choices=("torch", "cupy"), nargs="+", default=["torch"])
    parser.add_argument("--kv-dtype", choices=("float16", "int8", "int4"), nargs="+", default=["float16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    nccl_id = _nccl_id(options)
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(rank, options, nccl_id)) for rank in range(options.ranks)]
    for worker in workers:
        worker.start()
    left = list(workers)
    while left and not any(worker.exitcode for worker in workers):
        wait([worker.sentinel for worker in left])
        left = [worker for worker in left if worker.is_alive()]
    for worker in left:  # they wait for the one that failed
        worker.kill()
    return int(bool(left) or any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
