"""The operators of pagedattn.torch: PyTorch's own checks of them, and graphs of torch.compile over a cache that grows."""

from __future__ import annotations

from typing import Any

import pytest

import pagedattn as pa

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of PyTorch's compiler, about itself

from torch import library  # noqa: E402
from torch._dynamo.testing import CompileCounterWithBackend  # noqa: E402

from pagedattn import torch as operators  # noqa: E402

ROPE = pa.Rope(base=1000.0)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


class Setup:
    """A cache of two layers and two sequences, prompts and tokens for it."""

    def __init__(self, device: str, dtype: Any = torch.float16, kv_dtype: str | None = None) -> None:
        torch.manual_seed(0)
        self.device, self.dtype, self.kv_dtype = device, dtype, kv_dtype
        self.steps = [[20, 3], [1, 1], [1, 1], [2, 1]]
        self.rows = [torch.randn((sum(new), 6, 64)).to(device, dtype) for new in self.steps]

    def run(self, model: Any) -> list[Any]:
        """What the model gives in each step, and the tokens in the cache after the last."""
        name = str(self.dtype).rpartition(".")[2]
        cache = pa.KVCache(
            8, num_kv_heads=1, head_dim=64, block_len=16, num_layers=2, dtype=name, kv_dtype=self.kv_dtype, device=self.device
        )
        sequences = [cache.new_sequence(), cache.new_sequence()]
        found = [model(x, operators.Step(cache, cache.extend(sequences, new), ROPE)) for x, new in zip(self.rows, self.steps, strict=True)]
        for layer in range(2):
            found += [cache.device.to_host(x) for x in pa.gather(cache, cache.batch(sequences), layer=layer)]
        return [x.float().cpu().numpy() if isinstance(x, torch.Tensor) else x.astype("float32") for x in found]


def model(x: Any, step: operators.Step) -> Any:
    """Two layers, one of which appends by itself; the second depends on what the first wrote."""
    operators.append(x[:, 4:5] * 2, x[:, 5:], step, v_bias=x[1, 5:])
    y = operators.paged_attention(x[:, :4], step, softcap=20.0, q_bias=x[0, :4]) + x[:, :4]
    sinks = x.new_zeros(4, dtype=torch.float32)
    y, lse = operators.paged_attention(y, step, k=y[:, :1], v=y[:, 1:2], layer=1, window_size=9, sinks=sinks, return_lse=True)
    return y + lse.to(y.dtype)[..., None]


def plain(x: Any, step: operators.Step) -> Any:
    """The same by pagedattn's own functions."""
    cache, batch = step.cache, step.batch
    pa.append(x[:, 4:5] * 2, x[:, 5:], cache, batch, rope=ROPE, v_bias=x[1, 5:])
    y = pa.paged_attention(x[:, :4], cache, batch, softcap=20.0, rope=ROPE, q_bias=x[0, :4]) + x[:, :4]
    sinks = x.new_zeros(4, dtype=torch.float32)
    y, lse = pa.paged_attention(y, cache, batch, k=y[:, :1], v=y[:, 1:2], layer=1, window_size=9, sinks=sinks, return_lse=True, rope=ROPE)
    return y + lse.to(y.dtype)[..., None]


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for x, y in zip(found, expected, strict=True):
        assert x.shape == y.shape
        assert abs(x - y).max() <= 4e-3 * (1 + abs(y).max())  # a compiler may round between operations, or not


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_operators_are_the_functions(device: str, dtype: Any) -> None:
    setup = Setup(device, dtype)
    for x, y in zip(setup.run(model), setup.run(plain), strict=True):
        assert (x == y).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_compiled(device: str, backend: str, kv_dtype: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph without breaks; new batches and new numbers of tokens, but no new graph for each."""
    torch.compiler.reset()
    moved, at = [], operators.Step.cache_at

    def cache_at(step: operators.Step, pool: Any) -> pa.KVCache:
        cache = at(step, pool)
        moved.append(cache is not step.cache)
        return cache

    monkeypatch.setattr(operators.Step, "cache_at", cache_at)
    graphs = CompileCounterWithBackend(backend)
    setup = Setup(device, kv_dtype=kv_dtype)
    assert_same(setup.run(torch.compile(model, fullgraph=True, backend=graphs, dynamic=True)), setup.run(plain))
    assert graphs.frame_count <= 2
    assert len(moved) == 3 * len(setup.steps)
    assert backend == "aot_eager" or not any(moved), "the compiler copies the pool"


@pytest.mark.parametrize("device", DEVICES)
def test_pytorchs_own_check(device: str) -> None:
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device=device)
    step = operators.Step(cache, cache.extend([cache.new_sequence()], [3]))
    x = torch.randn((3, 4, 64), device=device).half()
    library.opcheck(torch.ops.pagedattn.append, (x[:, :1], x[:, 1:2], step.pool, step.number, 0, None, None))
    for return_lse in (False, True):
        arguments = (x, x[:, :1], x[:, 1:2], step.pool, step.number, 0, None, True, *[None] * 9, "2", return_lse)
        library.opcheck(torch.ops.pagedattn.paged_attention, arguments)


def test_num_splits_of_all_kinds() -> None:
    setup = Setup("cpu")
    for num_splits in (None, 3, "fixed:32"):
        setup.run(lambda x, step, n=num_splits: operators.paged_attention(x[:, :4], step, k=x[:, :1], v=x[:, :1], num_splits=n))
    with pytest.raises(pa.ArgumentError, match=r"`num_splits` must be .*got 'many'"):
        setup.run(lambda x, step: operators.paged_attention(x, step, num_splits="many"))


def test_a_step_that_is_gone() -> None:
    cache = pa.KVCache(4, num_kv_heads=1, head_dim=64, block_len=16, device="cpu")
    step = operators.Step(cache, cache.extend([cache.new_sequence()], [3]))
    pool, number, x = step.pool, step.number, torch.zeros((3, 1, 64)).half()
    assert pool.data_ptr() == cache.pool.ctypes.data
    del step
    with pytest.raises(pa.ArgumentError, match="`step` must be kept"):
        torch.ops.pagedattn.append(x, x, pool, number, 0, None, None)
