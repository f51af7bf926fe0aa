"""What the store's tests run in processes of their own, and the kernels that they store."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pagedattn import entry
from pagedattn.nvrtc import Compiled
from pagedattn.store import Store

HEADERS = {"ptx/mma.cuh": b"// mma\n", "core/types.cuh": b"// types\n"}


def example(number: int = 0, num_bytes: int = 200_000) -> tuple[str, dict[str, Any], str, Compiled]:
    """A made-up kernel, as `Store.put` takes it: of the size of a real one, the same in every process."""
    source = f"// kernel {number}\n"
    noise = hashlib.shake_128(source.encode()).digest(num_bytes)
    recipe = entry.recipe(source, "sm_80", ("-arch=sm_80",), (12, 9), HEADERS)
    return f"decode_{number}", recipe, source, Compiled(b"\x7fELF" + noise, noise.hex().encode(), "Used 8 registers", 0.5)


def contend(home: Path, start: Any, rounds: int) -> int:
    """Put and get the same kernels as other processes, all at once; returns how many came back wrong."""
    start.wait()
    wrong = 0
    shelf = Store(home, [])
    for number in range(rounds):
        name, recipe, source, compiled = example(number)
        found = shelf.get(name, entry.key(recipe))
        wrong += found not in (None, compiled)
        wrong += not shelf.put(name, recipe, source, compiled)
        wrong += shelf.get(name, entry.key(recipe)) != compiled
    return wrong


def put_forever(home: Path, started: Any) -> None:
    shelf = Store(home, [])
    number = 0
    while True:
        shelf.put(*example(number % 8))
        if number == 3:
            started.set()
        if number % 3 == 2:
            shelf.clear()
        number += 1


def die_while_writing(home: Path) -> None:
    """Be killed when half of the files are written."""
    write = Path.write_bytes

    def dying(path: Path, data: bytes) -> int:
        if path.name == "kernel.ptx":
            write(path, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    Path.write_bytes = dying  # type: ignore[assignment, method-assign]
    Store(home, []).put(*example())


def die_before_renaming(home: Path) -> None:
    """Be killed when everything is written and nothing is in its place."""

    def dying(path: Path, target: Path) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Path.rename = dying  # type: ignore[assignment, method-assign]
    Store(home, []).put(*example())


def as_nobody(home: Path, answers: Any) -> None:
    """Use a store that may be read and not written; root gives its rights away first."""
    if sys.platform != "win32" and os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    name, recipe, _, compiled = example(0)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shelf = Store(home, [])
        read = shelf.get(name, entry.key(recipe)) == compiled
        written = shelf.put(*example(1)) or shelf.put(*example(2))
        answers.put((read, written, [str(w.message) for w in told], shelf.why_unwritable()))


def run(processes: Any, worker: Callable[..., None], *arguments: Any) -> int:
    """Run a worker in a process to its end; returns how it ended."""
    process = processes.Process(target=worker, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return int(process.exitcode)
