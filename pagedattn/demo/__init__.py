"""`pagedattn demo`: a small language model whose attention is this package's, measured and checked as it runs."""

from __future__ import annotations

import sys
import time
from json import dumps
from typing import TextIO


def run(
    device: str | None = None,
    max_new_tokens: int = 256,
    seed: int = 0,
    json: bool = False,
    stream: TextIO | None = None,
    temperature: float = 0.7,
) -> int:
    """Continue four prompts, one of them three times, in one batch; print the text and what was measured.

    Parameters
    ----------
    device : str, optional
        "cuda", "cuda:N", "cpu"; None: a GPU if one is usable.
    max_new_tokens : int
        Bytes that each continuation gets at most.
    seed : int
        0 or more; the same seed draws the same text on the same machine.
    json : bool
        Print one JSON object instead.
    stream : text file, optional
        Where to print; None: sys.stdout.
    temperature : float
        Of drawing; towards 0 the likeliest byte is taken.

    Returns
    -------
    int
        0; 1 if the paged computation differs from the dense one by more than rounding explains.

    Raises
    ------
    ArgumentError
        `max_new_tokens`, `temperature` or `seed` out of range.
    """
    start = time.perf_counter()
    from pagedattn.demo import report, weights
    from pagedattn.demo.generate import generate, make_cache
    from pagedattn.demo.model import Model
    from pagedattn.demo.prompts import REQUESTS
    from pagedattn.demo.terminal import Terminal

    screen = Terminal(stream or sys.stdout)
    loaded = weights.load()
    model = Model(loaded.config, loaded.arrays, device)
    with model.current():
        cache = make_cache(model, REQUESTS, max_new_tokens)
        if not json:
            screen.facts("pagedattn demo", report.introduction(model, loaded))
        begun = time.perf_counter()
        if model.device.arch:  # the first launch of a kernel compiles and loads it
            generate(model, cache, REQUESTS, min(2, max_new_tokens), temperature, seed)
        ready_seconds = time.perf_counter() - begun
        done = generate(model, cache, REQUESTS, max_new_tokens, temperature, seed, None if json else screen.grow)
        built = report.kernels(model, cache, done)
    result = report.check(done.continuations, loaded)
    told = report.Report(model, loaded, cache, built, done, result, ready_seconds, time.perf_counter() - start)
    if json:
        screen.line(dumps(told.figures(), indent=2))
    else:
        screen.clear()
        screen.show(done.continuations)
        screen.facts("what ran", told.sentences())
    return 0 if result.passed else 1
