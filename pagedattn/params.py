"""AttentionParams: one table of fields gives the struct that Python packs and the struct that CUDA reads.

It is passed by value to every kernel. Fields are ordered widest first, so that no compiler puts padding between them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np


class Field(NamedTuple):
    """One field: its name, its type in CUDA, and what it holds."""

    name: str
    c_type: str
    meaning: str


# What a call asks besides attention itself: all zero for a plain call, which so costs the host nothing.
EXTRA_FIELDS = (
    Field("rope_table", "const u64*", "turns a token of each pair as a 64-bit fraction, lowest two bits its axis; null: nothing turns"),
    Field("rope_positions", "const int*", "positions of the new tokens (axes, num_tokens); null: their places in their sequences"),
    Field("q_bias", "const void*", "(num_heads, head_dim), like q; null: none"),
    Field("k_bias", "const void*", "(num_kv_heads, head_dim), like k; null: none"),
    Field("v_bias", "const void*", "likewise"),
    Field("alibi_slopes", "const float*", "one slope per head (num_heads); null: none"),
    Field("mask", "const u8*", "one byte per (query, key) of each sequence; null: none"),
    Field("mask_starts", "const i64*", "where each sequence's bytes begin"),
    Field("mask_ranges", "int*", "first and past the last key that it keeps for 64 queries (prefill/mask_ranges.cuh); null: all"),
    Field("finished", "const u8*", "sequences to skip; null: none"),
    Field("rope_dim", "int", "elements of a head that turn"),
    Field("rope_interleaved", "int", "1: pairs are (2i, 2i + 1); 0: (i, i + rope_dim / 2)"),
    Field("rope_stride", "int", "entries from one sequence's table to the next; 0: all share one"),
    Field("rope_axis_stride", "int", "entries from one axis of rope_positions to the next"),
    Field("prepare", "int", "append: 1: rows of k and v change on their way in; those of q do, where there is q"),
    Field("logn_max_position", "int", "positions after which q grows by log2(position) * logn_scale; 0: none"),
    Field("rope_factor", "float", "what cos and sin are multiplied by"),
    Field("logn_scale", "float", "1 / log2(logn_max_position)"),
    Field("alibi_scale", "float", "1 / softmax_scale: slopes act on q.k"),
)

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
    Field("partial_count", "u32*", "workspace, zero between launches: counts of a split segment; decode, flat: pieces that CTAs send"),
    Field("block_table", "const int*", "block indices (batch_size, max_blocks)"),
    Field("cu_seqlens_q", "const int*", "cumulative query lengths (batch_size + 1); null: one query per sequence"),
    Field("cu_seqlens_k", "const int*", "cumulative key lengths (batch_size + 1)"),
    Field("merge_outs", "const void* const*", "merge: addresses of num_splits partial outputs, each like out"),
    Field("merge_lses", "const float* const*", "merge: addresses of their log-sum-exps"),
    Field("extras", "Extras", "what a call asks besides attention itself"),
    Field("q_stride", "i64", "elements from one token of q to the next"),
    Field("k_stride", "i64", "elements from one token of k to the next"),
    Field("v_stride", "i64", "elements from one token of v to the next"),
    Field("out_stride", "i64", "elements from one token of out to the next"),
    Field("l2_policy", "u64", "decode, sm_90 and up: how long L2 keeps keys and values, EVICT_NORMAL or EVICT_FIRST"),
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
    Field("head_packs", "int", "decode: head packs of a KV head, 1 unless `general`; prefill: log2 of the heads packed in a query tile"),
    Field("max_seqlen_q", "int", "longest query"),
    Field("causal", "int", "1: key position <= query position"),
    Field("adjust", "int", "1: scores change before the softmax: softcap, ALiBi, mask; by kernels that are `general`"),
    Field("single_queries", "int", "1: prefill takes sequences with one query, too"),
    Field("window_size", "int", "keys that a query sees, itself included; 0: all"),
    Field("num_splits", "int", "decode with cuts: cuts of a sequence, or minus the keys of a cut; prefill, merge: parts"),
    Field("max_splits", "int", "decode with cuts: places for groups of keys per segment"),
    Field(
        "cp_size",
        "int",
        "ranks that share keys; 1 in decode unless `general`; lengths are the sequences' own, block_table is of this rank's tokens",
    ),
    Field("cp_rank", "int", "this rank: its token i stands at position i * cp_size + cp_rank"),
    Field("cp_factor", "u32", "params.divisor(cp_size): the factor; not read where cp_size is 1"),
    Field("cp_shift", "int", "likewise: the shift"),
    Field("packs_factor", "u32", "decode: params.divisor(head_packs): the factor; not read where head_packs is 1"),
    Field("packs_shift", "int", "likewise: the shift"),
    Field("splits_factor", "u32", "decode with cuts: params.divisor(num_splits), or of the tiles of a cut: the factor"),
    Field("splits_shift", "int", "likewise: the shift"),
    Field("qk_scale", "float", "softmax_scale * log2(e)"),
    Field("softcap_in", "float", "softmax_scale / softcap, on q.k before tanh; 0: none"),
    Field("softcap_out", "float", "softcap / softmax_scale, after tanh"),
)

# In the order of FIELDS. The arrays are a Problem's operands.
ARRAYS = ("q", "k", "v", "out", "lse", "sinks")
OPERANDS = (*ARRAYS, "pool", "partial_o", "partial_count")

# What l2_policy may be: the bits of a copy without a policy, and those that createpolicy.fractional.L2::evict_first makes, which a test
# compares on a GPU. For the first createpolicy has no word: with its evict_normal decode reads 9 % slower. NVIDIA's CUTLASS has both as
# constants. A policy that is a parameter costs no register; one that a kernel makes costs two, and two instructions at each copy.
EVICT_NORMAL = 0x1000000000000000
EVICT_FIRST = 0x12F0000000000000

_CODES = {"i64": "q", "u64": "Q", "int": "i", "u32": "I", "float": "f"}
_NUMPY = {"i64": "<i8", "u64": "<u8", "int": "<i4", "u32": "<u4", "float": "<f4"}
_EXTRAS_CODE = "<" + "".join("Q" if f.c_type.endswith("*") else _CODES[f.c_type] for f in EXTRA_FIELDS)
EXTRAS_BYTES = (struct.calcsize(_EXTRAS_CODE) + 7) // 8 * 8


def _code(c_type: str) -> str:
    return "Q" if c_type.endswith("*") else f"{EXTRAS_BYTES}s" if c_type == "Extras" else _CODES[c_type]


NAMES = tuple(f.name for f in FIELDS)
_FORM = "<" + "".join(_code(f.c_type) for f in FIELDS)
# CUDA aligns the struct to its widest field, 8 bytes, and so pads its end.
STRUCT_BYTES = (struct.calcsize(_FORM) + 7) // 8 * 8
PACKER = struct.Struct(f"{_FORM}{STRUCT_BYTES - struct.calcsize(_FORM)}x")


def _packer(fields: tuple[Field, ...], form: str) -> Callable[..., bytes]:
    """A function with a keyword per field, 0 where none is given: the fastest way from names to bytes."""
    scope: dict[str, Any] = {"pack_struct": struct.Struct(form).pack}
    names = [f.name for f in fields]
    keywords = ", ".join(f"{f.name}={b'' if f.c_type == 'Extras' else 0!r}" for f in fields)
    exec(f"def pack(*, {keywords}):\n    return pack_struct({', '.join(names)})", scope)
    packed: Callable[..., bytes] = scope["pack"]
    return packed


pack = _packer(FIELDS, PACKER.format)
pack_extras = _packer(EXTRA_FIELDS, _EXTRAS_CODE)

# fill(buffer, 0, *addresses) and operands(buffer): those of a packed struct
_OPERANDS = struct.Struct(f"<{len(OPERANDS)}Q")
fill, operands = _OPERANDS.pack_into, _OPERANDS.unpack_from


def divisor(d: int) -> tuple[int, int]:
    """A factor and a shift by which kernels divide by d, 1 to 2**30, in three instructions (kernels/core/divide.cuh).

    >>> factor, shift = divisor(7)
    >>> all((2 * x * factor >> 32) >> shift == x // 7 for x in (0, 6, 7, 10**9, 2**31 - 1))
    True
    """
    shift = (d - 1).bit_length()
    return (1 << (31 + shift)) // d + 1, shift


def dtype() -> np.dtype[Any]:
    """The struct as a NumPy dtype, for those who fill it themselves.

    >>> dtype().itemsize == STRUCT_BYTES
    True
    """
    return _dtype(FIELDS, STRUCT_BYTES)


def _dtype(fields: tuple[Field, ...], size: int) -> np.dtype[Any]:
    formats = [
        "<u8" if f.c_type.endswith("*") else _dtype(EXTRA_FIELDS, EXTRAS_BYTES) if f.c_type == "Extras" else _NUMPY[f.c_type]
        for f in fields
    ]
    offsets = [struct.calcsize("<" + "".join(_code(g.c_type) for g in fields[:i])) for i in range(len(fields))]
    return np.dtype({"names": [f.name for f in fields], "formats": formats, "offsets": offsets, "itemsize": size})


AttentionParams = dtype()


@cache
def c_struct() -> str:
    """The structs as CUDA source, with their sizes asserted."""
    parts = []
    for name, fields, size in (("Extras", EXTRA_FIELDS, EXTRAS_BYTES), ("AttentionParams", FIELDS, STRUCT_BYTES)):
        lines = [f"    {f.c_type} {f.name};  // {f.meaning}" for f in fields]
        parts.append(f"struct {name} {{\n" + "\n".join(lines) + f"\n}};\nstatic_assert(sizeof({name}) == {size});\n")
    return "".join(parts)
