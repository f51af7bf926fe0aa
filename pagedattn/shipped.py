"""The shipped set: the kernels that calls can ask for, which are compiled ahead of time and tested."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pagedattn import arch as archs
from pagedattn import dtypes
from pagedattn.footprint import TILED
from pagedattn.layout import HEAD_DIMS
from pagedattn.spec import HEAD_PACKS, KV_DTYPES, OPS, SPLITS, KernelSpec, decode_heads


def shipped(
    archs_: Iterable[str] | None = None,
    dtypes_: Iterable[str] | None = None,
    head_dims: Iterable[int] | None = None,
    ops: Iterable[str] | None = None,
    kv_dtypes: Iterable[str | None] | None = None,
) -> list[KernelSpec]:
    """The shipped set: every kernel that a call on these targets can ask for. In `kv_dtypes`, None stands for the activations' own type.

    Where `dtypes_` is None, targets below sm_80 get float16 only.

    >>> len(shipped(["sm_90"], ["float16"], [128]))
    68
    """
    targets = [a.name for n, a in archs.ARCHS.items() if n >= archs.OLDEST] if archs_ is None else archs_
    types = None if dtypes_ is None else tuple(dtypes_)
    dims = tuple(HEAD_DIMS if head_dims is None else head_dims)
    chosen = tuple(OPS if ops is None else ops)
    stored = tuple(KV_DTYPES if kv_dtypes is None else kv_dtypes)
    specs = (
        spec
        for target in targets
        for dtype in (_types(target) if types is None else types)
        for dim in dims
        for op in chosen
        for kv_dtype in (stored if op not in ("varlen", "merge", "ranges") else (None,))
        for spec in _variants(op, dtype, kv_dtype, dim, target)
    )
    return list(dict.fromkeys(specs))


def _types(target: str) -> tuple[str, ...]:
    return dtypes.ACTIVATIONS if archs.parse(target).family == "sm80" else ("float16",)


def _variants(op: str, dtype: str, kv_dtype: str | None, head_dim: int, target: str) -> Iterator[KernelSpec]:
    if op != "decode":
        for general in (False, True) if op in TILED else (False,):
            spec = KernelSpec(op, dtype, kv_dtype, head_dim, target, general=general)
            for tile in (spec, spec.for_long()):
                if tile is not None:
                    yield from dict.fromkeys((tile, tile.in_parts))
        return
    stored = dtypes.stored(kv_dtype, dtypes.activation(dtype)).name
    for heads in decode_heads(head_dim, stored, archs.parse(target).mma) or HEAD_PACKS:  # none: KernelSpec says why
        for splits, fused in (*((s, False) for s in SPLITS), *([("flat", True)] if archs.parse(target).family == "sm80" else ())):
            for general in (False, True):
                yield KernelSpec(op, dtype, kv_dtype, head_dim, target, heads=heads, splits=splits, general=general, fused=fused)
