"""AttentionParams: one table of fields gives the struct that Python packs and the struct that CUDA reads.

It is passed by value to every kernel. Fields are ordered widest first, so that no compiler puts padding between them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Field(NamedTuple):
    """One field: its name, its type in CUDA, and what it holds."""

    name: str
    c_type: str
    meaning: str


# The operands come first: addresses that change from call to call of one kind, and are filled in anew each time.
FIELDS = (
    Field("q", "const void*", "queries (num_tokens, num_heads, head_dim)"),
    Field("k", "const void*", "new keys (num_tokens, num_kv_heads, head_dim); gather writes here"),
    Field("v", "const void*", "new values, like k"),
    Field("out", "void*", "output, like q"),
    Field("lse", "float*", "log-sum-exp (num_tokens, num_heads), natural; null: not wanted"),
    Field("sinks", "const float*", "one logit per head (num_heads); null: none"),
    Field("pool", "char*", "the KV blocks, from the layer's first byte on"),
    Field("partial_o", "float*", "workspace: unnormalised pieces of split sequences"),
    Field("partial_count", "u32*", "workspace: what has arrived of a split segment; zero between launches"),
    Field("block_table", "const int*", "block indices (batch_size, max_blocks)"),
    Field("cu_seqlens_q", "const int*", "cumulative query lengths (batch_size + 1); null: one query per sequence"),
    Field("cu_seqlens_k", "const int*", "cumulative key lengths (batch_size + 1)"),
    Field("merge_outs", "const void* const*", "merge: addresses of num_splits partial outputs, each like out"),
    Field("merge_lses", "const float* const*", "merge: addresses of their log-sum-exps"),
    Field("q_stride", "i64", "elements from one token of q to the next"),
    Field("k_stride", "i64", "elements from one token of k to the next"),
    Field("v_stride", "i64", "elements from one token of v to the next"),
    Field("out_stride", "i64", "elements from one token of out to the next"),
    Field("block_bytes", "u32", "bytes from one block of the pool to the next"),
    Field("k_base", "int", "BlockLayout.k_rows: byte offset in a block's layer of head 0, token 0"),
    Field("v_offset", "int", "bytes from a row of K to the same row of V"),
    Field("head_bytes", "int", "bytes from one head to the next in a block"),
    Field("k_param_base", "int", "BlockLayout.k_params likewise; 0 unless quantised"),
    Field("v_param_offset", "int", "bytes from a row's K parameters to its V parameters"),
    Field("param_head_bytes", "int", "bytes from one head's parameters to the next"),
    Field("block_len_log2", "int", "log2 of the tokens per block"),
    Field("max_blocks", "int", "columns of block_table"),
    Field("num_tokens", "int", "rows of q (append), of k and v (gather)"),
    Field("batch_size", "int", "sequences"),
    Field("num_heads", "int", "query heads"),
    Field("num_kv_heads", "int", "KV heads"),
    Field("group_size", "int", "query heads per KV head"),
    Field("head_packs", "int", "decode: head packs of a KV head; prefill: log2 of the heads packed in a query tile"),
    Field("max_seqlen_q", "int", "longest query"),
    Field("causal", "int", "1: key position <= query position"),
    Field("window_size", "int", "keys that a query sees, itself included; 0: all"),
    Field("num_splits", "int", "decode with cuts: cuts of a sequence, or minus the keys of a cut; prefill, merge: parts"),
    Field("max_splits", "int", "decode with cuts: places for pieces per segment"),
    Field("qk_scale", "float", "softmax_scale * log2(e)"),
    Field("softcap_in", "float", "softmax_scale / softcap, on q.k before tanh; 0: none"),
    Field("softcap_out", "float", "softcap / softmax_scale, after tanh"),
)

# In the order of FIELDS. The arrays are a Problem's operands.
ARRAYS = ("q", "k", "v", "out", "lse", "sinks")
OPERANDS = (*ARRAYS, "pool", "partial_o", "partial_count")

_CODES = {"i64": "q", "int": "i", "u32": "I", "float": "f"}
_NUMPY = {"i64": "<i8", "int": "<i4", "u32": "<u4", "float": "<f4"}


def _code(c_type: str) -> str:
    return "Q" if c_type.endswith("*") else _CODES[c_type]


NAMES = tuple(f.name for f in FIELDS)
PACKER = struct.Struct("<" + "".join(_code(f.c_type) for f in FIELDS))
# CUDA aligns the struct to its widest field, 8 bytes, and so pads its end.
STRUCT_BYTES = (PACKER.size + 7) // 8 * 8


def _packer() -> Callable[..., bytes]:
    """A function with a keyword per field, 0 where none is given: the fastest way from names to bytes."""
    scope: dict[str, Any] = {"pack_struct": PACKER.pack}
    exec(f"def pack(*, {', '.join(f'{n}=0' for n in NAMES)}):\n    return pack_struct({', '.join(NAMES)})", scope)
    packed: Callable[..., bytes] = scope["pack"]
    return packed


pack = _packer()

# fill(buffer, 0, *addresses): the operands of a packed struct
fill = struct.Struct(f"<{len(OPERANDS)}Q").pack_into


def dtype() -> np.dtype[Any]:
    """The struct as a NumPy dtype, for those who fill it themselves.

    >>> dtype().itemsize == STRUCT_BYTES
    True
    """
    names, formats = zip(
        *((f.name, "<u8" if f.c_type.endswith("*") else _NUMPY[f.c_type]) for f in FIELDS),
        strict=True,
    )
    offsets = [struct.calcsize("<" + "".join(_code(g.c_type) for g in FIELDS[:i])) for i in range(len(FIELDS))]
    return np.dtype({"names": list(names), "formats": list(formats), "offsets": offsets, "itemsize": STRUCT_BYTES})


AttentionParams = dtype()


def c_struct() -> str:
    """The struct as CUDA source, with its size asserted."""
    lines = [f"    {f.c_type} {f.name};  // {f.meaning}" for f in FIELDS]
    return "struct AttentionParams {\n" + "\n".join(lines) + f"\n}};\nstatic_assert(sizeof(AttentionParams) == {STRUCT_BYTES});\n"
