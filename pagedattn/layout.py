"""BlockLayout: where every byte of a KV block lies. Offsets are affine in (layer, head, token)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pagedattn import dtypes
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.values import whole

BLOCK_LENS = (16, 32, 64, 128, 256)
HEAD_DIMS = (64, 96, 128, 192, 256)
QUANTISED_PARAM_VALUES = 2  # (scale, zero)
ROW_ALIGNMENT = 16  # bytes that a kernel moves at once


class Affine(NamedTuple):
    """Byte offset = base + layer * per_layer + head * per_head + token * per_token."""

    base: int
    per_layer: int
    per_head: int
    per_token: int

    def at(self, layer: Any, head: Any, token: Any) -> Any:
        return self.base + layer * self.per_layer + head * self.per_head + token * self.per_token


@dataclass(frozen=True)
class BlockLayout:
    """The bytes of one KV block: `block_len` tokens of one sequence, all layers, L(H2SDQ+H2S2T).

    A layer holds the data of every head (K rows, then V rows) and, if the cache is quantised, the parameters of every head
    (K entries, then V entries; an entry is (scale, zero) in `dtype`).

    Parameters
    ----------
    num_kv_heads, head_dim, block_len, num_layers : int
        `block_len` is 16, 32, 64, 128 or 256 tokens.
    dtype : str
        Type of the activations, "float16" or "bfloat16".
    kv_dtype : str, optional
        Stored type; None means `dtype`. Both attributes hold the name that was resolved.

    Raises
    ------
    ArgumentError
        For a size that is not positive, an unknown dtype, or a row that is no multiple of 16 bytes.
    UnsupportedError
        For a `head_dim` or `block_len` that no kernel serves; the text names the nearest that is.

    Examples
    --------
    >>> layout = BlockLayout(num_kv_heads=8, head_dim=128, block_len=64)
    >>> layout.row_bytes, layout.block_bytes
    (256, 262144)
    >>> layout.v_data(0, 1, 3) - layout.k_data(0, 1, 3)
    16384
    """

    num_kv_heads: int
    head_dim: int
    block_len: int = 64
    num_layers: int = 1
    dtype: str = "float16"
    kv_dtype: str | None = None
    k_rows: Affine = field(init=False, repr=False, compare=False)  # K's rows as an affine map; the kernels get its numbers
    v_rows: Affine = field(init=False, repr=False, compare=False)
    block_bytes: int = field(init=False, repr=False, compare=False)  # `num_layers` layers
    k_params: Affine = field(init=False, repr=False, compare=False)  # all 0 unless quantised
    v_params: Affine = field(init=False, repr=False, compare=False)
    kind: str = field(init=False, repr=False, compare=False)  # all that makes it, in a str: that keeps its hash, for keys of calls
    softmax_scale: float = field(init=False, repr=False, compare=False)  # of calls that name none

    def __post_init__(self) -> None:
        for name in ("num_kv_heads", "head_dim", "block_len", "num_layers"):
            value = getattr(self, name)
            number = whole(value)
            if number is None or number < 1:
                raise ArgumentError(f"`{name}` must be a positive integer; got {value!r}.")
            object.__setattr__(self, name, number)
        dtype = dtypes.activation(self.dtype)
        object.__setattr__(self, "dtype", dtype.name)
        object.__setattr__(self, "kv_dtype", dtypes.stored(self.kv_dtype, dtype).name)
        for name, served in (("head_dim", HEAD_DIMS), ("block_len", BLOCK_LENS)):
            value = getattr(self, name)
            if value not in served:
                nearest = min(served, key=lambda s: (abs(s - value), s))
                raise UnsupportedError(f"`{name}` must be one of {served}; got {value}. The nearest is {nearest}.")
        if self.row_bytes % ROW_ALIGNMENT:
            raise ArgumentError(
                f"a row must be a multiple of {ROW_ALIGNMENT} bytes; head_dim {self.head_dim} in {self.kv_dtype} makes {self.row_bytes}."
            )
        kind = f"{self.num_kv_heads}x{self.head_dim}x{self.block_len}x{self.num_layers} {self.dtype} {self.kv_dtype}"
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "softmax_scale", self.head_dim**-0.5)
        rows, entries = self.block_len * self.row_bytes, self.block_len * self.param_bytes
        layer = self.num_kv_heads * 2 * (rows + entries)
        object.__setattr__(self, "k_rows", Affine(0, layer, 2 * rows, self.row_bytes))
        object.__setattr__(self, "v_rows", Affine(rows, layer, 2 * rows, self.row_bytes))
        object.__setattr__(self, "block_bytes", self.num_layers * layer)
        data = self.num_kv_heads * 2 * rows if self.quantised else 0
        object.__setattr__(self, "k_params", Affine(data, layer if self.quantised else 0, 2 * entries, self.param_bytes))
        object.__setattr__(self, "v_params", self.k_params._replace(base=data + entries))
        if layer * self.num_layers >= 2**31:
            raise ArgumentError(
                f"a block must be smaller than 2 GiB; this one has {layer * self.num_layers} bytes. Take a smaller block_len."
            )

    @property
    def quantised(self) -> bool:
        """Whether rows are codes with a (scale, zero) each."""
        return self.kv_dtype != self.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token of one head, K or V."""
        return self.head_dim * dtypes.of(self.kv_dtype).bits // 8

    @property
    def param_bytes(self) -> int:
        """Bytes of one row's parameters; 0 if the cache is not quantised."""
        return QUANTISED_PARAM_VALUES * dtypes.of(self.dtype).bits // 8 if self.quantised else 0

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer in a block."""
        return self.k_rows.per_layer

    @property
    def token_bytes(self) -> int:
        """Bytes of cache that one token takes, all layers and heads, K and V."""
        return self.block_bytes // self.block_len

    def k_data(self, layer: Any, head: Any, token: Any) -> Any:
        """Byte offset in a block of a token's K row; ints or integer arrays."""
        return self.k_rows.at(layer, head, token)

    def v_data(self, layer: Any, head: Any, token: Any) -> Any:
        """Byte offset in a block of a token's V row; ints or integer arrays."""
        return self.v_rows.at(layer, head, token)

    def k_param(self, layer: Any, head: Any, token: Any) -> Any:
        """Byte offset in a block of a K row's (scale, zero); ArgumentError if the cache is not quantised."""
        return self._quantised(self.k_params).at(layer, head, token)

    def v_param(self, layer: Any, head: Any, token: Any) -> Any:
        """Byte offset in a block of a V row's (scale, zero); ArgumentError if the cache is not quantised."""
        return self._quantised(self.v_params).at(layer, head, token)

    def _quantised(self, params: Affine) -> Affine:
        if not self.quantised:
            raise ArgumentError(f"a {self.kv_dtype} cache has no parameters; k_param and v_param need an int8 or int4 one.")
        return params
