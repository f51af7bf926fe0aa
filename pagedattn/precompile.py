"""Fill the store: every kernel that calls on the chosen targets can ask for, compiled in parallel processes. No GPU is needed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedattn import arch as targets
from pagedattn.arch import Arch
from pagedattn.errors import ArgumentError, CompileError, UnsupportedError
from pagedattn.shipped import shipped
from pagedattn.spec import KV_DTYPES, KernelSpec

if TYPE_CHECKING:
    from pagedattn.store import Store

CODES = tuple(name for name in KV_DTYPES if name)


@dataclass(frozen=True)
class Outcome:
    """What became of one kernel.

    Attributes
    ----------
    name, arch : str
        The spec's.
    seconds : float
        What compiling it took, now or when it was stored; 0 if it failed.
    reused : bool
        Whether the store had it.
    error : str
        Why it failed; empty if it did not.
    """

    name: str
    arch: str
    seconds: float = 0.0
    reused: bool = False
    error: str = ""


@dataclass(frozen=True)
class PrecompileReport:
    """What `precompile` did; prints as a table.

    Attributes
    ----------
    path : Path
        The store that was filled.
    outcomes : tuple of Outcome
        One per kernel, in the order of the shipped set.
    seconds : float
        What it all took.
    """

    path: Path
    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def compiled(self) -> list[str]:
        """Names of the kernels that were compiled now."""
        return [o.name for o in self.outcomes if not o.error and not o.reused]

    @property
    def reused(self) -> list[str]:
        """Names of the kernels that the store had."""
        return [o.name for o in self.outcomes if o.reused]

    @property
    def failed(self) -> dict[str, str]:
        """Name -> why, for the kernels that could not be made."""
        return {o.name: o.error for o in self.outcomes if o.error}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "path": str(self.path),
            "seconds": round(self.seconds, 3),
            "compiled": self.compiled,
            "reused": self.reused,
            "failed": self.failed,
        }

    def __str__(self) -> str:
        rows = [_row(name, [o for o in self.outcomes if o.arch == name]) for name in dict.fromkeys(o.arch for o in self.outcomes)]
        if len(rows) != 1:
            rows.append(_row("all", self.outcomes))
        table = ["target  kernels  compiled  reused  failed  compiler s", *rows]
        failures = [f"\n{name}:\n  {why}" for name, why in self.failed.items()]
        return "\n".join([*table, *failures, f"\n{self.seconds:.1f} s; the store is {self.path}"])


def precompile(
    archs: Iterable[str | int] | str | None = None,
    dtypes: Iterable[str] | str | None = None,
    head_dims: Iterable[int] | int | None = None,
    ops: Iterable[str] | str | None = None,
    *,
    kv_dtypes: Iterable[str | None] | str | None = None,
    jobs: int | None = None,
    progress: bool = True,
    out: str | Path | None = None,
) -> PrecompileReport:
    """Compile the shipped kernels into the store.

    Interrupting it leaves a valid store: a kernel is there whole or not at all. In a script, call it under
    ``if __name__ == "__main__":``, as whatever starts processes.

    Parameters
    ----------
    archs : sequence of str, optional
        Targets such as "sm_80"; None: all that the NVRTC at hand supports.
    dtypes, head_dims, ops : sequence, optional
        Restrict the set; None: all.
    kv_dtypes : sequence, optional
        What the caches store: "float16", "bfloat16", "int8", "int4", or None in the sequence for the activations' own type. None: all.
    jobs : int, optional
        Processes; None: one per core. 1 compiles in this process.
    progress : bool
        Show a bar on stderr.
    out : path, optional
        The store to fill; None: the user's own.

    Returns
    -------
    PrecompileReport
        Kernels that did not compile are in `.failed`; they raise nothing here.

    Raises
    ------
    ArgumentError, UnsupportedError
        For a value that no kernel has, a target that NVRTC lacks, a store that cannot be written. Nothing was compiled then.

    Examples
    --------
    >>> import pagedattn as pa
    >>> report = pa.precompile(["sm_80"], ["float16"], [128], ["merge"], jobs=1, progress=False)
    >>> len(report.compiled) + len(report.reused), report.failed
    (1, {})
    """
    processes = workers(jobs)
    specs = _selected(listed(archs), listed(dtypes), listed(head_dims), listed(ops), listed(kv_dtypes))
    from pagedattn.store import Store  # here and not above: `import pagedattn` stays quick

    shelf = Store() if out is None else Store(out, layers=())  # a folder that was asked for holds all, whatever layers there are
    if why := shelf.why_unwritable():
        raise UnsupportedError(f"the store at {shelf.path} must be writable to be filled; {why}. Set PAGEDATTN_HOME, or name another.")
    start = time.perf_counter()
    found = fill(specs, shelf, processes, progress)
    return PrecompileReport(shelf.path, tuple(found[s.name] for s in specs), time.perf_counter() - start)


def workers(jobs: int | None) -> int:
    """How many processes compile: `jobs`, or one per core."""
    if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
        raise ArgumentError(f"`jobs` must be a positive integer or None; got {jobs!r}.")
    return jobs or os.cpu_count() or 1


def fill(specs: list[KernelSpec], shelf: Store, processes: int, progress: bool) -> dict[str, Outcome]:
    """Compile kernels into a store; what became of each, by name."""
    return {o.name: o for o in _with_bar(_outcomes(specs, shelf, min(processes, len(specs))), len(specs), progress)}


def listed(values: Any) -> list[Any] | None:
    """A parameter that may be one value, several, or None for all."""
    return None if values is None else [values] if isinstance(values, (str, int)) else list(values)


def _selected(
    archs: list[Any] | None, dtypes: list[Any] | None, head_dims: list[Any] | None, ops: list[Any] | None, kv_dtypes: list[Any] | None
) -> list[KernelSpec]:
    from pagedattn import nvrtc

    given = {"archs": archs, "dtypes": dtypes, "head_dims": head_dims, "ops": ops, "kv_dtypes": kv_dtypes}
    for name, values in given.items():
        if values == []:
            raise ArgumentError(f"`{name}` must name at least one, or be None; got none.")
    known = nvrtc.archs()
    wanted = known if archs is None else [targets.parse(a) for a in archs]
    for target in wanted:
        nvrtc.require(target)
    for name in kv_dtypes or ():
        KernelSpec(op="append", dtype="bfloat16" if name == "bfloat16" else "float16", kv_dtype=name)  # refuses what no kernel stores
    specs = shipped([a.name for a in wanted], dtypes, head_dims, ops)
    readers = [s for s in specs if s.op != "ranges"]
    for name in kv_dtypes or ():
        if readers and not any(_serves(s, [name]) for s in readers):
            raise ArgumentError(_why_none(name, wanted, dtypes, ops))
    if kv_dtypes is not None:
        specs = [s for s in specs if _serves(s, kv_dtypes)]
    return list(dict.fromkeys(specs))


def _why_none(kv_dtype: str | None, wanted: list[Arch], dtypes: list[Any] | None, ops: list[Any] | None) -> str:
    """Why no kernel serves caches of a type."""
    if kv_dtype == "bfloat16" and dtypes is None and not any(a.family == "sm80" for a in wanted):
        names = ", ".join(a.name for a in wanted)
        return f"`kv_dtypes` must be float16, int8 or int4 below sm_80, where are no bfloat16 tensor cores; got {kv_dtype!r} for {names}."
    return (
        f"`kv_dtypes` must be types that the chosen kernels read, and a 16-bit cache stores its `dtype`; got {kv_dtype!r} with "
        f"dtypes={dtypes}, ops={ops}."
    )


def _serves(spec: KernelSpec, kv_dtypes: list[str | None]) -> bool:
    """Whether caches of these types call for a kernel. merge and ranges touch no cache: merge follows attention over any that goes with its
    dtype, and ranges comes before any."""
    if spec.op == "ranges":
        return True
    stored = {spec.dtype if name is None else name for name in kv_dtypes}
    return not stored.isdisjoint((spec.dtype, *CODES) if spec.op == "merge" else (spec.kv_dtype,))


def _outcomes(specs: list[KernelSpec], shelf: Store, jobs: int) -> Iterator[Outcome]:
    if jobs <= 1:
        yield from (_outcome(spec, shelf) for spec in specs)
        return
    import multiprocessing  # here, not above: `import pagedattn` stays fast
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from concurrent.futures.process import BrokenProcessPool

    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            with _interrupts_ignored():  # processes inherit that: an interrupt is this process's business
                futures = [pool.submit(_outcome, spec, shelf) for spec in specs]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise CompileError(
                "a process that compiles must live until its work is done; one ended early. Was it short of memory? Take fewer `jobs`. "
                'Is this a script? Call precompile under `if __name__ == "__main__":`.'
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _outcome(spec: KernelSpec, shelf: Store) -> Outcome:
    from pagedattn import build

    try:
        kernel = build.make(spec, shelf)
    except Exception as error:  # one kernel that cannot be made must not stop the others
        return Outcome(spec.name, spec.arch, error=f"{type(error).__name__}: {error}")
    if kernel.origin == "memory":
        return Outcome(spec.name, spec.arch, error=f"it compiled, and the store at {shelf.path} refused it.")
    return Outcome(spec.name, spec.arch, kernel.seconds, kernel.origin == "store")


def _with_bar(outcomes: Iterator[Outcome], total: int, shown: bool) -> Iterator[Outcome]:
    from tqdm import tqdm

    failed = 0
    with tqdm(total=total, unit="kernel", disable=not shown, dynamic_ncols=True) as bar:
        for outcome in outcomes:
            failed += bool(outcome.error)
            bar.set_postfix_str(f"{outcome.name}{f', {failed} failed' if failed else ''}", refresh=False)
            bar.update()
            yield outcome


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _row(name: str, outcomes: Iterable[Outcome]) -> str:
    all_ = list(outcomes)
    failed, reused = sum(bool(o.error) for o in all_), sum(o.reused for o in all_)
    spent = sum(o.seconds for o in all_ if not o.reused)
    return f"{name:<6}  {len(all_):>7}  {len(all_) - failed - reused:>8}  {reused:>6}  {failed:>6}  {spent:>10.1f}"
