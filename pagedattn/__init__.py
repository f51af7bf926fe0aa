"""pagedattn: paged KV-cache attention whose kernels are rendered and compiled when they are needed; no build step.

`import pagedattn as pa` imports neither CuPy nor Jinja2: what needs them imports them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pagedattn.append import append
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import (
    ArgumentError,
    CompileError,
    DeviceFault,
    NotPrecompiledError,
    OutOfBlocksError,
    PagedAttnError,
    RenderError,
    UnsupportedError,
)
from pagedattn.explain import explain, supports
from pagedattn.gather import gather
from pagedattn.layout import BlockLayout
from pagedattn.merge import merge
from pagedattn.ops import paged_attention
from pagedattn.parallel import ContextParallel
from pagedattn.params import AttentionParams
from pagedattn.precompile import precompile
from pagedattn.rope import Rope
from pagedattn.spec import KernelSpec
from pagedattn.tune import tune
from pagedattn.varlen import varlen_attention
from pagedattn.warmup import warmup
from pagedattn.workspace import workspace_bytes

if TYPE_CHECKING:
    from pagedattn import distributed as distributed
    from pagedattn import testing as testing
    from pagedattn.build import build as compile

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "AttentionParams",
    "Batch",
    "BlockLayout",
    "CompileError",
    "ContextParallel",
    "DeviceFault",
    "KVCache",
    "KernelSpec",
    "NotPrecompiledError",
    "OutOfBlocksError",
    "PagedAttnError",
    "RenderError",
    "Rope",
    "UnsupportedError",
    "append",
    "compile",
    "explain",
    "gather",
    "merge",
    "paged_attention",
    "precompile",
    "supports",
    "tune",
    "varlen_attention",
    "warmup",
    "workspace_bytes",
]

if not TYPE_CHECKING:  # a type checker shall know a wrong name

    def __getattr__(name: str) -> Any:
        if name in ("distributed", "testing"):
            from importlib import import_module

            return import_module(f"pagedattn.{name}")
        if name != "compile":
            raise AttributeError(f"module 'pagedattn' has no attribute {name!r}")
        from pagedattn.build import build  # here and not above: `import pagedattn` stays quick

        globals()["compile"] = build
        return build
