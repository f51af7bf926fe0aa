"""The demo as a user meets it: it runs, says what it measured, repeats itself, and fails when the numbers do not agree."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import demo
from pagedattn.demo import report
from pagedattn.demo.generate import Continuation, Request, generate, make_cache
from pagedattn.demo.model import END, Model
from pagedattn.demo.prompts import REQUESTS
from pagedattn.demo.terminal import Terminal, printable
from tests.demo.small import CONFIG, random_weights

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def output(**arguments: object) -> tuple[int, str]:
    stream = io.StringIO()
    status = demo.run(**{"device": "cpu", "max_new_tokens": 8, **arguments}, stream=stream)
    return status, stream.getvalue()


class Screen(io.StringIO):
    """A terminal, as far as a stream can be one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("device", DEVICES)
def test_it_runs_in_seconds_and_says_what_ran(device: str) -> None:
    start = time.perf_counter()
    status, text = output(device=device, max_new_tokens=32)
    assert status == 0
    assert time.perf_counter() - start < 60
    labels = [line.split()[0] for line in text.splitlines() if line[:1].isalpha()]
    assert [*("device", "model", "learned"), *("prefill", "decode", "cache", "forks", "check", "total")] == [
        label for label in labels if label in ("device", "model", "learned", "prefill", "decode", "cache", "forks", "check", "total")
    ]
    assert ("kernels" in labels) == (device == "cuda")
    assert "\x1b" not in text
    for request in REQUESTS:
        assert f"{request.title} (" in text
        assert request.prompt.decode().splitlines()[0] in text


@pytest.mark.parametrize("device", DEVICES)
def test_json_holds_the_same_figures(device: str) -> None:
    status, text = output(device=device, json=True)
    told = json.loads(text)
    assert status == 0
    assert told["device"].startswith(device)
    assert (told["gpu"] is None) == (device == "cpu")
    assert [name.split("_")[0] for name in told["kernels"]] == ([] if device == "cpu" else ["append", "prefill", "decode"])
    assert told["prefill"]["tokens"] == sum(len(r.prompt) + 1 for r in REQUESTS)
    assert told["decode"]["tokens"] <= 8 * len(told["sequences"])
    assert len(told["sequences"]) == sum(r.samples for r in REQUESTS)
    assert told["cache"]["token_bytes"] == 2 * 2 * 64 * 2 * 4  # K and V, 2 heads of 64, 2 bytes, 4 layers
    assert told["cache"]["pool_bytes"] == told["cache"]["num_blocks"] * told["cache"]["block_len"] * told["cache"]["token_bytes"]
    shared = len(REQUESTS[-1].prompt) // told["cache"]["block_len"]
    assert told["cache"]["shared_blocks"] >= 2 * shared
    assert 0 < told["dense"]["max_difference"] <= told["dense"]["bound"]
    assert told["dense"]["float16_effect"] < 0.01 * told["dense"]["max_logit"]
    assert told["dense"]["passed"]
    assert all(told[part]["tokens_per_second"] > 0 for part in ("prefill", "decode"))


def test_a_seed_repeats_its_text() -> None:
    first, again, other = (json.loads(output(json=True, seed=seed)[1])["sequences"] for seed in (5, 5, 6))
    assert first == again
    assert first != other


def test_a_difference_that_rounding_cannot_explain_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "BOUND_FACTOR", 0.0)
    status, text = output()
    assert status == 1
    assert "DIFFERS from dense attention" in text


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 0}, {"max_new_tokens": 1024}, {"temperature": 0.0}], ids=str)
def test_what_cannot_be_generated_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(pa.ArgumentError, match=next(iter(arguments))):
        output(**arguments)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(CONFIG, random_weights().arrays, "cpu")


def test_a_document_may_end_early_and_all_blocks_come_back(model: Model) -> None:
    requests = [Request("a", b"abc", samples=6), Request("b", b"0123456789abcdef", samples=6)]
    cache = make_cache(model, requests, 120)
    done = generate(model, cache, requests, 120, temperature=3.0)
    lengths = [len(c.text) for c in done.continuations]
    assert min(lengths) < 120
    assert max(lengths) == 120
    for c in done.continuations:
        assert END not in c.text
        assert len(c.logits) == len(c.bits) == len(c.text) + (len(c.text) < 120)
    assert done.decode_tokens == sum(len(c.logits) for c in done.continuations)
    assert cache.num_free_blocks == cache.num_blocks
    assert done.peak_blocks <= cache.num_blocks


def test_a_continuation_does_not_depend_on_its_company(model: Model) -> None:
    requests = [Request("a", b"abc"), Request("b", b"0123456789abcdef", samples=2)]
    together = generate(model, make_cache(model, requests, 5), requests, 5).continuations
    alone = generate(model, make_cache(model, requests[:1], 5), requests[:1], 5).continuations
    np.testing.assert_allclose(together[0].logits[0], alone[0].logits[0], atol=0.05)
    assert together[0].text == alone[0].text


def continuation(prompt: bytes, text: bytes) -> Continuation:
    made = Continuation(Request("title", prompt), 0, np.random.default_rng(0))
    made.text += text
    made.bits.append(1.0)
    return made


def test_a_terminal_grows_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("pagedattn.demo.terminal._FRAME_SECONDS", 0.0)
    stream = Screen()
    screen, parts = Terminal(stream), [continuation(b"one\n", b"two"), continuation(b"three", b"")]
    screen.grow(parts)
    drawn = stream.getvalue().count("\n")
    screen.grow(parts)
    screen.clear()
    assert stream.getvalue().count(f"\x1b[{drawn}A") == 2
    assert stream.getvalue().endswith("\x1b[J")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_plain_terminal_gets_no_escapes(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    stream = Screen()
    screen = Terminal(stream)
    screen.grow([continuation(b"one\n", b"two")])
    assert not stream.getvalue()
    screen.show([continuation(b"one\n", b"two")])
    assert "\x1b" not in stream.getvalue()


def test_the_gutter_tells_prompt_from_text() -> None:
    stream = io.StringIO()
    Terminal(stream).show([continuation(b"one\ntw", b"o\nthree")])
    assert stream.getvalue().splitlines()[2:] == ["\u2502 one", "\u2503 two", "\u2503 three"]


def test_a_stream_that_knows_only_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="\n")
    Terminal(stream).show([continuation("é\n".encode(), "ü".encode())])
    stream.seek(0)
    assert stream.read().split("\n")[2:4] == ["| ?", "# ?"]


def test_no_byte_of_the_model_moves_the_cursor() -> None:
    text = printable(bytes(range(256)))
    assert text.count("\n") == 1
    assert all(c.isprintable() or c == "\n" for c in text)
