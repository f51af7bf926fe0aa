"""Calls that must be refused: each says what is wrong, and leaves the pool, the cache and out= as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import pagedattn as pa

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.cuda))


class Setup:
    """A small cache with two sequences of 20 and 5 tokens, and good arguments for a call with 3 and 1 new ones."""

    def __init__(self, device: str) -> None:
        self.device = pa.devices.get(device)
        self.cache = pa.KVCache(8, num_kv_heads=2, head_dim=64, block_len=16, num_layers=2, device=self.device)
        self.sequences = [self.cache.new_sequence(), self.cache.new_sequence()]
        self.batch = self.cache.extend(self.sequences, [20, 5])
        self.batch = self.table([[0, 1], [2, -1]])
        self.q = self.array((4, 8, 64))
        self.k, self.v = self.array((4, 2, 64)), self.array((4, 2, 64))
        self.out = self.array((4, 8, 64))
        self.attend(k=self.k, v=self.v)  # a good call leaves a plan, which must not make a bad one good
        self.cache.pool[...] = 7
        self.before = self.state()

    def table(self, table: Any, seqlens_q: Any = (3, 1), seqlens_k: Any = (20, 5)) -> pa.Batch:
        return pa.Batch(np.asarray(table, np.int32), list(seqlens_q), list(seqlens_k), device=self.device)

    def array(self, shape: tuple[int, ...], dtype: Any = np.float16) -> Any:
        return self.device.asarray(np.ones(shape, dtype))

    def state(self) -> tuple[Any, ...]:
        lengths = [self.cache.seqlen(s) for s in self.sequences]
        return lengths, self.cache.num_free_blocks, *(self.device.to_host(x).tobytes() for x in (self.cache.pool, self.out))

    def attend(self, **changes: Any) -> Any:
        q, cache, batch = (changes.pop(name, getattr(self, name)) for name in ("q", "cache", "batch"))
        return pa.paged_attention(q, cache, batch, out=changes.pop("out", self.out), **changes)

    def append(self, **changes: Any) -> None:
        k, v, batch = (changes.pop(name, getattr(self, name)) for name in ("k", "v", "batch"))
        pa.append(k, v, self.cache, batch, **changes)


@pytest.fixture(params=DEVICES)
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    made = Setup(request.param)
    yield made
    assert made.state() == made.before, "a refused call has changed something"


Call = Callable[[Setup], Any]


def attend(**changes: Callable[[Setup], Any]) -> Call:
    return lambda s: s.attend(**{name: make(s) for name, make in changes.items()})


def append(**changes: Callable[[Setup], Any]) -> Call:
    return lambda s: s.append(**{name: make(s) for name, make in changes.items()})


def explain(**changes: Callable[[Setup], Any]) -> Call:
    def call(s: Setup) -> Any:
        given = {name: make(s) for name, make in changes.items()}
        return pa.explain(given.pop("q", s.q), s.cache, s.batch, **given)

    return call


def value(x: Any) -> Callable[[Setup], Any]:
    return lambda s: x


def shape(*sizes: int, dtype: Any = np.float16) -> Callable[[Setup], Any]:
    return lambda s: s.array(sizes, dtype)


def _gather_twice(s: Setup) -> Any:
    rows = s.array((25, 2, 64))
    return pa.gather(s.cache, s.batch, out=(rows, rows))


BAD: dict[str, tuple[Call, str]] = {
    "q-list": (attend(q=value([[1.0]])), "`q` must be an array.*got list"),
    "q-rank": (attend(q=shape(4, 512)), "`q` must have 3 dimensions"),
    "q-tokens": (attend(q=shape(5, 8, 64)), r"`q.shape\[0\]` must equal the batch's new tokens, 4; got 5"),
    "q-head-dim": (attend(q=shape(4, 8, 128)), r"`q.shape\[2\]` must equal the cache's head_dim, 64; got 128"),
    "q-heads": (attend(q=shape(4, 7, 64), out=value(None)), "multiple of the cache's 2 KV heads; got 7"),
    "q-no-heads": (attend(q=shape(4, 0, 64), out=value(None)), "multiple of the cache's 2 KV heads; got 0"),
    "q-float32": (attend(q=shape(4, 8, 64, dtype=np.float32)), "cache's dtype, float16; got float32"),
    "q-bfloat16": (attend(q=shape(4, 8, 64, dtype=ml_dtypes.bfloat16)), "cache's dtype, float16; got bfloat16"),
    "q-dims-strided": (attend(q=lambda s: s.array((4, 8, 128))[:, :, ::2]), "`q` must be contiguous in heads and dims"),
    "q-heads-strided": (attend(q=lambda s: s.array((4, 16, 64))[:, ::2]), "`q` must be contiguous in heads and dims"),
    "q-transposed": (attend(q=lambda s: s.array((8, 4, 64)).swapaxes(0, 1)), "`q` must be contiguous in heads and dims"),
    "k-tokens": (append(k=shape(3, 2, 64)), r"`k.shape\[0\]` must equal the batch's new tokens, 4; got 3"),
    "k-heads": (append(k=shape(4, 1, 64)), r"`k.shape\[1\]` must equal the KV heads, 2; got 1"),
    "v-head-dim": (append(v=shape(4, 2, 96)), r"`v.shape\[2\]` must equal the cache's head_dim, 64; got 96"),
    "v-dtype": (append(v=shape(4, 2, 64, dtype=np.float64)), "`v` must have the cache's dtype"),
    "v-rank": (append(v=shape(2, 64)), "`v` must have 3 dimensions"),
    "v-strided": (append(v=lambda s: s.array((4, 2, 128))[:, :, :64]), "`v` must be contiguous in heads and dims"),
    "k-alone": (attend(k=shape(4, 2, 64)), "`k` and `v` must come together"),
    "v-alone": (attend(v=shape(4, 2, 64)), "`k` and `v` must come together"),
    "k-with-q": (attend(k=shape(4, 2, 64), v=shape(4, 3, 64)), r"`v.shape\[1\]`"),
    "out-shape": (attend(out=shape(4, 4, 64)), r"`out.shape\[1\]` must equal that of q, 8; got 4"),
    "out-dtype": (attend(out=shape(4, 8, 64, dtype=np.float32)), "`out` must have the cache's dtype"),
    "out-strided": (attend(out=lambda s: s.array((4, 8, 128))[:, :, ::2]), "`out` must be contiguous in heads and dims"),
    "layer-high": (attend(layer=value(2)), "`layer` must be an integer from 0 to 1.*got 2"),
    "layer-negative": (append(layer=value(-1)), "`layer` must be an integer from 0 to 1.*got -1"),
    "layer-float": (attend(layer=value(0.0)), "`layer`"),
    "gather-layer": (lambda s: pa.gather(s.cache, s.batch, layer=5), "`layer`"),
    "scale-zero": (attend(softmax_scale=value(0.0)), "`softmax_scale` must be a positive finite number"),
    "scale-nan": (attend(softmax_scale=value(float("nan"))), "`softmax_scale`"),
    "scale-text": (attend(softmax_scale=value("auto")), "`softmax_scale`.*'auto'"),
    "scale-huge": (attend(softmax_scale=value(10**400)), "`softmax_scale` must be a positive finite number"),
    "scale-float16-zero": (attend(softmax_scale=value(np.float16(0))), "`softmax_scale` must be a positive finite number"),
    "scale-float16-infinite": (attend(softmax_scale=value(np.float16("inf"))), "`softmax_scale` must be a positive finite number"),
    "softcap-float16-zero": (attend(softcap=value(np.float16(0))), "`softcap` must be a positive finite number"),
    "softcap-negative": (attend(softcap=value(-1.0)), "`softcap` must be a positive finite number"),
    "softcap-infinite": (attend(softcap=value(float("inf"))), "`softcap`"),
    "window-zero": (attend(window_size=value(0)), "`window_size` must be a positive integer"),
    "window-pair": (attend(window_size=value((7, 0))), "`window_size`"),
    "window-array": (attend(window_size=value(np.array([3, 4]))), "`window_size` must be a positive integer"),
    "causal-array": (attend(causal=value(np.array([True, False]))), "`causal` must be True or False; got array"),
    "causal-none": (attend(causal=value(None)), "`causal` must be True or False; got None"),
    "causal-text": (attend(causal=value("no")), "`causal` must be True or False; got 'no'"),
    "lse-text": (attend(return_lse=value("no")), "`return_lse` must be True or False; got 'no'"),
    "lse-number": (attend(return_lse=value(1)), "`return_lse` must be True or False; got 1"),
    "explain-lse-none": (explain(return_lse=value(None)), "`return_lse` must be True or False; got None"),
    "k-none": (append(k=value(None)), "`k` must be an array.*got NoneType"),
    "k-and-v-none": (append(k=value(None), v=value(None), rope=value(pa.Rope())), "`k` must be an array.*got NoneType"),
    "v-none": (append(v=value(None)), "`v` must be an array.*got NoneType"),
    "gather-twice": (_gather_twice, "`out`'s two arrays must not overlap; they begin 0 bytes apart and have 6400 each"),
    "free-bool": (lambda s: s.cache.free(True), "a sequence must be an id from new_sequence.*got True"),
    "extend-bool": (lambda s: s.cache.extend([True], [1]), "a sequence must be an id from new_sequence.*got True"),
    "layer-array": (attend(layer=value(np.array([0, 1]))), "`layer` must be an integer"),
    "stream-text": (attend(stream=value("main")), "`stream` must be an address, a CuPy or PyTorch stream.*got str"),
    "stream-text-append": (append(stream=value("main")), "`stream` must be an address.*got str"),
    "stream-text-explain": (explain(stream=value("main")), "`stream` must be an address.*got str"),
    "splits-zero": (attend(num_splits=value(0)), "`num_splits` must be"),
    "splits-text": (attend(num_splits=value("fixed:")), "`num_splits` must be"),
    "splits-odd": (attend(num_splits=value("fixed:100")), "`num_splits` must be"),
    "splits-bool": (attend(num_splits=value(True)), "`num_splits` must be"),
    "sinks-shape": (attend(sinks=shape(2, dtype=np.float32)), r"`sinks` must be float32 of shape \(8,\)"),
    "sinks-dtype": (attend(sinks=shape(8)), "`sinks` must be float32"),
    "rope-text": (attend(rope=value("yarn")), "`rope` must be a pagedattn.Rope.*got str"),
    "rope-dim": (append(rope=value(pa.Rope(dim=128))), "`dim` must not pass the cache's head_dim, 64; got 128"),
    "rope-positions": (
        attend(k=shape(4, 2, 64), v=shape(4, 2, 64), rope=value(pa.Rope().at([1]))),
        r"`positions` must have the shape \(4,\).*got \(1,\)",
    ),
    "q-bias-shape": (attend(q_bias=shape(2, 64)), r"`q_bias` must be float16 of shape \(8, 64\).*got float16 \(2, 64\)"),
    "k-bias-dtype": (append(k_bias=shape(2, 64, dtype=np.float32)), r"`k_bias` must be float16 of shape \(2, 64\).*got float32"),
    "v-bias-list": (append(v_bias=value([[1.0]])), "`v_bias` must be an array"),
    "k-bias-alone": (attend(k_bias=shape(2, 64)), "`k_bias` and `v_bias` are added to new rows, and must come with `k` and `v`"),
    "alibi-shape": (attend(alibi_slopes=shape(2, dtype=np.float32)), r"`alibi_slopes` must be float32 of shape \(8,\)"),
    "alibi-dtype": (attend(alibi_slopes=shape(8)), "`alibi_slopes` must be float32"),
    "alibi-list": (attend(alibi_slopes=value([1.0] * 8)), "`alibi_slopes` must be an array"),
    "mask-shape": (attend(mask=shape(64, dtype=np.bool_)), r"`mask` must be bool of shape \(65,\).*got bool \(64,\)"),
    "mask-dtype": (attend(mask=shape(65)), r"`mask` must be bool of shape \(65,\).*got float16"),
    "mask-ragged": (attend(mask=value([[True], [True, False]])), "`mask` must hold bools, in one flat row; NumPy says"),
    "finished-ragged": (
        lambda s: pa.Batch([[0, 1], [2, -1]], [3, 1], [20, 5], finished=[[True], [True, False]], device=s.device),  # type: ignore[list-item]
        "`finished` must hold bools; NumPy says",
    ),
    "logn-one": (attend(logn_max_position=value(1)), "`logn_max_position` must be an integer from 2"),
    "logn-float": (attend(logn_max_position=value(2048.0)), "`logn_max_position` must be an integer"),
    "batch-none": (attend(batch=value(None)), "`batch` must be a Batch.*got NoneType"),
    "batch-none-append": (append(batch=value(None)), "`batch` must be a Batch.*got NoneType"),
    "batch-none-gather": (lambda s: pa.gather(s.cache, None), "`batch` must be a Batch.*got NoneType"),  # type: ignore[arg-type]
    "cache-none": (attend(cache=value(None)), "`cache` must be a KVCache; got NoneType"),
    "explain-batch-none": (lambda s: pa.explain(s.q, s.cache, None), "`batch` must be a Batch.*got NoneType"),  # type: ignore[arg-type]
    "explain-q-list": (lambda s: pa.explain([[1.0]], s.cache, s.batch), "`q` must be an array.*got list"),
    "explain-q-rank": (explain(q=shape(4, 512)), "`q` must have 3 dimensions"),
    "explain-q-tokens": (explain(q=shape(5, 8, 64)), r"`q.shape\[0\]` must equal the batch's new tokens, 4; got 5"),
    "explain-q-head-dim": (explain(q=shape(4, 8, 128)), r"`q.shape\[2\]` must equal the cache's head_dim, 64; got 128"),
    "explain-q-dtype": (explain(q=shape(4, 8, 64, dtype=np.float32)), "cache's dtype, float16; got float32"),
    "explain-keyword": (explain(windowsize=value(3)), "`windowsize` is no keyword of paged_attention, whose own are: k, v, layer"),
    "explain-layer": (explain(layer=value(2)), "`layer` must be an integer from 0 to 1.*got 2"),
    "explain-cp": (explain(cp=value("0/2")), "`cp` must be a ContextParallel.*got str"),
    "explain-softcap": (explain(softcap=value(float("nan"))), "`softcap` must be a positive finite number"),
    "explain-causal": (explain(causal=value(None)), "`causal` must be True or False"),
    "explain-window": (explain(window_size=value(0)), "`window_size` must be a positive integer"),
    "explain-splits": (explain(num_splits=value("fixed:3")), "`num_splits` must be"),
    "explain-scale": (explain(softmax_scale=value(0)), "`softmax_scale` must be a positive finite number"),
    "explain-k-alone": (explain(k=shape(4, 2, 64)), "`k` and `v` must come together"),
    "explain-k": (explain(k=shape(4, 1, 64), v=shape(4, 2, 64)), r"`k.shape\[1\]` must equal the KV heads, 2; got 1"),
    "explain-k-bias": (explain(k_bias=shape(2, 64)), "`k_bias` and `v_bias` are added to new rows"),
    "explain-rope": (explain(rope=value("yarn")), "`rope` must be a pagedattn.Rope"),
    "explain-mask": (explain(mask=shape(64, dtype=np.bool_)), r"`mask` must be bool of shape \(65,\)"),
    "explain-out": (explain(out=shape(4, 4, 64)), r"`out.shape\[1\]` must equal that of q"),
    "explain-sinks": (explain(sinks=shape(2, dtype=np.float32)), "`sinks` must be float32"),
    "explain-lse": (explain(lse=shape(2, dtype=np.float32)), "`lse` must be float32"),
    "explain-workspace": (explain(workspace=shape(2, dtype=np.float32)), "`workspace` must be uint8"),
    "table-narrow": (attend(batch=lambda s: s.table([[0], [2]])), "`block_table` must have 2 columns.*got 1"),
    "table-narrow-append": (append(batch=lambda s: s.table([[0], [2]])), "`block_table` must have 2 columns.*got 1"),
    "table-narrow-gather": (lambda s: pa.gather(s.cache, s.table([[0], [2]])), "`block_table` must have 2 columns"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(setup: Setup, name: str) -> None:
    call, text = BAD[name]
    with pytest.raises(pa.ArgumentError, match=text):
        call(setup)


OUTSIDE: dict[str, tuple[list[list[int]], str]] = {
    "high": ([[0, 8], [2, -1]], r"block_table\[0, 1\] is 8"),
    "negative": ([[0, 1], [-1, -1]], r"block_table\[1, 0\] is -1"),
    "huge": ([[2**31 - 1, 1], [2, -1]], r"block_table\[0, 0\] is 2147483647"),
}


@pytest.mark.parametrize("operation", ["attend", "append", "gather"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_block_index_out_of_range(setup: Setup, name: str, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if setup.device.arch is not None:
        monkeypatch.setenv("PAGEDATTN_CHECK", "1")
    entries, text = OUTSIDE[name]
    batch = setup.table(entries)
    calls = {"attend": setup.attend, "append": setup.append, "gather": lambda batch: pa.gather(setup.cache, batch)}
    with pytest.raises(pa.ArgumentError, match=text):
        calls[operation](batch=batch)


@pytest.mark.parametrize(
    ("table", "new", "good"),
    [
        ([[0, 1], [2, 3]], [1, 1], True),
        ([[0, 1], [0, 2]], [1, 1], True),  # a prefix that both only read
        ([[0, 1], [1, 2]], [1, 1], False),  # sequence 0 writes what sequence 1 reads
        ([[0, 1], [2, 1]], [1, 1], False),  # both write it
        ([[0, 1], [2, 1]], [0, 0], True),  # nobody writes
        ([[0, 0], [2, 3]], [1, 1], False),
    ],
)
def test_blocks_said_to_be_unshared(
    setup: Setup, table: list[list[int]], new: list[int], good: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if setup.device.arch is not None:
        monkeypatch.setenv("PAGEDATTN_CHECK", "1")
    batch = pa.Batch(table, new, [20, 20], unshared=True, device=setup.device)
    if good:
        pa.gather(setup.cache, batch)
        return
    with pytest.raises(pa.ArgumentError, match=r"no block that takes a new token is used a second time; block_table\[0, 1\], [01], is\."):
        pa.gather(setup.cache, batch)
    assert setup.state() == setup.before


@pytest.mark.parametrize("operation", ["attend", "append", "gather"])
@pytest.mark.parametrize("entry", [2**40, -(2**33), 2**63])
def test_block_index_beyond_int32(setup: Setup, entry: int, operation: str) -> None:
    """Reported as it came, on a GPU too and unasked: no pool has such a block. Where it is not used, it may hold anything."""
    calls = {"attend": setup.attend, "append": setup.append, "gather": lambda batch: pa.gather(setup.cache, batch)}

    def batch(table: list[list[int]]) -> pa.Batch:
        return pa.Batch(np.array(table, np.uint64 if entry > 2**62 else np.int64), [3, 1], [20, 5], device=setup.device)

    with pytest.raises(pa.ArgumentError, match=rf"block_table\[0, 1\] is {entry}, and sequence 0 has 20 tokens"):
        calls[operation](batch=batch([[0, entry], [2, 0]]))
    assert setup.state() == setup.before
    pa.gather(setup.cache, batch([[0, 1], [2, entry]]))


def test_context_parallelism_of_another_kind(setup: Setup) -> None:
    for call in (setup.attend, setup.append):
        with pytest.raises(pa.ArgumentError, match=r"`cp` must be a ContextParallel\(rank, size\), or None; got tuple"):
            call(cp=(0, 2))
    assert setup.state() == setup.before


def test_unknown_keyword(setup: Setup) -> None:
    with pytest.raises(TypeError, match="windowsize"):
        setup.attend(windowsize=3)


def test_read_only_out() -> None:
    setup = Setup("cpu")
    setup.out.flags.writeable = False
    with pytest.raises(pa.ArgumentError, match="`out` must be writable"):
        setup.attend()
    assert setup.state() == setup.before


@pytest.mark.parametrize("step", [8, -8, 0])
def test_out_whose_tokens_overlap(step: int) -> None:
    setup = Setup("cpu")
    room = np.zeros((64, 64), np.float16)
    out = np.lib.stride_tricks.as_strided(room[24:], (4, 8, 64), (step * 64, 128, 2))
    with pytest.raises(pa.ArgumentError, match="`out`'s tokens must not overlap: 1024 bytes each; got a token stride of"):
        setup.attend(out=out)
    assert not room.any()
    assert setup.state() == setup.before


def test_bytes_in_another_order() -> None:
    setup = Setup("cpu")
    with pytest.raises(pa.ArgumentError, match="`q` must have the cache's dtype, float16; got >f2, of another byte order"):
        setup.attend(q=setup.q.astype(">f2"))


def test_numbers_of_numpy_are_numbers() -> None:
    setup = Setup("cpu")
    numbers = {"softmax_scale": np.float16(0.5), "softcap": np.float16(30)}
    with np.errstate(all="raise"):
        found = setup.attend(**numbers).copy()
    np.testing.assert_array_equal(found, setup.attend(**{name: float(x) for name, x in numbers.items()}))


@pytest.mark.parametrize("slope", [np.nan, np.inf])
def test_slopes_that_are_no_numbers(slope: float) -> None:
    setup = Setup("cpu")
    slopes = np.array([1, 1, 1, slope, 1, 1, 1, 1], np.float32)
    for call in (setup.attend, lambda **keywords: pa.explain(setup.q, setup.cache, setup.batch, **keywords)):
        with pytest.raises(pa.ArgumentError, match=f"`alibi_slopes` must be finite; got {slope}"):
            call(alibi_slopes=slopes)
    assert setup.state() == setup.before


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["q", "k", "out", "sinks", "batch"])
def test_wrong_device(name: str) -> None:
    host, device = Setup("cpu"), Setup("cuda")
    for here, there in ((host, device), (device, host)):
        wrong = {"q": there.q, "k": there.k, "out": there.out, "sinks": there.array((8,), np.float32), "batch": there.batch}[name]
        changes = {name: wrong} | ({"v": here.v} if name == "k" else {})
        with pytest.raises(pa.ArgumentError, match=f"`{name}` must be on {here.device.name}.*{there.device.name}"):
            here.attend(**changes)
    assert host.state() == host.before
    assert device.state() == device.before


def test_good_arguments_are_good() -> None:
    """The setup that every refused call changes in one place."""
    setup = Setup("cpu")
    setup.append()
    assert setup.attend(k=setup.k, v=setup.v, sinks=setup.array((8,), np.float32)) is setup.out
    assert setup.state() != setup.before
