"""Calls from several threads, on several streams and GPUs: each gets its own result, whatever the others do."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import pagedattn as pa

pytestmark = pytest.mark.cuda

LENGTHS = [1500, 17, 800, 64]


class Setup:
    """A filled cache of two layers on a GPU, the batch that asks for each sequence's last token, and queries."""

    def __init__(self, device: str = "cuda", seed: int = 0) -> None:
        import cupy

        self.cupy, rng = cupy, np.random.default_rng(seed)
        self.cache = pa.KVCache(64, num_kv_heads=2, head_dim=64, block_len=64, num_layers=2, device=device)
        self.sequences = [self.cache.new_sequence() for _ in LENGTHS]
        prompt = self.cache.extend(self.sequences, LENGTHS)
        for layer in range(2):
            k, v = (self.array(rng, prompt.num_tokens, 2) for _ in "kv")
            pa.append(k, v, self.cache, prompt, layer=layer)
        self.batch = self.cache.batch(self.sequences)
        self.queries = [self.array(rng, len(LENGTHS), 8) for _ in range(4)]
        self.expected = [self.attend(q, layer=i % 2) for i, q in enumerate(self.queries)]

    def array(self, rng: np.random.Generator, tokens: int, heads: int) -> Any:
        return self.cache.device.asarray(rng.standard_normal((tokens, heads, 64)).astype(np.float16))

    def attend(self, q: Any, **keywords: Any) -> Any:
        result = pa.paged_attention(q, self.cache, self.batch, **keywords)
        with self.cupy.cuda.Device(self.cache.device.index) as device:
            device.synchronize()
        return self.cache.device.to_host(result).astype(np.float32)

    def assert_right(self, found: Any, i: int) -> None:
        np.testing.assert_allclose(self.cache.device.to_host(found).astype(np.float32), self.expected[i], rtol=0, atol=2e-3)


def test_threads_with_streams_of_their_own() -> None:
    setup = Setup()
    cupy, failures = setup.cupy, []

    def work(i: int) -> None:
        try:
            with cupy.cuda.Stream(non_blocking=True) as stream:
                for _ in range(50):
                    out = cupy.full_like(setup.queries[i], np.nan)
                    pa.paged_attention(setup.queries[i], setup.cache, setup.batch, out=out, layer=i % 2)
                    stream.synchronize()
                    setup.assert_right(out, i)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []


def test_the_first_thing_that_a_thread_does_on_the_gpu() -> None:
    setup = Setup()
    out, failures = setup.cupy.full_like(setup.queries[0], np.nan), []

    def work() -> None:
        try:
            pa.paged_attention(setup.queries[0], setup.cache, setup.batch, out=out)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == []
    setup.cupy.cuda.Device().synchronize()
    setup.assert_right(out, 0)


def test_a_stream_that_is_not_the_current_one() -> None:
    """The workspace and the result are of that stream: the current one is kept busy, and nothing waits for it."""
    setup = Setup()
    cupy = setup.cupy
    for i in range(4):
        stream = cupy.cuda.Stream(non_blocking=True)
        busy = cupy.ones((4096, 4096), np.float32)
        for _ in range(20):
            busy = busy @ busy
        out = pa.paged_attention(setup.queries[i], setup.cache, setup.batch, layer=i % 2, stream=stream)
        stream.synchronize()
        with stream:
            setup.assert_right(out, i)
    cupy.cuda.Device().synchronize()


def test_another_gpu_than_the_current_one() -> None:
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one GPU")
    here, there = Setup("cuda:0"), Setup("cuda:1", seed=1)
    with cupy.cuda.Device(0), cupy.cuda.Stream(non_blocking=True) as stream:
        for _ in range(2):
            for setup in (here, there):
                out = pa.paged_attention(setup.queries[0], setup.cache, setup.batch)
                stream.synchronize()
                cupy.cuda.Device(1).synchronize()
                setup.assert_right(out, 0)
        assert cupy.cuda.Device().id == 0
