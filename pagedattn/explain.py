"""explain: what a call would launch, and why."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pagedattn import checks, dispatch, dtypes, tuned
from pagedattn.arrays import adopt, stream_of
from pagedattn.batch import Batch
from pagedattn.cache import KVCache
from pagedattn.errors import ArgumentError, PagedAttnError
from pagedattn.extras import ranges_shape, resolve
from pagedattn.footprint import RANGE_QUERIES
from pagedattn.fusion import why_not
from pagedattn.layout import BlockLayout
from pagedattn.ops import paged_attention
from pagedattn.parallel import WHOLE, ContextParallel
from pagedattn.spec import KernelSpec
from pagedattn.values import flag, whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device

# the call's own keywords, with their defaults
KEYWORDS = {name: p.default for name, p in inspect.signature(paged_attention).parameters.items() if p.kind is p.KEYWORD_ONLY}
_OPTIONS = ("rope", "q_bias", "k_bias", "v_bias", "logn_max_position", "alibi_slopes", "mask")


@dataclass(frozen=True)
class Step:
    """One launch: the kernel, its grid and the reason for it. `spec` is None where NumPy computes; `row` is empty where none was chosen."""

    spec: KernelSpec | None
    grid: int
    reason: str
    row: str = ""


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
            if step.row:
                lines.append(f"    tile: {step.row}")
            lines.append(f"    {step.reason}")
        if not self.steps:
            lines.append("  nothing: the batch has no queries")
        return "\n".join(lines)

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data."""
        steps = [{"kernel": s.spec.name if s.spec else None, "grid": s.grid, "row": s.row, "reason": s.reason} for s in self.steps]
        return {"device": self.device, "family": self.family, "steps": steps}

    def _repr_html_(self) -> str:
        from html import escape  # here and not above: `import pagedattn` stays quick

        return f"<pre>{escape(str(self))}</pre>"


def explain(q: Any, cache: KVCache, batch: Batch, **keywords: Any) -> Explanation:
    """The kernels, tiles, splits and grid that `paged_attention` would use for these arguments, and why.

    Nothing is compiled or launched, and nothing written. The arguments are checked as the call checks them; keywords are the call's. With a
    `mask`, prefill takes every sequence. "general" kernels are for masks, `softcap` and `alibi_slopes`, and in decode for `cp` and several
    packs of heads, too; prefill's "parts" for query tiles whose keys several CTAs or ranks share, "whole" for others. Rows of `k` and `v`,
    and queries that `rope`, `q_bias` or `logn_max_position` change, take a launch of append first, but where decode writes the rows itself.
    A tile is a row of the shipped tuning table, or of the file that `pagedattn tune` has left for GPUs of this name.

    Raises
    ------
    ArgumentError
        What the call would refuse, but for the size of a workspace, and keywords that it does not have.

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
    for name in keywords:
        if name not in KEYWORDS:
            raise ArgumentError(f"`{name}` is no keyword of paged_attention, whose own are: {', '.join(KEYWORDS)}.")
    return _explained(_checked(q, cache, batch, **{**KEYWORDS, **keywords}), cache, batch, keywords.get("num_splits"))


def _explained(call: _Call, cache: KVCache, batch: Batch, num_splits: Any) -> Explanation:
    device, layout = cache.device, cache.layout
    counts = f"{batch.num_decode} sequences with one query, {batch.num_prefill} with more"
    if device.arch is None:
        return Explanation(device.name, (Step(None, 0, f"device 'cpu' computes with NumPy: {counts}"),) if batch.num_tokens else ())
    group = call.num_heads // layout.num_kv_heads
    steps = []
    if batch.num_tokens and call.appends and not call.fused:
        assert device.source is not None
        common = (layout.dtype, str(layout.kv_dtype), layout.head_dim, device.arch.name, device.source.name)
        steps.append(Step(dispatch.spec_for("append", *common), batch.num_tokens, f"append first: it {call.appends}, a CTA for each token"))
    if batch.num_decode and not call.masked:  # only prefill reads masks
        spec, grid, packs, _ = dispatch.plan_decode(device, layout, group, batch, call.splits, call.adjusted, call.cp, call.fused)  # type: ignore[arg-type]
        cuts = f"every sequence cut by num_splits={num_splits!r}"
        how = cuts if call.splits else "one list of key tiles, balanced over one wave of CTAs"
        reads = f"reads K and V once for {min(group, spec.heads or 0)} of {group} heads ({packs} packs)"
        writes = "writes the rows of k and v and " if call.fused else ""
        steps.append(Step(spec, grid, f"{counts}; decode {writes}{reads}; {how}", _row(spec, device)))
    if call.masked and batch.num_tokens and (shape := ranges_shape(batch)):
        entries = shape[0] * shape[1]
        reason = f"ranges first: of the keys that the mask keeps for {RANGE_QUERIES} neighbouring queries of a sequence, a CTA for each"
        steps.append(Step(dispatch.ranges_spec(device), entries, reason))  # type: ignore[arg-type]
    if batch.num_prefill or (call.masked and batch.num_decode):
        chosen = dispatch.plan_prefill(device, layout, call.num_heads, batch, call.splits, adjusted=call.adjusted, cp=call.cp)  # type: ignore[arg-type]
        spec, tiles, pack, parts = chosen
        assert spec.cta_q is not None
        how = f"; {parts} CTAs share the keys of each" if parts > 1 else ""
        how += f"; {call.cp.size} ranks share the keys" if call.cp.size > 1 else ""
        reason = f"{counts}; prefill in {tiles} tiles of {spec.cta_q // pack} tokens x {pack} heads{how}"
        steps.append(Step(spec, tiles * parts, reason, _row(spec, device)))
    return Explanation(device.name, tuple(steps), _family(device))


def explain_shape(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    seqlens_k: Sequence[int],
    seqlens_q: Sequence[int] | None = None,
    block_len: int = 64,
    dtype: str = "float16",
    kv_dtype: str | None = None,
    device: str | Device | None = None,
    softcap: float | None = None,
    num_splits: int | str | None = None,
    alibi: bool = False,
    mask: bool = False,
) -> Explanation:
    """`explain` without arrays: for sequences of so many tokens, of which `seqlens_q` are new, None: one of each.

    `alibi` and `mask` say that the call has `alibi_slopes` and a `mask`; `softcap` and `num_splits` are the call's.

    Examples
    --------
    >>> print(explain_shape(num_heads=8, num_kv_heads=2, head_dim=64, seqlens_k=[100], device="interpreter:sm_90"))
    on interpreter:sm_90: the SM80 family (mma.m16n8k16), for sm_90 has cp.async and mma.m16n8k16
      decode_f16_kvf16_d64_h8_s16x3_w12_flat_sm90
        2 CTAs of 384 threads, 172800 bytes of shared memory each
        tile: warps=12, stages=3, cta_s=16; row 1 of 2 of the shipped table
        1 sequences with one query, 0 with more; decode reads K and V once for 4 of 4 heads (1 packs); one list of key tiles, balanced ...
    """
    kind: dict[str, Any] = {"head_dim": head_dim, "block_len": block_len, "dtype": dtype, "kv_dtype": kv_dtype, "device": device}
    cache = KVCache(1, num_kv_heads=num_kv_heads, **kind)  # of one block, which every sequence names: nothing is read
    new = [1] * len(seqlens_k) if seqlens_q is None else list(seqlens_q)
    widest = max([-(-n // block_len) for n in seqlens_k], default=1)
    batch = Batch(np.zeros((len(seqlens_k), max(widest, 1)), np.int32), new, list(seqlens_k), device=cache.device)
    heads = whole(num_heads)
    if heads is None or heads < 1:
        raise ArgumentError(f"`num_heads` must be a positive integer; got {num_heads!r}.")
    row = cache.device.zeros((1, heads, head_dim), dtypes.of(dtype).numpy)  # one stands for all: nothing is read
    q = np.broadcast_to(row, (batch.num_tokens, heads, head_dim))
    call = _checked(q, cache, batch, **{**KEYWORDS, "softcap": softcap, "num_splits": num_splits})
    alibi, mask = flag(alibi, "alibi"), flag(mask, "mask")
    return _explained(call._replace(masked=mask, adjusted=call.adjusted or alibi or mask), cache, batch, num_splits)


class _Call(NamedTuple):
    """Of a call that was found good, what the choice of kernels follows from.

    `appends` says what changes or is written before attention, if anything; `fused` whether decode's launch does that.
    """

    num_heads: int
    splits: int
    masked: bool
    adjusted: bool
    appends: str
    cp: ContextParallel
    fused: bool


def _checked(q: Any, cache: KVCache, batch: Batch, **given: Any) -> _Call:
    """The checks of paged_attention, which its plans spare it from the second call on."""
    checks.layer_of(cache, batch, given["layer"])
    cp = checks.parallel(given["cp"], cache, batch) or WHOLE
    device, stream, cap = cache.device, given["stream"], given["softcap"]
    scale = 1.0 if given["softmax_scale"] is None else checks.positive(given["softmax_scale"], "softmax_scale")
    if given["window_size"] is not None:
        checks.window(given["window_size"])
    if cap is not None:
        checks.positive(cap, "softcap")
    splits = 0 if given["num_splits"] is None else checks.splits(given["num_splits"], cache)
    for name in ("causal", "return_lse"):
        flag(given[name], name)
    if stream is None:
        stream = stream_of(q, device)
    elif device.arch is None:
        device.using(stream)
    rows = adopt(q, device, "q", stream=stream)
    checks.batch_of(cache, batch, cp)
    checks.queries(rows, cache, batch)
    k, v, options = given["k"], given["v"], {name: given[name] for name in _OPTIONS}
    options.update(mask=checks.mask(given["mask"]), alibi_slopes=checks.slopes(given["alibi_slopes"], cache))
    if (k is None) != (v is None):
        raise ArgumentError(f"`k` and `v` must come together; got only `{'v' if k is None else 'k'}`.")
    if k is None and not (given["k_bias"] is given["v_bias"] is None):
        raise ArgumentError("`k_bias` and `v_bias` are added to new rows, and must come with `k` and `v`; got none. Pass them to append.")
    for name, x in (("k", k), ("v", v)) if k is not None else ():
        new = adopt(x, device, name, stream=stream)
        checks.rows(new, cache, name, (batch.num_tokens, cache.layout.num_kv_heads, cache.layout.head_dim))
    with device.using(stream):
        extras = resolve(cache, batch, rows.shape[1], **options, softmax_scale=scale)
    if given["out"] is not None:
        checks.output(adopt(given["out"], device, "out", stream=stream, written=True), cache, rows.shape)
    if given["sinks"] is not None:
        checks.sinks(given["sinks"], cache, rows.shape[1], stream)
    if given["lse"] is not None:
        checks.lse(given["lse"], cache, rows.shape[:2], stream)
    if given["workspace"] is not None:
        checks.workspace(given["workspace"], cache, stream)
    biased = "adds biases to and " if not (given["k_bias"] is given["v_bias"] is None) else ""
    appends = [f"{biased}writes the rows of k and v"] if k is not None else []
    if extras.prepares("attention"):
        appends.append("turns, biases or scales the queries")
    masked, adjusted = extras.mask is not None, cap is not None or extras.adjusts
    hindered = why_not(device, cache.layout, rows.shape[1], batch, splits, extras, cp) if k is not None else "no rows"  # type: ignore[arg-type]
    if k is not None and hindered:
        appends[0] += f" (not decode, as {hindered})"
    return _Call(rows.shape[1], splits, masked, adjusted, " and ".join(appends), cp, not hindered)


def _row(spec: KernelSpec, device: Device) -> str:
    """What the tuning table says for a spec, and whose word that is."""
    row = tuned.row_of(spec, tuned.model_for(spec.splits, device.model))
    return f"{', '.join(f'{name}={value}' for name, value in row.tile._asdict().items())}; {row.origin}"


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
