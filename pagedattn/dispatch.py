"""From a problem to its launches: which kernels, which grid, which parameters.

Sequences with one query token are decode's, longer ones prefill's; a mixed batch takes one launch of each.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pagedattn import arch as archs
from pagedattn import params, query_tiles, tuned
from pagedattn.errors import UnsupportedError
from pagedattn.parallel import WHOLE, ContextParallel
from pagedattn.spec import SPLITS, KernelSpec, decode_heads

if TYPE_CHECKING:
    from pagedattn.arch import Arch
    from pagedattn.batch import Batch
    from pagedattn.layout import BlockLayout
    from pagedattn.problem import Problem

_LOG2_E = 1.4426950408889634
_MOST_UNITS = 1 << 31  # the kernel counts in 32 bits


class Target(Protocol):
    """What dispatch asks of a device."""

    @property
    def arch(self) -> Arch | None: ...
    @property
    def source(self) -> Arch | None: ...
    @property
    def model(self) -> str: ...
    @property
    def sm_count(self) -> int: ...
    def address(self, x: Any) -> int: ...


class Launch(NamedTuple):
    """A kernel, its grid (CTAs), its packed AttentionParams, and the workspace that it wants.

    The operands among the parameters, `params.OPERANDS`, are 0: the device fills them in.
    """

    spec: KernelSpec
    grid: int
    params: bytes
    partial_bytes: int = 0
    counts: int = 0


@cache
def spec_for(
    op: str,
    dtype: str,
    kv_dtype: str,
    head_dim: int,
    arch: str,
    source: str,
    heads: int | None = None,
    splits: str | None = None,
    general: bool = False,
    model: str = "",
    fused: bool = False,
) -> KernelSpec:
    """The spec of an operation that target `source` ships, compiled for `arch`; on GPUs called `model` with the row tuned there."""
    of = archs.parse(source)
    mma = of.mma if op in ("decode", "prefill", "varlen") else None
    spec = KernelSpec(op, dtype, kv_dtype, head_dim, arch, of.family, mma, heads=heads, splits=splits, general=general, fused=fused)
    return tuned.taken(spec, tuned.model_for(splits, model))


def forget() -> None:
    """Empty what this process knows of tuned rows: the next call looks for their file again."""
    tuned.forget()
    spec_for.cache_clear()


def _spec(op: str, layout: BlockLayout, device: Target, **variant: Any) -> KernelSpec:
    assert device.arch is not None
    assert device.source is not None
    assert layout.kv_dtype is not None
    arch, source = device.arch.name, device.source.name
    return spec_for(op, layout.dtype, layout.kv_dtype, layout.head_dim, arch, source, model=device.model, **variant)


def select(problem: Problem, device: Target) -> list[Launch]:
    """The launches of a problem, in order. Arrays of the problem count by shape and strides, not by address, and its layer not at all.

    An attention that has `k` and `v` is a decode step that writes them: `fusion.fuses`.
    """
    batch = problem.batch
    if problem.op in ("attention", "varlen"):
        values = {**_cache_values(problem, device), **_query_values(problem)}
        if problem.op == "varlen" or (problem.extras is not None and problem.extras.mask is not None):  # not for decode
            values.update(cu_seqlens_q=device.address(batch.cu_seqlens_q), single_queries=1)
            if not batch.num_tokens:
                return []
            return [*_ranges(problem, device, values), _prefill(problem, device, values)]
        launches = []
        if batch.num_decode:
            launches.append(_decode(problem, device, values))
        if batch.num_prefill:
            launches.append(_prefill(problem, device, values))
        return launches
    rows = batch.num_tokens if problem.op == "append" else batch.total_k
    if not rows:
        return []
    spec = _spec(problem.op, problem.layout, device)
    values = {**_cache_values(problem, device), **_kv_strides(problem)}
    if problem.q is not None:  # queries pass through on their way to attention
        values.update(q_stride=_token_stride(problem.q), out_stride=_token_stride(problem.out), num_heads=problem.q.shape[1])
    return [Launch(spec, rows, params.pack(**values, num_tokens=rows))]


def ranges_spec(device: Target) -> KernelSpec:
    """The kernel that finds the keys that a mask keeps."""
    assert device.arch is not None
    assert device.source is not None
    return spec_for("ranges", "float16", "float16", 128, device.arch.name, device.source.name)


def merge(dtype: str, head_dim: int, device: Target, values: dict[str, Any]) -> Launch:
    """The launch that merges partial results; `values` are its AttentionParams by name."""
    assert device.arch is not None
    assert device.source is not None
    spec = spec_for("merge", dtype, dtype, head_dim, device.arch.name, device.source.name)
    assert spec.warps is not None
    rows = values["num_tokens"] * values["num_heads"]
    return Launch(spec, -(-rows // spec.warps), params.pack(**values))


def _cache_values(problem: Problem, device: Target) -> dict[str, Any]:
    """The AttentionParams that say where the cache's rows are in the pool."""
    layout, batch, address = problem.layout, problem.batch, device.address
    factor, shift = params.divisor(problem.cp.size)
    return {
        "block_table": address(batch.block_table),
        "cu_seqlens_q": address(batch.cu_seqlens_q) if batch.num_decode != batch.batch_size else 0,
        "cu_seqlens_k": address(batch.cu_seqlens_k),
        "block_bytes": layout.block_bytes if batch.blocks is None else batch.blocks.unit,
        "k_base": layout.k_rows.base,
        "v_offset": layout.v_rows.base - layout.k_rows.base,
        "head_bytes": layout.k_rows.per_head,
        "k_param_base": layout.k_params.base,
        "v_param_offset": layout.v_params.base - layout.k_params.base,
        "param_head_bytes": layout.k_params.per_head,
        "extras": b"" if problem.extras is None else problem.extras.packed(problem.op, address),
        "block_len_log2": layout.block_len.bit_length() - 1,
        "max_blocks": batch.max_blocks,
        "batch_size": batch.batch_size,
        "num_kv_heads": layout.num_kv_heads,
        "cp_size": problem.cp.size,
        "cp_rank": problem.cp.rank,
        "cp_factor": factor,
        "cp_shift": shift,
    }


def _query_values(problem: Problem) -> dict[str, Any]:
    """The AttentionParams of an attention: its arrays' strides, and its options."""
    heads, scale = problem.q.shape[1], problem.softmax_scale
    values = {
        **_kv_strides(problem),
        "q_stride": _token_stride(problem.q),
        "out_stride": _token_stride(problem.out),
        "num_tokens": problem.batch.num_tokens,
        "num_heads": heads,
        "group_size": heads // problem.layout.num_kv_heads,
        "max_seqlen_q": problem.batch.max_seqlen_q,
        "causal": problem.causal,
        "window_size": problem.window_size,
        "qk_scale": scale * _LOG2_E,
        "adjust": bool(problem.softcap) or (problem.extras is not None and problem.extras.adjusts),
    }
    if problem.softcap:
        values["softcap_in"], values["softcap_out"] = scale / problem.softcap, problem.softcap / scale
    return values


def _kv_strides(problem: Problem) -> dict[str, int]:
    if problem.k is None:
        return {}
    return {"k_stride": _token_stride(problem.k), "v_stride": _token_stride(problem.v)}


def _token_stride(x: Any) -> int:
    """Elements from one token to the next; a single token's stride may be anything, and is not used."""
    stride: int = x.strides[0] // x.itemsize
    return stride


@cache
def pack_size(group_size: int, head_dim: int, kv_dtype: str, mma: str) -> int:
    """The smallest pack that holds a group, else the largest there is."""
    sizes = decode_heads(head_dim, kv_dtype, mma)
    return next((n for n in sizes if n >= group_size), sizes[-1])


def specs_of(layout: BlockLayout, num_heads: int, arch: Arch, source: Arch, model: str = "") -> list[KernelSpec]:
    """Every kernel that calls with so many query heads on caches of a layout can ask for, on a GPU called `model`."""
    stored, group = str(layout.kv_dtype), num_heads // layout.num_kv_heads
    heads = pack_size(group, layout.head_dim, stored, source.mma)
    one_pack = group <= heads
    common = (layout.dtype, stored, layout.head_dim, arch.name, source.name)
    prefill = [spec_for("prefill", *common, general=general, model=model) for general in (False, True)]
    prefill += [long for spec in prefill if (long := tuned.for_long(spec, model))]
    decode = [(splits, False) for splits in SPLITS] + [("flat", True)] * (source.family == "sm80" and one_pack)
    return [
        *(spec_for(op, *common, model=model) for op in ("append", "gather")),
        *dict.fromkeys(variant for spec in prefill for variant in (spec, spec.in_parts)),
        *(
            spec_for("decode", *common, heads, splits, general, model, fused)
            for splits, fused in decode
            for general in ((False, True) if one_pack else (True,))
        ),
        spec_for("merge", layout.dtype, layout.dtype, layout.head_dim, arch.name, source.name),
        spec_for("ranges", "float16", "float16", 128, arch.name, source.name),
    ]


def cut_tile(layout: BlockLayout, source: Arch | None) -> int:
    """Keys of decode's tiles, between which "fixed:N" cuts, for the kernels of target `source`; None: a device without kernels."""
    return 32 if layout.quantised or (source is not None and source.mma == "m8n8k4") else 16


def plan_decode(
    device: Target,
    layout: BlockLayout,
    group_size: int,
    batch: Batch,
    num_splits: int,
    adjusted: bool = False,
    cp: ContextParallel = WHOLE,
    fused: bool = False,
) -> tuple[KernelSpec, int, int, int]:
    """Decode's spec, grid, head packs per KV head, and places for pieces (per segment where sequences are cut, else in all)."""
    assert device.source is not None
    heads = pack_size(group_size, layout.head_dim, str(layout.kv_dtype), device.source.mma)
    packs = -(-group_size // heads)
    general = adjusted or packs > 1 or cp.size > 1
    splits, fused = ("cut", False) if num_splits else ("flat", fused)
    spec = _spec("decode", layout, device, heads=heads, splits=splits, general=general, fused=fused)
    assert spec.cta_s is not None
    units = (cp.own(batch.total_k) // spec.cta_s + 2 * batch.batch_size) * layout.num_kv_heads * packs
    if units >= _MOST_UNITS:
        raise UnsupportedError(
            f"decode's list of key tiles must stay below {_MOST_UNITS} entries, one for every {spec.cta_s} keys of every KV head (and "
            f"pack of query heads); this batch has about {units}. Make several batches."
        )
    grid = device.sm_count * (spec.min_ctas or 1)
    if num_splits:
        return spec, grid, packs, spec.group_places(num_splits, cp.own(batch.max_seqlen_k))
    return spec, grid, packs, grid * spec.cta_pieces


def plan_prefill(
    device: Target,
    layout: BlockLayout,
    num_heads: int,
    batch: Batch,
    num_splits: int,
    op: str = "prefill",
    adjusted: bool = False,
    cp: ContextParallel = WHOLE,
) -> tuple[KernelSpec, int, int, int]:
    """Prefill's spec, query tiles, heads packed in a tile, and in how many parts each tile's keys are read.

    Where the tiles would leave multiprocessors idle, several CTAs share the keys of each, and where sequences are long, the row for those
    is taken; unless `num_splits` is the caller's: then nothing depends on what else is in the batch.
    """
    spec = _spec(op, layout, device, general=adjusted)
    found = query_tiles.shared_out(spec, device, layout, num_heads, batch, num_splits, cp)
    long = None if num_splits else tuned.for_long(spec, device.model)
    if long is not None:
        wide = query_tiles.shared_out(long, device, layout, num_heads, batch, 0, cp)
        found = wide if query_tiles.long_enough(wide, batch, device.sm_count) else found
    return found._replace(spec=found.spec.in_parts) if found.parts > 1 or cp.size > 1 else found


def _decode(problem: Problem, device: Target, values: dict[str, Any]) -> Launch:
    spec, grid, packs, places = plan_decode(
        device, problem.layout, values["group_size"], problem.batch, problem.num_splits, values["adjust"], problem.cp, problem.k is not None
    )
    segments = problem.batch.batch_size * problem.layout.num_kv_heads * packs
    splits = problem.num_splits
    room = spec.cut_bytes(grid, segments, places) if splits else places * spec.piece_bytes
    once = problem.batch.disjoint and packs == 1  # keys that nobody else reads leave L2 first: it keeps code, block tables and pieces
    packs_factor, packs_shift = params.divisor(packs)
    splits_factor, splits_shift = params.divisor(spec.cut_divisor(splits)) if splits else (0, 0)
    packed = params.pack(
        **values,
        head_packs=packs,
        packs_factor=packs_factor,
        packs_shift=packs_shift,
        splits_factor=splits_factor,
        splits_shift=splits_shift,
        num_splits=splits,
        max_splits=places if splits else 0,
        l2_policy=params.EVICT_FIRST if once else params.EVICT_NORMAL,
    )
    return Launch(spec, grid, packed, room, segments if splits else grid * spec.sent_words)


def _ranges(problem: Problem, device: Target, values: dict[str, Any]) -> list[Launch]:
    """What finds the keys that a mask keeps, where there is room for them."""
    if problem.extras is None or problem.extras.mask_ranges is None:
        return []
    size, entries, _ = problem.extras.mask_ranges.shape
    return [Launch(ranges_spec(device), size * entries, params.pack(**values))]


def _prefill(problem: Problem, device: Target, values: dict[str, Any]) -> Launch:
    op = "varlen" if problem.op == "varlen" else "prefill"
    spec, tiles, pack, parts = plan_prefill(
        device, problem.layout, values["num_heads"], problem.batch, problem.num_splits, op, values["adjust"], problem.cp
    )
    packed = params.pack(**values, head_packs=pack.bit_length() - 1, num_splits=parts)
    room = (tiles * parts * spec.piece_bytes, tiles) if parts > 1 else (0, 0)
    return Launch(spec, tiles * parts, packed, *room)
