"""The model: the same logits through the paged cache, however it is filled, as from dense attention over the whole text."""

from __future__ import annotations

import numpy as np
import pytest

import pagedattn as pa
from pagedattn.demo import dense
from pagedattn.demo.generate import step
from pagedattn.demo.model import Config, Model
from pagedattn.demo.report import BOUND_FACTOR
from tests.demo.small import CONFIG, random_weights, texts

WEIGHTS = random_weights()
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


@pytest.fixture(params=DEVICES)
def model(request: pytest.FixtureRequest) -> Model:
    return Model(CONFIG, WEIGHTS.arrays, request.param)


def cache_for(model: Model, num_blocks: int = 64) -> pa.KVCache:
    """A cache whose pool is NaN wherever nobody wrote."""
    c = model.config
    cache = pa.KVCache(
        num_blocks, num_kv_heads=c.num_kv_heads, head_dim=c.head_dim, num_layers=c.num_layers, block_len=16, device=model.device.name
    )
    cache.pool[...] = 0xFF
    return cache


def expected(text: list[int], first: int) -> np.ndarray:
    return dense.logits(Model(CONFIG, WEIGHTS.arrays, "cpu"), text, first)


def bound(text: list[int]) -> float:
    """As in the demo's own check: a multiple of what rounding to float16 does to these very logits."""
    exact = dense.logits(Model(CONFIG, WEIGHTS.arrays, "cpu", dtype="float32"), text)
    return BOUND_FACTOR * float(np.abs(exact - expected(text, 0)).max())


def test_the_bound_would_notice_an_error() -> None:
    (text,) = texts(40)
    wrong = dense.logits(Model(CONFIG, WEIGHTS.arrays, "cpu"), [text[1], *text[1:]])
    assert np.abs(wrong[-1] - expected(text, 39)[0]).max() > 3 * bound(text)


def test_ragged_prefill_then_decode_is_dense(model: Model) -> None:
    cache, prompts = cache_for(model), texts(1, 16, 17, 70)
    sequences = [cache.new_sequence() for _ in prompts]
    got = [[] for _ in prompts]
    batch = cache.extend(sequences, [len(p) for p in prompts])
    more = texts(*[9] * 4, seed=2)
    for i in range(10):
        tokens = [token for p in prompts for token in p] if i == 0 else [m[i - 1] for m in more]
        for rows, row in zip(got, step(model, cache, batch, tokens), strict=True):
            rows.append(row)
        batch = cache.extend(sequences, [1] * 4)
    for prompt, rest, rows in zip(prompts, more, got, strict=True):
        text = prompt + rest
        assert np.abs(np.stack(rows) - expected(text, len(prompt) - 1)).max() <= bound(text)


@pytest.mark.parametrize(
    "chunks", [[70], [1] * 70, [33, 1, 36], [16, 16, 38], [69, 1]], ids=["one", "single tokens", "ragged", "blocks", "last"]
)
def test_chunks_of_a_prefill_do_not_matter(model: Model, chunks: list[int]) -> None:
    cache, (text,) = cache_for(model), texts(70)
    sequence, done = cache.new_sequence(), 0
    for chunk in chunks:
        logits = step(model, cache, cache.extend([sequence], [chunk]), text[done : done + chunk])
        done += chunk
        assert np.abs(logits - expected(text[:done], done - 1)).max() <= bound(text)


def test_prefill_and_decode_share_a_batch(model: Model) -> None:
    cache, (old, new) = cache_for(model), texts(30, 21)
    first, second = cache.new_sequence(), cache.new_sequence()
    step(model, cache, cache.extend([first], [29]), old[:29])
    logits = step(model, cache, cache.extend([second, first], [21, 1]), [*new, old[29]])
    for row, text in zip(logits, (new, old), strict=True):
        assert np.abs(row - expected(text, len(text) - 1)).max() <= bound(text)


def test_forks_diverge_without_touching_each_other(model: Model) -> None:
    cache, (prefix,) = cache_for(model), texts(37)
    first = cache.new_sequence()
    step(model, cache, cache.extend([first], [37]), prefix)
    sequences, got = [first, cache.fork(first), cache.fork(first)], []
    tails = texts(5, 5, 5, seed=3)
    for i in range(5):
        got.append(step(model, cache, cache.extend(sequences, [1] * 3), [t[i] for t in tails]))
    for j, tail in enumerate(tails):
        text = prefix + tail
        assert np.abs(np.stack([rows[j] for rows in got]) - expected(text, 37)).max() <= bound(text)


def test_a_later_byte_changes_no_earlier_logits() -> None:
    (text,) = texts(20)
    other = [*text[:12], text[12] ^ 1, *text[13:]]
    a, b = expected(text, 0), expected(other, 0)
    np.testing.assert_allclose(a[:12], b[:12], rtol=0, atol=1e-5 * np.abs(a).max())
    assert np.abs(a[12:] - b[12:]).max(axis=-1).min() > 1e-3


def test_scores_depend_on_distance_only() -> None:
    model = Model(CONFIG, WEIGHTS.arrays, "cpu")
    q, k = np.random.default_rng(4).standard_normal((2, 1, 1, 64)).astype(np.float32)

    def score(query_position: int, key_position: int) -> float:
        tables = [[table[[p]][:, None, :] for table in model._rope] for p in (query_position, key_position)]
        return float((model._rotate(q, tables[0]) * model._rotate(k, tables[1])).sum())

    assert score(90, 83) == pytest.approx(score(7, 0), rel=1e-5)
    assert score(90, 83) != pytest.approx(score(90, 84), rel=1e-2)


def test_the_default_model_is_as_large_as_the_shapes_say() -> None:
    config = Config()
    attention = 160 * (8 + 2 * 2) * 64 + 8 * 64 * 160
    assert config.num_parameters == 256 * 160 + 4 * (attention + 3 * 160 * 384 + 2 * 160) + 160
