"""One long sequence decoded by one GPU and by several that share its keys: kernel, gather and merge, checked against each other first.

python -m benchmarks.context_parallel --ranks 2 --tokens 1048576 [--backend torch|cupy] [--kv-dtype int8] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import cupy as cp

import pagedattn as pa
from benchmarks import measure
from pagedattn.distributed import all_merge

HEADS, KV_HEADS, DIM, BLOCK = 32, 8, 128, 64
CHUNK = 1 << 15
PORT = 29577


class Share:
    """One rank's keys of the sequence, and a decode step over them."""

    def __init__(self, rank: int, ranks: int, device: int, tokens: int, kv_dtype: str | None) -> None:
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

    def step(self, _: int = 0) -> None:
        pa.paged_attention(self.q, self.cache, self.batch, out=self.out, lse=self.lse)


def work(rank: int, options: argparse.Namespace) -> None:
    with cp.cuda.Device(rank):
        communicator = _join(rank, options)
        sizes = {"tokens": options.tokens, "kv_dtype": options.kv_dtype}
        share = Share(rank, options.ranks, rank, **sizes)
        share.step()
        merged, _ = all_merge(share.out, share.lse, communicator)
        found: dict[str, float] = {}
        if rank == 0:
            whole = Share(0, 1, rank, **sizes)
            whole.step()
            found["difference"] = float(cp.abs(merged.astype(cp.float32) - whole.out.astype(cp.float32)).max())
            found["size"] = float(cp.abs(whole.out.astype(cp.float32)).mean())
            assert found["difference"] <= 0.05 * found["size"], found
            found["one GPU"] = measure.graph(whole.step, calls=8)
        all_merge(share.out, share.lse, communicator)  # the others wait for rank 0 here
        found["kernel of a rank"] = measure.graph(share.step, calls=8)
        all_merge(share.out, share.lse, communicator)
        found["gather and merge"] = measure.events(lambda _: all_merge(share.out, share.lse, communicator), repeat=200, warmup=50)

        def whole_step(_: int) -> None:
            share.step()
            all_merge(share.out, share.lse, communicator)

        found["step"] = measure.events(whole_step, repeat=200, warmup=50)
        all_merge(share.out, share.lse, communicator)
        if rank == 0:
            _report(found, options)
        _leave(communicator, options)


def _join(rank: int, options: argparse.Namespace) -> Any:
    if options.backend == "cupy":
        from cupyx.distributed import init_process_group

        return init_process_group(options.ranks, rank, port=PORT)
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=options.ranks)
    return None


def _leave(communicator: Any, options: argparse.Namespace) -> None:
    if options.backend == "cupy":
        communicator.barrier()
        communicator.stop()
    else:
        sys.modules["torch"].distributed.destroy_process_group()


def _report(found: dict[str, float], options: argparse.Namespace) -> None:
    one, step = found["one GPU"], found["step"]
    print(f"one sequence of {options.tokens} tokens, {HEADS}/{KV_HEADS} heads x {DIM}, {options.kv_dtype or 'float16'}, {options.backend}")
    print(f"  largest difference {found['difference']:.1e} where values are {found['size']:.1e} on average")
    print(f"  one GPU {one:.0f} us; {options.ranks} GPUs: kernel {found['kernel of a rank']:.0f} us", end="")
    print(f", gather and merge {found['gather and merge']:.0f} us, step {step:.0f} us: {one / step:.2f} times as fast")
    if options.json:
        options.json.write_text(json.dumps({**vars(options), "json": str(options.json), "microseconds": found}, indent=1), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--backend", choices=("torch", "cupy"), default="torch")
    parser.add_argument("--kv-dtype", choices=("int8", "int4"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(rank, options)) for rank in range(options.ranks)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return int(any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
