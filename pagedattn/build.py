"""From a spec to a kernel: this process's memory, else the store, else render and compile."""

from __future__ import annotations

from collections import defaultdict
from threading import Lock

from pagedattn import entry, env, nvrtc, render, tuning
from pagedattn.errors import ArgumentError, NotPrecompiledError
from pagedattn.footprint import TILED
from pagedattn.kernel import Kernel
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec
from pagedattn.store import Store

_kernels: dict[KernelSpec, Kernel] = {}
_locks: defaultdict[KernelSpec, Lock] = defaultdict(Lock)
_guard = Lock()


def build(spec: KernelSpec) -> Kernel:
    """The kernel of `spec`, compiled if need be. No GPU is needed; threads that ask for the same spec share one compilation.

    Raises
    ------
    ArgumentError
        `spec` is no KernelSpec.
    CompileError, RenderError
        The source is wrong.
    NotPrecompiledError
        The store lacks it and PAGEDATTN_JIT=0.
    UnsupportedError
        NVRTC is missing, or has no such target.

    Examples
    --------
    >>> kernel = build(KernelSpec(op="merge", arch="sm_80"))
    >>> kernel.name, kernel.spill_bytes
    ('merge_f16_kvf16_d128_sm80', 0)
    """
    kernel = _kernels.get(spec) if isinstance(spec, KernelSpec) else None
    return _build_once(spec) if kernel is None else kernel


compile = build


def level(spec: KernelSpec) -> int | None:
    """How far the assembler optimises a kernel; None: its own default."""
    in_order = tuning.PREFILL_IN_ORDER.get(str(spec.mma), ()) if spec.op in TILED else ()
    return 1 if spec.head_dim in in_order else None


def make(spec: KernelSpec, shelf: Store, *, jit: bool = True) -> Kernel:
    """The kernel of `spec` from `shelf`, else compiled and put there; `build` without the memory.

    Raises
    ------
    NotPrecompiledError
        The store lacks it and `jit` is False.
    """
    source = render.render(spec)
    headers = render.included(source)
    recipe = entry.recipe(source, spec.arch, nvrtc.flags(spec.arch, level(spec)), nvrtc.version(), headers)
    compiled, origin = shelf.get(spec.name, entry.key(recipe)), "store"
    if compiled is None:
        if not jit:
            raise NotPrecompiledError(_missing(spec, shelf))
        compiled = nvrtc.compile(source, spec.name, spec.arch, headers, level(spec))
        origin = "compiled" if shelf.put(spec.name, recipe, source, compiled) else "memory"
    return Kernel(spec, source, compiled, origin)


def forget() -> None:
    """Empty this process's memory; the store stays."""
    with _guard:
        _kernels.clear()
        _locks.clear()


def _build_once(spec: KernelSpec) -> Kernel:
    if not isinstance(spec, KernelSpec):
        raise ArgumentError(f"`spec` must be a KernelSpec; got {spec!r}.")
    with _guard:
        lock = _locks[spec]
    with lock:
        kernel = _kernels.get(spec)
        if kernel is None:
            kernel = _kernels[spec] = make(spec, Store(), jit=env.jit_enabled())
    return kernel


def _missing(spec: KernelSpec, shelf: Store) -> str:
    if spec in shipped([spec.arch], [spec.dtype], [spec.head_dim], [spec.op]):
        types = f"--dtype {spec.dtype} --kv-dtype {spec.kv_dtype}"
        command = f"pagedattn precompile --arch {spec.arch} --op {spec.op} {types} --head-dim {spec.head_dim}"
    else:  # the repr of a spec is the expression that makes it
        command = f'python -c "import pagedattn as pa; pa.compile(pa.{spec!r})"'
    places = ", ".join(str(p) for p in (shelf.path, *shelf.layers))
    here = ".".join(map(str, nvrtc.version()))
    return f"PAGEDATTN_JIT=0 wants every kernel in the store; {spec.name} for NVRTC {here} is not in {places}. To put it there: {command}"
