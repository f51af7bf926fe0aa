"""KernelSpec: everything that changes a kernel's machine code, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from pagedattn import arch as archs
from pagedattn import dtypes, tuning
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.footprint import TILED, Footprint
from pagedattn.layout import HEAD_DIMS
from pagedattn.values import flag, whole

OPS = ("decode", "prefill", "varlen", "append", "gather", "merge", "ranges")
HEAD_PACKS = (8, 16)
SPLITS = ("flat", "cut")  # of decode
TILE_SPLITS = ("whole", "parts")  # of prefill and varlen
KV_DTYPES = (None, "int8", "int4")


@dataclass(frozen=True)
class KernelSpec(Footprint):
    """One specialisation of one operation. Fields left None are filled from the tuning table.

    Parameters
    ----------
    op : str
        "decode", "prefill", "varlen", "append", "gather", "merge" or "ranges" (of the keys that a mask keeps).
    dtype, kv_dtype : str
        Type of the activations and of what the cache stores; None means `dtype`. Of op "ranges", which reads neither, float16.
    head_dim : int
        64, 96, 128, 192 or 256; of op "ranges" 128.
    arch : str
        The compiler's target, "sm_70" and up.
    family : str, optional
        Which source: "sm70" (synchronous loads, float16 only) or "sm80" (cp.async); None: the target's own. Any target takes the SM70
        family's.
    mma : str, optional
        Decode and prefill: the shape of the tensor-core instruction, "m8n8k4" (sm_70) or "m16n8k8" (sm_75) in the SM70 family, "m16n8k16"
        in the other.
    cta_s : int, optional
        Keys of a tile.
    cta_q : int, optional
        Prefill: query rows of a CTA.
    stages : int, optional
        Tiles of the shared-memory ring.
    warps : int, optional
        Warps of a CTA.
    min_ctas : int, optional
        CTAs that share a multiprocessor: bounds the registers.
    heads : int, optional
        Decode: query heads that read K and V together, 8 or 16.
    splits : str, optional
        Decode: "flat" balances one list of tiles over the GPU, "cut" cuts every sequence alike. Prefill, varlen: a query tile's keys are
        one CTA's ("whole"), or several CTAs, and ranks, may share them ("parts").
    general : bool
        Serves what few calls ask for, too. Prefill, varlen: softcap, ALiBi, masks. Decode: softcap, ALiBi, several packs of heads, and keys
        that ranks share.
    fused : bool
        Decode, flat, SM80 family: the launch also writes the new tokens' rows.

    Raises
    ------
    ArgumentError, UnsupportedError
        The text says what must hold and what came.

    Examples
    --------
    >>> spec = KernelSpec(op="decode", dtype="float16", head_dim=128, arch="sm_90")
    >>> spec.name
    'decode_f16_kvf16_d128_h8_s16x2_w10_flat_sm90'
    >>> spec.threads
    320
    """

    op: str
    dtype: str = "float16"
    kv_dtype: str | None = None
    head_dim: int = 128
    arch: str = "sm_80"
    family: str | None = None
    mma: str | None = None
    cta_s: int | None = None
    cta_q: int | None = None
    stages: int | None = None
    warps: int | None = None
    min_ctas: int | None = None
    heads: int | None = None
    splits: str | None = None
    general: bool = False
    fused: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.op, str) or self.op not in OPS:
            raise ArgumentError(f"`op` must be one of {', '.join(OPS)}; got {self.op!r}.")
        target = archs.parse(self.arch)
        dtype = dtypes.activation(self.dtype)
        self._set(arch=target.name, dtype=dtype.name, kv_dtype=dtypes.stored(self.kv_dtype, dtype).name)
        self._require_integers()
        if self.head_dim not in HEAD_DIMS:
            nearest = min(HEAD_DIMS, key=lambda d: abs(d - self.head_dim))
            raise UnsupportedError(f"`head_dim` must be one of {HEAD_DIMS}; got {self.head_dim}. The nearest is {nearest}.")
        if self.op == "ranges":  # the same for all
            self._set(dtype="float16", kv_dtype="float16", head_dim=128)
        self._resolve_source(target)
        self._set(general=flag(self.general, "general"), fused=flag(self.fused, "fused"))
        if self.general and self.op not in ("decode", *TILED):
            raise ArgumentError(f"`general` means nothing for op {self.op!r}; got {self.general!r}. Leave it False.")
        if self.op == "decode":
            self._resolve_decode(target)
        elif self.op in TILED:
            self._resolve_prefill()
        else:
            self._clear("cta_s", "cta_q", "stages", "heads", "splits")
            self._set(warps=self.warps or tuning.COPY_WARPS, min_ctas=self.min_ctas or 1)
        if self.fused and (self.splits != "flat" or self.family != "sm80"):
            raise ArgumentError("`fused` must be False but for decode with splits 'flat' of family 'sm80'; got True. Launch append first.")
        if self.threads > 1024:
            raise ArgumentError(f"a CTA has at most 32 warps; got warps={self.warps}.")
        if not self._fits():
            granted = min(target.cta_shared_bytes, self.generation.cta_shared_bytes)
            raise UnsupportedError(
                f"{self.name} needs {self.shared_bytes} bytes of shared memory per CTA; {self.generation} grants {granted}. "
                "Take fewer warps or stages."
            )

    def _require_integers(self) -> None:
        for name in ("head_dim", "cta_s", "cta_q", "stages", "warps", "min_ctas", "heads"):
            value = getattr(self, name)
            if value is None and name != "head_dim":
                continue
            number = whole(value)
            if number is None or number < 1:
                raise ArgumentError(f"`{name}` must be a positive integer{'' if name == 'head_dim' else ' or None'}; got {value!r}.")
            self._set(**{name: number})

    def _resolve_source(self, target: archs.Arch) -> None:
        """Family and mma, which follow from the target unless they are given."""
        if self.family not in (None, *archs.FAMILIES):
            raise ArgumentError(f"`family` must be one of {archs.FAMILIES} or None; got {self.family!r}.")
        if self.mma not in (None, *archs.MMAS):
            raise ArgumentError(f"`mma` must be one of {tuple(archs.MMAS)} or None; got {self.mma!r}.")
        family = self.family or (archs.MMAS[self.mma][0] if self.mma else target.family)
        if family == "sm80" and target.family != family:
            raise UnsupportedError(f"family 'sm80' needs sm_80 and up (cp.async, mma.m16n8k16); got {target}. Leave `family` None.")
        if family == "sm70" and self.dtype == "bfloat16":
            raise UnsupportedError(
                f"bfloat16 needs the SM80 family, sm_80 and up: tensor cores before it multiply float16 only; got {target}"
                f"{'' if target.family == family else ' with the SM70 family'}. Take dtype='float16'."
            )
        if self.op not in ("decode", *TILED):
            self._clear("mma")
            self._set(family=family)
            return
        default = target.mma if target.family == family else "m16n8k8"
        self._set(family=family, mma=self.mma or default)
        of, oldest = archs.MMAS[str(self.mma)]
        if of != family:
            names = " or ".join(repr(name) for name, (whose, _) in archs.MMAS.items() if whose == family)
            raise ArgumentError(f"`mma` of family {family!r} must be {names}; got {self.mma!r}.")
        if target.number < oldest:
            raise UnsupportedError(f"mma.{self.mma} needs sm_{oldest} and up; got {target}. Leave `mma` None.")

    def _resolve_decode(self, target: archs.Arch) -> None:
        self._clear("cta_q")
        self._set(
            heads=8 if self.heads is None else self.heads,
            splits="flat" if self.splits is None else self.splits,
            min_ctas=self.min_ctas or 1,
        )
        if self.heads not in HEAD_PACKS:
            raise ArgumentError(f"`heads` must be one of {HEAD_PACKS}; got {self.heads!r}.")
        if self.splits not in SPLITS:
            raise ArgumentError(f"`splits` of op 'decode' must be one of {SPLITS}; got {self.splits!r}.")
        tiles = self.decode_tiles()
        if self.cta_s not in (None, *tiles):
            raise ArgumentError(f"`cta_s` of this decode kernel must be {' or '.join(map(str, tiles))}; got {self.cta_s}.")
        rows = [row for row in tuning.rows(str(self.mma), self.key) if row.cta_s in tiles]
        if not rows:
            raise UnsupportedError(f"a pack must be of 8 heads for head_dim {self.head_dim} in {self.kv_dtype}; got heads={self.heads}.")
        self._take(rows)
        if self.family == "sm70" and self.stages != 1:
            raise ArgumentError(f"`stages` of the SM70 family's decode must be 1; got {self.stages}.")
        if self.family == "sm80" and self.stages is not None and self.stages < 2:
            raise ArgumentError(f"`stages` must be at least 2; got {self.stages}.")
        if self.warps is not None and self.warps > 16:
            raise ArgumentError(f"a decode CTA has at most 16 warps; got {self.warps}.")

    def decode_tiles(self) -> tuple[int, ...]:
        """Decode: what `cta_s` may be. Of codes 32 keys are computed at a time; a flat list may send for twice as many together.

        >>> KernelSpec("decode").decode_tiles(), KernelSpec("decode", kv_dtype="int4").decode_tiles()
        ((16,), (32, 64))
        """
        # a copy by a warp is then of one block, even where blocks have 16 rows
        if self.quantised and self.family == "sm80" and self.splits == "flat" and self.row_bytes % 32 == 0:
            return 32, 64
        return (32 if self.quantised or self.mma == "m8n8k4" else 16,)

    def _resolve_prefill(self) -> None:
        self._clear("heads")
        self._set(splits="whole" if self.splits is None else self.splits)
        if self.splits not in TILE_SPLITS:
            raise ArgumentError(f"`splits` of op {self.op!r} must be one of {TILE_SPLITS}; got {self.splits!r}.")
        if self.op == "varlen" and self.quantised:
            raise UnsupportedError(f"contiguous K and V must hold the activations' own type, {self.dtype}; got kv_dtype={self.kv_dtype!r}.")
        self._take(tuning.rows(str(self.mma), self.key))
        assert self.warps is not None
        assert self.cta_q is not None
        if self.cta_q % (16 * self.warps) or self.cta_q & (self.cta_q - 1):
            raise ArgumentError(f"`cta_q` must be a power of two, a multiple of 16 rows for each of {self.warps} warps; got {self.cta_q}.")
        tiles, stages = ((32, 64), (1, 2) if self.quantised else (2,)) if self.family == "sm80" else ((16, 32, 64), (1, 2))
        whose = f"the {str(self.family).upper()} family's prefill kernel"
        if self.cta_s not in tiles:
            raise ArgumentError(f"`cta_s` of {whose} must be one of {tiles}; got {self.cta_s}.")
        if self.stages not in stages:
            raise ArgumentError(f"`stages` of {whose} must be {' or '.join(map(str, stages))}; got {self.stages}.")

    def _take(self, rows: Iterable[tuning.Tile]) -> None:
        """Fill open fields from the first row of the tuning table that fits; the caller's own fields stand."""
        own = {name: getattr(self, name) for name in tuning.SPEC_FIELDS if getattr(self, name) is not None}
        for row in rows:
            self._set(**{**tuning.fields_of(row), **own})
            if self._fits():
                return

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _clear(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ArgumentError(f"`{name}` means nothing for op {self.op!r}; got {getattr(self, name)!r}. Leave it None.")

    @property
    def key(self) -> tuning.Key:
        """Decode, prefill, varlen: what its row of the tuning table is found by."""
        return tuning.Key("decode" if self.op == "decode" else "prefill", self.head_dim, self.heads or 0, dtypes.of(self.kv_dtype).bits)

    def for_long(self) -> KernelSpec | None:
        """Prefill, varlen: the same with the row for long sequences of the tuning table; None where there is no other that fits the target.

        >>> KernelSpec("prefill", arch="sm_90").for_long().name, KernelSpec("prefill", arch="sm_86").for_long()
        ('prefill_f16_kvf16_d128_q256_s64x2_w8_c1_whole_sm90', None)
        """
        row = tuning.long_row(str(self.mma), self.key) if self.op in TILED else None
        try:
            spec = row and replace(self, **tuning.fields_of(row))
        except UnsupportedError:  # too large for the target
            return None
        return None if spec == self else spec

    @cached_property
    def in_parts(self) -> KernelSpec:
        """Prefill, varlen: the same for query tiles whose keys several CTAs, or ranks, share; itself where it serves those, and other ops.

        >>> KernelSpec("prefill").in_parts.splits, KernelSpec("decode").in_parts.splits
        ('parts', 'flat')
        """
        return replace(self, splits="parts") if self.splits == "whole" else self

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return 32 * (self.warps or 0)

    @cached_property
    def name(self) -> str:
        """Entry point, store directory, test id and error text."""
        short = {"float16": "f16", "bfloat16": "bf16", "int8": "i8", "int4": "i4"}
        parts = [self.op]
        if self.op != "ranges":
            parts += [short[self.dtype], f"kv{short[str(self.kv_dtype)]}", f"d{self.head_dim}"]
        if self.op == "decode":
            parts += [f"h{self.heads}", f"s{self.cta_s}x{self.stages}", f"w{self.warps}", str(self.splits)]
        if self.op in TILED:
            parts += [f"q{self.cta_q}", f"s{self.cta_s}x{self.stages}", f"w{self.warps}", f"c{self.min_ctas}", str(self.splits)]
        parts += [name for name in ("general", "fused") if getattr(self, name)]
        if self.family == "sm70" and self.mma:
            parts.append(self.mma)
        return "_".join([*parts, self.arch.replace("_", "")])

    @property
    def granted(self) -> dict[str, int]:
        """Parameters that the code of an attention takes these values of for granted, and does not read.

        >>> KernelSpec("decode").granted, KernelSpec("decode", general=True).granted, KernelSpec("prefill").granted
        ({'head_packs': 1, 'cp_size': 1, 'cp_rank': 0, 'adjust': 0}, {}, {'num_splits': 1, 'cp_size': 1, 'cp_rank': 0, 'adjust': 0})
        """
        plain = {} if self.general or self.op not in ("decode", *TILED) else {"adjust": 0}
        alone = {"cp_size": 1, "cp_rank": 0}
        if self.op == "decode":
            return {"head_packs": 1, **alone, **plain} if self.fused or not self.general else plain
        if self.splits == "whole":
            return {"num_splits": 1, **alone, **plain}
        return {**alone, **plain} if self.op == "varlen" else plain

    @property
    def joins(self) -> bool:
        """Decode: whether parts of a tile that follow each other in one block are copied as one, by code of its own.

        It is faster, and takes longer to compile: not in the kernels that would else take the longest.

        >>> [KernelSpec("decode", kv_dtype="int8", head_dim=256, fused=fused).joins for fused in (False, True)]
        [True, False]
        """
        if self.family != "sm80" or self.op != "decode":
            return True
        more = self.quantised + self.general + self.fused + (self.splits == "cut")
        return (self.heads or 0) * self.head_dim <= 1024 or more <= 1

    @property
    def template(self) -> str:
        """The template that renders it."""
        return f"{'prefill' if self.op in TILED else self.op}.cu.j2"

    def context(self) -> dict[str, Any]:
        """What the template sees."""
        return {"spec": self, "dtype": dtypes.of(self.dtype), "kv_dtype": dtypes.of(self.kv_dtype)}


def decode_heads(head_dim: int, kv_dtype: str, mma: str = "m16n8k16") -> tuple[int, ...]:
    """The sizes of packs of query heads that decode kernels exist for.

    >>> decode_heads(128, "int8"), decode_heads(256, "int8")
    ((8, 16), (8,))
    """
    return tuple(heads for heads in HEAD_PACKS if tuning.rows(mma, tuning.Key("decode", head_dim, heads, dtypes.of(kv_dtype).bits)))
