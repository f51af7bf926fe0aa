"""What is here and what works: Python and its packages, the compiler, the GPU, the store; each tried, with what to do where it fails."""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import Any

import numpy as np

import pagedattn
from pagedattn import arch, devices, nvrtc, render, store
from pagedattn.errors import PagedAttnError
from pagedattn.spec import KernelSpec

LARGEST_DIFFERENCE = {"float16": 0.01, "int8": 0.05, "int4": 0.5}  # values of order 1 in 256 or 16 steps; rubbish is off by several
_COMPUTE_CAPABILITY = (75, 76)  # CUdevice_attribute: major, minor


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name : str
        What.
    state : str
        "ok"; "note": it is not here, and what remains works; "fail": it is here and does not work.
    found : str
        What was seen.
    hint : str
        What to do; empty if there is nothing.
    """

    name: str
    state: str
    found: str
    hint: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All checks; prints as a list. `ok` unless one of them failed."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(c.state != "fail" for c in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as plain data."""
        return {"ok": self.ok, "checks": [asdict(c) for c in self.checks]}

    def __str__(self) -> str:
        lines = []
        for check in self.checks:
            lines.append(f"{check.state:<4}  {check.name:<9}  {check.found}")
            if check.hint:
                lines.append(f"{'':17}-> {check.hint}")
        return "\n".join(lines)


def examine() -> Diagnosis:
    """Look at everything, and try it.

    Examples
    --------
    >>> [c.name for c in examine().checks if c.state == "fail"]
    []
    """
    return Diagnosis((_python(), _packages(), *_gpus(), _cupy(), _nvrtc(), _compiler(), _store(), *_devices()))


def _python() -> Check:
    found = f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}"
    return Check("python", "ok", found)


def _packages() -> Check:
    found = {name: _version(name) for name in ("numpy", "ml_dtypes", "jinja2", "tqdm")}
    text = ", ".join([f"pagedattn {pagedattn.__version__}", *(f"{name} {number or 'missing'}" for name, number in found.items())])
    if missing := [name for name, number in found.items() if not number]:
        return Check("packages", "fail", text, f"pip install {' '.join(missing)}")
    return Check("packages", "ok", text)


def _gpus() -> Iterator[Check]:
    try:
        found = _driver()
    except OSError as error:
        yield Check(
            "gpu", "note", f"no NVIDIA driver ({error})", "Without a GPU the default device is 'cpu'; kernels can still be compiled."
        )
        return
    except RuntimeError as error:
        yield Check(
            "gpu", "note", f"an NVIDIA driver without a usable GPU ({error})", "nvidia-smi tells more; the default device is 'cpu'."
        )
        return
    driver, gpus = found
    for index, (name, number, memory) in enumerate(gpus):
        text = f"cuda:{index}, {name}, compute capability {number // 10}.{number % 10}, {memory / 2**30:.0f} GiB, driver for CUDA {driver}"
        try:
            yield Check("gpu", "ok", f"{text}; kernels for {arch.of_device(number)}")
        except PagedAttnError as error:
            yield Check("gpu", "note", text, str(error))


def _driver() -> tuple[str, list[tuple[str, int, int]]]:
    """The driver's CUDA version, and (name, compute capability times ten, bytes of memory) of each GPU, asked without CuPy."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")

    def ask(function: str, *arguments: Any) -> None:
        if status := getattr(library, function)(*arguments):
            raise RuntimeError(f"{function} returned {status}")

    ask("cuInit", 0)
    number, count = ctypes.c_int(), ctypes.c_int()
    ask("cuDriverGetVersion", ctypes.byref(number))
    ask("cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise RuntimeError("cuDeviceGetCount found none")
    gpus = []
    for index in range(count.value):
        device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
        ask("cuDeviceGet", ctypes.byref(device), index)
        ask("cuDeviceGetName", name, len(name), device)
        ask("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        capability = [ctypes.c_int(), ctypes.c_int()]
        for value, attribute in zip(capability, _COMPUTE_CAPABILITY, strict=True):
            ask("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
        gpus.append((name.value.decode(), 10 * capability[0].value + capability[1].value, memory.value))
    return f"{number.value // 1000}.{number.value % 1000 // 10}", gpus


def _cupy() -> Check:
    found = _cupy_wheels()
    text = ", ".join(f"{name} {_version(name)}" for name in found)
    if not found:
        return Check("cupy", "note", "not installed", "For a GPU, and to compile kernels: pip install 'pagedattn[cuda12]' (or cuda13).")
    if len(found) > 1:
        return Check("cupy", "fail", text, f"They overwrite each other. Keep one: pip uninstall {' '.join(found)}, then install one again.")
    return Check("cupy", "ok", text)


def _nvrtc() -> Check:
    try:
        major, minor = nvrtc.version()
        return Check("nvrtc", "ok", f"{major}.{minor}, targets {' '.join(a.name for a in nvrtc.archs())}")
    except PagedAttnError as error:
        return Check("nvrtc", "fail" if _cupy_wheels() else "note", str(error))


def _compiler() -> Check:
    spec = KernelSpec(op="merge")
    try:
        nvrtc.version()
    except PagedAttnError:
        return Check("compile", "note", "no compiler")

    def compile_one() -> str:
        source = render.render(spec)
        made = nvrtc.compile(source, spec.name, spec.arch, render.included(source))
        return f"{spec.name} compiles, {made.seconds:.2f} s"

    return _tried("compile", compile_one)


def _store() -> Check:
    shelf = store.Store()
    entries = shelf.entries()
    text = f"{shelf.path}, {len(entries)} kernels, {sum(e.num_bytes for e in entries) / 2**20:.1f} MiB"
    if why := shelf.why_unwritable():
        return Check("store", "note", f"{text}; {why}", "Every process compiles anew. Set PAGEDATTN_HOME to a writable folder.")
    return Check("store", "ok", text)


def _devices() -> Iterator[Check]:
    default = devices.get().name
    for name in dict.fromkeys(("cpu", default)):
        yield _tried(name, lambda name=name: _attends(name))  # type: ignore[misc]
    yield Check("default", "ok", f"device {default!r}")


def _attends(device: str) -> str:
    """Append and attend on a few tokens, over a cache of each stored type, and compare with a dense computation."""
    start = time.perf_counter()
    found = {}
    for kv_dtype, limit in LARGEST_DIFFERENCE.items():
        found[kv_dtype] = worst = _difference(device, kv_dtype)
        if not worst < limit:
            raise ArithmeticError(f"attention on {device} over {kv_dtype} must be within {limit} of a dense computation; got {worst:.3g}")
    seconds = time.perf_counter() - start
    return f"attends; within {', '.join(f'{d:.1e} ({t})' for t, d in found.items())} of a dense computation, {seconds:.2f} s"


def _difference(device: str, kv_dtype: str) -> float:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((20, heads, 64)).astype(np.float16) for heads in (2, 1, 1))
    cache = pagedattn.KVCache(2, num_kv_heads=1, head_dim=64, block_len=16, kv_dtype=kv_dtype, device=device)
    batch = cache.extend([cache.new_sequence()], [20])
    target = devices.get(device)
    out = target.to_host(pagedattn.paged_attention(target.asarray(q), cache, batch, k=target.asarray(k), v=target.asarray(v)))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float32), np.repeat(k, 2, axis=1).astype(np.float32)) / 8
    weights = np.exp(np.where(np.tri(20, dtype=bool), scores, -np.inf))
    dense = np.einsum("hqk,kd->qhd", weights / weights.sum(-1, keepdims=True), v[:, 0].astype(np.float32))
    return float(np.abs(out.astype(np.float32) - dense).max())


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", attempt())
    except Exception as error:  # whatever went wrong is the finding
        return Check(name, "fail", f"{type(error).__name__}: {error}")


def _cupy_wheels() -> list[str]:
    return sorted({name for d in distributions() if (name := d.metadata["Name"] or "").startswith("cupy")})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
