"""KernelSpec: everything that changes a kernel's machine code, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pagedattn import arch as archs
from pagedattn import dtypes, tuning
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.layout import HEAD_DIMS

OPS = ("decode", "prefill", "varlen", "append", "gather", "merge")
TILED = ("prefill", "varlen")  # CTAs that own a tile of queries
HEAD_PACKS = (8, 16)
SPLITS = ("flat", "cut")
KV_DTYPES = (None, "int8", "int4")
STATIC_SHARED_BYTES = 2048  # what the templates declare statically never passes this; the tests compare it with ptxas


@dataclass(frozen=True)
class KernelSpec:
    """One specialisation of one operation. Fields left None are filled from the tuning table.

    Parameters
    ----------
    op : str
        "decode", "prefill", "varlen", "append", "gather" or "merge".
    dtype, kv_dtype : str
        Type of the activations and of what the cache stores; None means `dtype`.
    head_dim : int
        64, 96, 128, 192 or 256.
    arch : str
        The compiler's target, "sm_80" and up.
    family : str, optional
        Which source: "sm80".
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
        Decode: "flat" balances one list of tiles over the GPU, "cut" cuts every sequence alike.

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
    cta_s: int | None = None
    cta_q: int | None = None
    stages: int | None = None
    warps: int | None = None
    min_ctas: int | None = None
    heads: int | None = None
    splits: str | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ArgumentError(f"`op` must be one of {', '.join(OPS)}; got {self.op!r}.")
        target = archs.parse(self.arch)
        dtype = dtypes.activation(self.dtype)
        self._set(arch=target.name, dtype=dtype.name, kv_dtype=dtypes.stored(self.kv_dtype, dtype).name)
        if self.head_dim not in HEAD_DIMS:
            nearest = min(HEAD_DIMS, key=lambda d: abs(d - self.head_dim))
            raise UnsupportedError(f"`head_dim` must be one of {HEAD_DIMS}; got {self.head_dim}. The nearest is {nearest}.")
        if self.family not in (None, "sm80"):
            raise UnsupportedError(f"`family` must be 'sm80'; got {self.family!r}.")
        self._set(family="sm80")
        for name in ("cta_s", "cta_q", "stages", "warps", "min_ctas"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ArgumentError(f"`{name}` must be a positive integer or None; got {value!r}.")
        if self.op == "decode":
            self._resolve_decode(target)
        elif self.op in TILED:
            self._resolve_prefill(target)
        else:
            self._clear("cta_s", "cta_q", "stages", "heads", "splits")
            self._set(warps=self.warps or tuning.COPY_WARPS, min_ctas=self.min_ctas or 1)
        if self.threads > 1024:
            raise ArgumentError(f"a CTA has at most 32 warps; got warps={self.warps}.")
        if not self._fits(target):
            raise UnsupportedError(
                f"{self.name} needs {self.shared_bytes} bytes of shared memory per CTA; {target} grants {target.cta_shared_bytes}. "
                "Take fewer warps or stages."
            )

    def _resolve_decode(self, target: archs.Arch) -> None:
        self._clear("cta_q")
        self._set(heads=8 if self.heads is None else self.heads, splits=self.splits or "flat", min_ctas=self.min_ctas or 1)
        if self.heads not in HEAD_PACKS:
            raise ArgumentError(f"`heads` must be one of {HEAD_PACKS}; got {self.heads!r}.")
        if self.splits not in SPLITS:
            raise ArgumentError(f"`splits` must be one of {SPLITS}; got {self.splits!r}.")
        tile = 32 if self.quantised else 16
        if self.cta_s not in (None, tile):
            raise ArgumentError(f"`cta_s` of this decode kernel must be {tile}; got {self.cta_s}.")
        rows = tuning.DECODE.get((self.head_dim, self.heads, dtypes.of(self.kv_dtype).bits))
        if rows is None:
            raise UnsupportedError(f"a pack must be of 8 heads for head_dim {self.head_dim} in {self.kv_dtype}; got heads={self.heads}.")
        self._take(rows, target)
        if self.stages is not None and self.stages < 2:
            raise ArgumentError(f"`stages` must be at least 2; got {self.stages}.")
        if self.warps is not None and self.warps > 16:
            raise ArgumentError(f"a decode CTA has at most 16 warps; got {self.warps}.")

    def _resolve_prefill(self, target: archs.Arch) -> None:
        self._clear("heads", "splits")
        if self.op == "varlen" and self.quantised:
            raise UnsupportedError(f"contiguous K and V must hold the activations' own type, {self.dtype}; got kv_dtype={self.kv_dtype!r}.")
        self._take(tuning.PREFILL[self.head_dim, self.quantised], target)
        assert self.warps is not None
        assert self.cta_q is not None
        if self.cta_q % (16 * self.warps):
            raise ArgumentError(f"`cta_q` must be a multiple of 16 rows for each of {self.warps} warps; got {self.cta_q}.")
        if self.cta_s not in (32, 64):
            raise ArgumentError(f"`cta_s` of a prefill kernel must be 32 or 64; got {self.cta_s}.")
        if self.stages != 2:
            raise ArgumentError(f"`stages` of a prefill kernel must be 2; got {self.stages}.")

    def _take(self, rows: Iterable[Any], target: archs.Arch) -> None:
        """Fill open fields from the first row of the tuning table that fits; the caller's own fields stand."""
        own = {name: getattr(self, name) for name in ("cta_s", "cta_q", "stages", "warps", "min_ctas") if getattr(self, name) is not None}
        for row in rows:
            self._set(**{**row._asdict(), **own})
            if self._fits(target):
                return

    def _fits(self, target: archs.Arch) -> bool:
        taken = self.shared_bytes + STATIC_SHARED_BYTES
        return taken <= target.cta_shared_bytes and (self.min_ctas or 1) * (taken + 1024) <= target.sm_shared_bytes + STATIC_SHARED_BYTES

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _clear(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ArgumentError(f"`{name}` means nothing for op {self.op!r}; got {getattr(self, name)!r}. Leave it None.")

    @property
    def threads(self) -> int:
        """Threads of a CTA."""
        return 32 * (self.warps or 0)

    @property
    def quantised(self) -> bool:
        """Whether the cache holds codes."""
        return self.kv_dtype != self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head in the cache."""
        return self.head_dim * dtypes.of(self.kv_dtype).bits // 8

    @property
    def ring_bytes(self) -> int:
        """Decode: one warp's ring of K and V tiles. Prefill: the CTA's."""
        tile = 2 * (self.cta_s or 0)
        if not self.quantised:
            return (self.stages or 0) * tile * self.row_bytes
        codes = tile * (self.row_bytes + 4)  # and (scale, zero) of each row
        return (self.stages or 0) * codes if self.op == "decode" else codes + tile * self.head_dim * 2

    @property
    def piece_bytes(self) -> int:
        """A piece of split work in float32. Decode: O (heads, head_dim), m and l (heads). Prefill: every thread's O, m and l."""
        if self.op in TILED:
            # a row's l stands in four lanes, each with its own share
            return 4 * (self.cta_q or 0) * (self.head_dim + 4 * 2)
        return 4 * (self.heads or 0) * (self.head_dim + 2)

    @property
    def query_bytes(self) -> int:
        """Shared memory of the queries: prefill's tile; decode's only where registers do not hold it (once per warp)."""
        if self.op in TILED:
            return (self.cta_q or 0) * self.head_dim * 2
        return (self.heads or 0) * self.head_dim * 2 if self.query_in_shared else 0

    @property
    def query_in_shared(self) -> bool:
        """Decode: 16 heads of a wide head leave no registers for Q beside O."""
        return self.op == "decode" and (self.heads or 0) * self.head_dim > 16 * 128

    @property
    def few_registers(self) -> bool:
        """Decode from codes: addresses are recomputed rather than kept where packs, heads or cuts need the registers."""
        return (self.heads or 0) > 8 or self.head_dim > 192 or self.splits == "cut"

    @property
    def shared_bytes(self) -> int:
        """Dynamic shared memory of a CTA."""
        if self.op == "decode":
            pieces = self.piece_bytes if self.splits == "flat" else 0
            return (self.warps or 0) * (self.ring_bytes + self.query_bytes + pieces)
        if self.op == "append":  # a warp's rows on their way through bias and rotation
            return 512 * (self.warps or 0) if self.quantised else 0
        return self.ring_bytes + self.query_bytes if self.op in TILED else 0

    @cached_property
    def name(self) -> str:
        """Entry point, store directory, test id and error text."""
        short = {"float16": "f16", "bfloat16": "bf16", "int8": "i8", "int4": "i4"}
        parts = [self.op, short[self.dtype], f"kv{short[str(self.kv_dtype)]}", f"d{self.head_dim}"]
        if self.op == "decode":
            parts += [f"h{self.heads}", f"s{self.cta_s}x{self.stages}", f"w{self.warps}", str(self.splits)]
        if self.op in TILED:
            parts += [f"q{self.cta_q}", f"s{self.cta_s}x{self.stages}", f"w{self.warps}", f"c{self.min_ctas}"]
        return "_".join([*parts, self.arch.replace("_", "")])

    @property
    def template(self) -> str:
        """The template that renders it."""
        return f"{'prefill' if self.op in TILED else self.op}.cu.j2"

    def context(self) -> dict[str, Any]:
        """What the template sees."""
        return {"spec": self, "dtype": dtypes.of(self.dtype), "kv_dtype": dtypes.of(self.kv_dtype)}


def decode_heads(head_dim: int, kv_dtype: str) -> tuple[int, ...]:
    """The sizes of packs of query heads that decode kernels exist for.

    >>> decode_heads(128, "int8"), decode_heads(256, "int8")
    ((8, 16), (8,))
    """
    return tuple(heads for heads in HEAD_PACKS if (head_dim, heads, dtypes.of(kv_dtype).bits) in tuning.DECODE)


def shipped(
    archs_: Iterable[str] | None = None,
    dtypes_: Iterable[str] | None = None,
    head_dims: Iterable[int] | None = None,
    ops: Iterable[str] | None = None,
    kv_dtypes: Iterable[str | None] | None = None,
) -> list[KernelSpec]:
    """The shipped set: every kernel that a call on these targets can ask for. In `kv_dtypes`, None stands for the activations' own type.

    >>> len(shipped(["sm_90"], ["float16"], [128]))
    23
    """
    targets = [a.name for n, a in archs.ARCHS.items() if n >= archs.OLDEST] if archs_ is None else archs_
    types = tuple(dtypes.ACTIVATIONS if dtypes_ is None else dtypes_)
    dims = tuple(HEAD_DIMS if head_dims is None else head_dims)
    chosen = tuple(OPS if ops is None else ops)
    stored = tuple(KV_DTYPES if kv_dtypes is None else kv_dtypes)
    return [
        spec
        for target in targets
        for dtype in types
        for dim in dims
        for op in chosen
        for kv_dtype in (stored if op not in ("varlen", "merge") else (None,))
        for spec in _variants(op, dtype, kv_dtype, dim, target)
    ]


def _variants(op: str, dtype: str, kv_dtype: str | None, head_dim: int, target: str) -> Iterator[KernelSpec]:
    if op != "decode":
        yield KernelSpec(op=op, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, arch=target)
        return
    stored = dtypes.stored(kv_dtype, dtypes.activation(dtype)).name
    for heads in decode_heads(head_dim, stored) or HEAD_PACKS:  # none: KernelSpec says why
        for splits in SPLITS:
            yield KernelSpec(op=op, dtype=dtype, kv_dtype=kv_dtype, head_dim=head_dim, arch=target, heads=heads, splits=splits)
