"""The store between processes: races, processes killed in the middle, a home that may only be read."""

from __future__ import annotations

import multiprocessing
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pagedattn import entry
from pagedattn.store import Store
from tests.store import workers

NUM_PROCESSES, ROUNDS = 4, 12


@pytest.fixture
def processes() -> Any:
    return multiprocessing.get_context("spawn")


def test_a_race(tmp_path: Path, processes: Any) -> None:
    with processes.Manager() as manager, ProcessPoolExecutor(NUM_PROCESSES, mp_context=processes) as pool:
        start = manager.Barrier(NUM_PROCESSES)
        wrong = [pool.submit(workers.contend, tmp_path, start, ROUNDS) for _ in range(NUM_PROCESSES)]
        assert [w.result(timeout=120) for w in wrong] == [0] * NUM_PROCESSES
    shelf = Store(tmp_path, [])
    assert len(list(tmp_path.iterdir())) == len(shelf.entries()) == ROUNDS, "losers have deleted their copies"
    assert shelf.verify() == []


def test_a_race_to_repair(tmp_path: Path, processes: Any) -> None:
    shelf = Store(tmp_path, [])
    for number in range(ROUNDS):
        shelf.put(*workers.example(number))
    for path in tmp_path.glob("*/kernel.cubin"):
        path.write_bytes(path.read_bytes()[:1000])
    with processes.Manager() as manager, ProcessPoolExecutor(NUM_PROCESSES, mp_context=processes) as pool:
        start = manager.Barrier(NUM_PROCESSES)
        for result in [pool.submit(workers.contend, tmp_path, start, ROUNDS) for _ in range(NUM_PROCESSES)]:
            result.result(timeout=120)  # whoever repairs may make another miss, so that what they counted means nothing
    assert shelf.verify() == []
    assert len(list(tmp_path.iterdir())) == len(shelf.entries()) == ROUNDS


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("worker", [workers.die_while_writing, workers.die_before_renaming], ids=lambda w: w.__name__)
def test_killed_in_the_middle(tmp_path: Path, processes: Any, worker: Callable[[Path], None]) -> None:
    assert workers.run(processes, worker, tmp_path) == -signal.SIGKILL
    shelf = Store(tmp_path, [])
    name, recipe, source, compiled = workers.example()
    assert shelf.get(name, entry.key(recipe)) is None
    assert shelf.entries() == []
    assert shelf.verify() == []
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".tmp-")
    assert shelf.put(name, recipe, source, compiled)
    assert shelf.get(name, entry.key(recipe)) == compiled


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("after_seconds", [0.0, 0.013, 0.029])
def test_killed_anywhere(tmp_path: Path, processes: Any, after_seconds: float) -> None:
    started = processes.Event()
    process = processes.Process(target=workers.put_forever, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    time.sleep(after_seconds)
    process.kill()
    process.join(60)
    shelf = Store(tmp_path, [])
    assert shelf.verify() == []
    for number in range(8):
        name, recipe, source, compiled = workers.example(number)
        assert shelf.get(name, entry.key(recipe)) in (None, compiled)
        assert shelf.put(name, recipe, source, compiled)
    assert len(shelf.entries()) == 8


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_home_that_may_only_be_read(processes: Any) -> None:
    """Root may write anywhere, so a process that has become nobody tries."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        Store(home, []).put(*workers.example(0))
        home.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)
        answers = processes.Queue()
        try:
            assert workers.run(processes, workers.as_nobody, home, answers) == 0
            read, written, told, why = answers.get(timeout=10)
        finally:
            home.chmod(stat.S_IRWXU)
    assert read
    assert not written
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert "Permission denied" in why
