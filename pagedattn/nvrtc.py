"""From CUDA source to a cubin: NVRTC, reached through CuPy; no GPU and no driver needed."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pagedattn import arch as targets
from pagedattn import env
from pagedattn.arch import Arch
from pagedattn.errors import CompileError, UnsupportedError

# Line info names files by absolute path; without this root of our own it would hold the folder that the process happens to run in.
ROOT = "/pagedattn/"
HEADERS = "kernels/"
CONTEXT_LINES = 2


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of one source.

    Attributes
    ----------
    cubin, ptx : bytes
        Machine code (ELF) and the PTX that it was assembled from.
    log : str
        What NVRTC and ptxas said; the same for the same input.
    seconds : float
        What it took.
    """

    cubin: bytes
    ptx: bytes
    log: str
    seconds: float


def version() -> tuple[int, int]:
    """The version of the NVRTC at hand, such as (12, 9).

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    return _library()[1]


def archs() -> list[Arch]:
    """The targets that both this package and the NVRTC at hand know, oldest first."""
    known = set(_library()[0].getSupportedArchs())
    return [a for n, a in targets.ARCHS.items() if n >= targets.OLDEST and n in known]


def require(arch: str | Arch) -> None:
    """Return if the NVRTC at hand has this target, and raise UnsupportedError, which tells what to install, if it has not."""
    target = targets.parse(arch)
    library, found = _library()
    supported = library.getSupportedArchs()
    if target.number in supported:
        return
    here = f"{found[0]}.{found[1]}"
    if target.number < min(supported):
        raise UnsupportedError(f"{target} needs NVRTC 12.x; found {here}. Install pagedattn[cuda12] to compile for it.")
    raise UnsupportedError(
        f"{target} needs a newer NVRTC; found {here}, whose newest target is sm_{max(supported)}. "
        f"Upgrade nvidia-cuda-nvrtc{'-cu12' if found[0] == 12 else ''}, or install pagedattn[cuda13]."
    )


def flags(arch: str | Arch, level: int | None = None) -> tuple[str, ...]:
    """The compiler's options for a target; `level` is the assembler's, None: its own default.

    Line info costs no compile time and no register; profilers show source by it. The folder of the process is never searched.

    >>> flags("sm_90")[0]
    '-arch=sm_90'
    """
    return (
        f"-arch={targets.parse(arch).name}",
        "-std=c++17",
        "-default-device",
        "-lineinfo",
        "--no-source-include",
        "--ptxas-options=-v",
        *(() if level is None else (f"--ptxas-options=-O{level}",)),
    )


def compile(source: str, name: str, arch: str | Arch, headers: Mapping[str, bytes], level: int | None = None) -> Compiled:
    """Compile one kernel.

    Parameters
    ----------
    source : str
        CUDA C++; the entry point is `name`.
    name : str
        Names the source in line info, in errors, and the file that a failure leaves.
    arch : str or Arch
        The target.
    headers : mapping of str to bytes
        What #include "..." may name.
    level : int, optional
        How far the assembler optimises; None: its own default.

    Raises
    ------
    CompileError
        The text holds the first error and the lines around it; `.log` all that was said.
    UnsupportedError
        NVRTC is missing, or has no such target.
    """
    target = targets.parse(arch)
    require(target)
    library = _library()[0]
    start = time.perf_counter()
    names = list(headers)
    located = [f'#line 1 "{ROOT}{HEADERS}{n}"\n'.encode() + headers[n] for n in names]
    program = library.createProgram(source, f"{ROOT}{name}.cu", located, [n.encode() for n in names])
    try:
        try:
            library.compileProgram(program, list(flags(target, level)))
        except library.NVRTCError as error:
            log = _tidy(library.getProgramLog(program)) or str(error)
            raise _failure(source, name, target, headers, log, _ptx(library, program)) from None
        # CuPy drops the last byte, as of a string; it is the zero that ends the last program header, and NVIDIA's tools miss it.
        cubin = library.getCUBIN(program) + b"\0"
        ptx, log = library.getPTX(program), _tidy(library.getProgramLog(program))
    finally:
        library.destroyProgram(program)
    return Compiled(cubin, ptx, log, time.perf_counter() - start)


@cache
def _library() -> tuple[Any, tuple[int, int]]:
    try:
        from cupy.cuda import nvrtc

        major, minor = nvrtc.getVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise UnsupportedError(
            f"kernels are compiled by NVRTC, reached through CuPy; got {type(error).__name__}: {str(error).rstrip('.')}. "
            "Install pagedattn[cuda12] (Volta to Blackwell) or pagedattn[cuda13]."
        ) from error
    return nvrtc, (major, minor)


def _ptx(library: Any, program: int) -> bytes:
    """The PTX of a program that only ptxas refused; empty if NVRTC did not get so far."""
    try:
        ptx: bytes = library.getPTX(program)
        return ptx
    except library.NVRTCError:
        return b""


def _tidy(log: str) -> str:
    """The log without terminators, our root, the line that differs from run to run, and one that every sm_70 kernel gets."""
    lines = log.replace("\0", "").replace(ROOT, "").splitlines()
    noise = ("Compile time =", "Architectures prior to '<compute/sm>_75' are deprecated")
    return "\n".join(line for line in lines if not any(n in line for n in noise)).strip()


def _failure(source: str, name: str, target: Arch, headers: Mapping[str, bytes], log: str, ptx: bytes) -> CompileError:
    texts = {f"{name}.cu": source, **{HEADERS + n: b.decode(errors="replace") for n, b in headers.items()}}
    what, place = _first_error(log, ptx.decode(errors="replace"))
    at = excerpt = ""
    if place:
        at = f", at {place[0]}({place[1]})"
        excerpt = _excerpt(texts.get(place[0], ""), place[1])
    kept = _keep(source, name)
    text = f"{name} did not compile for {target}: {what}{at}.{excerpt}\nThe source is {kept}; `.log` has all that the compiler said."
    return CompileError(text, log)


def _first_error(log: str, ptx: str) -> tuple[str, tuple[str, int] | None]:
    """The first error's text, and the file and line that it points to."""
    if match := re.search(r"^(.+?)\((\d+)\): (?:catastrophic )?error(?: #[\w-]+)?: (.*)$", log, re.MULTILINE):
        return match[3].rstrip("."), (match[1], int(match[2]))
    if match := re.search(r"^ptxas .*, line (\d+); (?:error|fatal)\s*: (.*)$", log, re.MULTILINE):
        return f"ptxas: {match[2].rstrip('.')}", _origin(ptx, int(match[1]))
    if match := re.search(r"^ptxas (?:error|fatal)\s*: (.*)$", log, re.MULTILINE):
        return f"ptxas: {match[1].rstrip('.')}", None
    return (log.splitlines() or ["no reason given"])[0].rstrip("."), None


def _origin(ptx: str, line: int) -> tuple[str, int] | None:
    """The source line of a line of PTX, by the .loc above it."""
    locations = re.findall(r"^\s*\.loc\s+(\d+)\s+(\d+)", "\n".join(ptx.splitlines()[:line]), re.MULTILINE)
    if not locations:
        return None
    number, source_line = locations[-1]
    match = re.search(rf'^\s*\.file\s+{number}\s+"{re.escape(ROOT)}([^"]+)"', ptx, re.MULTILINE)
    return (match[1], int(source_line)) if match else None


def _excerpt(text: str, line: int) -> str:
    lines = text.splitlines()
    first, last = max(1, line - CONTEXT_LINES), min(len(lines), line + CONTEXT_LINES)
    return "".join(f"\n{'>' if i == line else ' '} {i:4} | {lines[i - 1]}" for i in range(first, last + 1))


def _keep(source: str, name: str) -> str:
    """Write a source that failed where it can be looked at: under the store, else in a temporary folder; tells where."""
    import tempfile  # here and not above: `import pagedattn` stays quick

    for place in ("store", "temporary"):
        try:
            folder = env.home() / "failed" if place == "store" else Path(tempfile.mkdtemp(prefix="pagedattn-"))
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{name}.cu"
            path.write_text(source, encoding="utf-8")
            return str(path)
        except (OSError, RuntimeError):  # RuntimeError: a user without a home folder
            continue
    return "nowhere, for no folder could be written"
