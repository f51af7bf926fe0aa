"""explain: what a call would launch, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pagedattn import checks, dispatch
from pagedattn.errors import ArgumentError, PagedAttnError
from pagedattn.layout import BlockLayout
from pagedattn.parallel import WHOLE
from pagedattn.spec import KernelSpec

if TYPE_CHECKING:
    from pagedattn.batch import Batch
    from pagedattn.cache import KVCache
    from pagedattn.devices.base import Device


@dataclass(frozen=True)
class Step:
    """One launch: the kernel, its grid and the reason for it. `spec` is None where NumPy computes."""

    spec: KernelSpec | None
    grid: int
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The launches of one attention call; prints as text and renders in Jupyter. `family` says which source serves the device, and why."""

    device: str
    steps: tuple[Step, ...]
    family: str = ""

    def __str__(self) -> str:
        lines = [f"on {self.device}:{self.family and ' '}{self.family}"]
        for step in self.steps:
            lines.append(f"  {step.spec.name if step.spec else 'NumPy'}")
            if step.spec:
                lines.append(f"    {step.grid} CTAs of {step.spec.threads} threads, {step.spec.shared_bytes} bytes of shared memory each")
            lines.append(f"    {step.reason}")
        if not self.steps:
            lines.append("  nothing: the batch has no queries")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape  # here and not above: `import pagedattn` stays quick

        return f"<pre>{escape(str(self))}</pre>"


def explain(q: Any, cache: KVCache, batch: Batch, *, num_splits: int | str | None = None, **keywords: Any) -> Explanation:
    """The kernels, tiles, splits and grid that `paged_attention` would use for these arguments, and why.

    Nothing is compiled or launched. With a `mask`, prefill takes every sequence; with that, `softcap` or `alibi_slopes` it has kernels of
    its own. Other keywords of `paged_attention` change no choice.

    Examples
    --------
    >>> import numpy as np, pagedattn as pa
    >>> cache = pa.KVCache(4, num_kv_heads=2, head_dim=64, block_len=16, device="cpu")
    >>> batch = cache.extend([cache.new_sequence()], [3])
    >>> print(pa.explain(np.zeros((3, 8, 64), np.float16), cache, batch))
    on cpu:
      NumPy
        device 'cpu' computes with NumPy: 0 sequences with one query, 1 with more
    """
    checks.layer_of(cache, batch, 0)
    cp = checks.parallel(keywords.get("cp"), cache, batch) or WHOLE
    device, layout = cache.device, cache.layout
    counts = f"{batch.num_decode} sequences with one query, {batch.num_prefill} with more"
    if device.arch is None:
        return Explanation(device.name, (Step(None, 0, f"device 'cpu' computes with NumPy: {counts}"),) if batch.num_tokens else ())
    if q.shape[1] == 0 or q.shape[1] % layout.num_kv_heads:
        raise ArgumentError(
            f"`q.shape[1]`, the query heads, must be a multiple of the cache's {layout.num_kv_heads} KV heads; got {q.shape[1]}."
        )
    group = q.shape[1] // layout.num_kv_heads
    splits = 0 if num_splits is None else checks.splits(num_splits, layout.quantised)
    steps = []
    masked = keywords.get("mask") is not None  # only prefill reads masks
    adjusted = any(keywords.get(name) is not None for name in ("softcap", "alibi_slopes", "mask"))
    if batch.num_decode and not masked:
        spec, grid, packs, _ = dispatch.plan_decode(device, layout, group, batch, splits, cp)  # type: ignore[arg-type]
        how = {True: "one list of key tiles, balanced over one wave of CTAs", False: f"every sequence cut by num_splits={num_splits!r}"}[
            splits == 0
        ]
        steps.append(
            Step(
                spec, grid, f"{counts}; decode reads K and V once for {min(group, spec.heads or 0)} of {group} heads ({packs} packs); {how}"
            )
        )
    if batch.num_prefill or (masked and batch.num_decode):
        chosen = dispatch.plan_prefill(device, layout, q.shape[1], batch, splits, adjusted=adjusted, cp=cp)  # type: ignore[arg-type]
        spec, tiles, pack, parts = chosen
        assert spec.cta_q is not None
        how = f"; {parts} CTAs share the keys of each" if parts > 1 else ""
        steps.append(Step(spec, tiles * parts, f"{counts}; prefill in {tiles} tiles of {spec.cta_q // pack} tokens x {pack} heads{how}"))
    return Explanation(device.name, tuple(steps), _family(device))


def _family(device: Device) -> str:
    assert device.source is not None
    source = device.source
    why = {"sm70": f"{source} has no cp.async", "sm80": f"{source} has cp.async and mma.{source.mma}"}[source.family]
    asked = f"; the device's name asks for its kernels, compiled for {device.arch}" if source != device.arch else ""
    return f"the {source.family.upper()} family (mma.{source.mma}), for {why}{asked}"


@dataclass(frozen=True)
class Support:
    """Whether a combination is served; falsy with a `reason` where it is not."""

    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason


def supports(
    *,
    arch: str = "sm_80",
    dtype: str = "float16",
    kv_dtype: str | None = None,
    head_dim: int = 128,
    block_len: int = 64,
    op: str = "decode",
) -> Support:
    """Whether this version has kernels for a combination.

    >>> bool(supports(arch="sm_90", dtype="bfloat16", head_dim=256))
    True
    >>> supports(arch="sm_70", dtype="bfloat16").reason[:46]
    'bfloat16 needs the SM80 family, sm_80 and up: '
    """
    try:
        BlockLayout(num_kv_heads=1, head_dim=head_dim, block_len=block_len, dtype=dtype, kv_dtype=kv_dtype)
        KernelSpec(op=op, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, arch=arch)
    except PagedAttnError as error:
        return Support(str(error))
    return Support()
