"""`pagedattn warmup`: afterwards calls of a shape compile nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import pagedattn
from pagedattn import build

SHAPE = ("--num-heads", "32", "--num-kv-heads", "8", "--head-dim", "64")


def test_warmup(home: Path, run) -> None:
    assert run("warmup", *SHAPE, "--device", "cpu") == (0, "cpu runs no kernels: nothing to warm up\n", "")
    assert not home.exists()
    status, out, _ = run("warmup", *SHAPE, "--device", "interpreter", "--kv-dtype", "int8")
    *kernels, last = out.splitlines()
    assert (status, last, len(kernels)) == (0, "14 kernels ready on interpreter:sm_80", 14)
    assert all("compiled in" in line for line in kernels)
    build.forget()
    report = json.loads(run("warmup", *SHAPE, "--device", "interpreter", "--kv-dtype", "int8", "--json")[1])
    assert [k["origin"] for k in report["kernels"]] == ["store"] * 14
    ops = Counter(k["name"].partition("_")[0] for k in report["kernels"])
    assert ops == {"append": 1, "decode": 6, "gather": 1, "merge": 1, "prefill": 4, "ranges": 1}
    assert Counter("general" in k["name"] for k in report["kernels"]) == {False: 9, True: 5}


def test_what_several_packs_of_heads_ask_for(home: Path, run) -> None:
    """Their decode kernels are all general, and none of them writes new rows."""
    shape = ("--num-heads", "17", "--num-kv-heads", "1", "--head-dim", "64", "--device", "interpreter", "--json")
    names = [k["name"] for k in json.loads(run("warmup", *shape)[1])["kernels"]]
    assert sorted(name.split("_")[7:9] for name in names if name.startswith("decode")) == [["cut", "general"], ["flat", "general"]]


@pytest.mark.cuda
def test_warmup_on_a_gpu(home: Path, run) -> None:
    """Afterwards nothing is compiled: the kernels that calls of this shape ask for are loaded."""
    status, out, _ = run("warmup", *SHAPE)
    assert (status, "14 kernels ready on cuda:" in out) == (0, True)
    device = pagedattn.devices.get("cuda")
    before = len(device._modules)
    cache = pagedattn.KVCache(8, num_kv_heads=8, head_dim=64, block_len=16, device=device)
    batch = cache.extend([cache.new_sequence(), cache.new_sequence()], [20, 1])
    q, k = device.zeros((21, 32, 64), "float16"), device.zeros((21, 8, 64), "float16")
    for splits in (None, 4):
        pagedattn.paged_attention(q, cache, batch, k=k, v=k, num_splits=splits)
    pagedattn.gather(cache, batch)
    assert len(device._modules) == before
