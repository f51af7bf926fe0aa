"""What the kernels move, counted: figures that hold on any machine, and gates that a change of a kernel must pass."""

from __future__ import annotations

import numpy as np
import pytest

import pagedattn as pa
from pagedattn import ptx
from pagedattn.devices.interpreter import InterpreterDevice
from pagedattn.ptx.micro import text

LENGTHS = (160, 32, 96)
DIMS = (64, 96, 128, 192, 256)


def counted(
    op: str,
    head_dim: int,
    heads: int = 4,
    splits: int | None = None,
    dtype: str = "float16",
    target: str = "sm_80",
    kv_dtype: str | None = None,
) -> ptx.Counts:
    """The counts of one launch over three sequences whose lengths fill tiles."""
    device = InterpreterDevice(target)
    cache = pa.KVCache(32, num_kv_heads=2, head_dim=head_dim, block_len=16, dtype=dtype, kv_dtype=kv_dtype, device=device)
    cache.pool[:] = 0
    sequences = [cache.new_sequence() for _ in LENGTHS]
    batch = cache.extend(sequences, list(LENGTHS))
    if op == "decode":
        batch = cache.batch(sequences)
    q = device.zeros((batch.num_tokens, 2 * heads, head_dim), cache.layout.dtype if dtype == "float16" else pa.dtypes.of(dtype).numpy)
    device.counting = True
    pa.paged_attention(q, cache, batch, num_splits=splits)
    (counts,) = device.launches
    return counts


@pytest.mark.parametrize("splits", [None, 2])
@pytest.mark.parametrize("heads", [4, 16])
@pytest.mark.parametrize("head_dim", DIMS)
def test_decode_reads_k_and_v_of_a_group_once(head_dim: int, heads: int, splits: int | None) -> None:
    counts = counted("decode", head_dim, heads, splits)
    needed = sum(LENGTHS) * 2 * 2 * head_dim * 2  # KV heads, K and V, bytes
    moved = counts.bytes_of("pool").moved_bytes
    assert needed <= moved <= 1.03 * needed
    assert {width for name, _, width in counts.global_traffic if name == "pool"} == {16}


@pytest.mark.parametrize("head_dim", DIMS)
@pytest.mark.parametrize("op", ["decode", "prefill"])
def test_no_bank_conflicts_on_the_paths_of_k_and_v(op: str, head_dim: int) -> None:
    counts = counted(op, head_dim)
    sites = [
        s for s in counts.shared_sites.values() if s.instruction.startswith(("ldmatrix", "cp.async")) or (op == "decode" and _reads_kv(s))
    ]
    assert sites
    assert {str(s.lines[0]): s.conflicts for s in sites if s.conflicts} == {}
    assert {width for name, _, width in counts.global_traffic if name == "pool"} == {16}


SM70_PREFILL = [(dim, None) for dim in DIMS] + [(96, "int8"), (128, "int4")]


@pytest.mark.parametrize(("head_dim", "kv_dtype"), SM70_PREFILL)
@pytest.mark.parametrize("target", ["sm_70", "sm_75"])
def test_no_bank_conflicts_where_tiles_go_through_registers(target: str, head_dim: int, kv_dtype: str | None) -> None:
    """Tiles are written by 16 bytes a lane and read by ldmatrix, or by 16 bytes a lane where there is none; so is Q."""
    counts = counted("prefill", head_dim, target=target, kv_dtype=kv_dtype)
    sites = [s for s in counts.shared_sites.values() if s.width == 16 and not _of_rows_that_end(s)]
    kinds = {s.instruction.split()[0] for s in sites}
    reads = {"ld.shared.v4.u32"} if target == "sm_70" else {f"ldmatrix.sync.aligned.m8n8.x4{how}.shared.b16" for how in ("", ".trans")}
    assert kinds == {"st.shared.v4.u32", *reads}
    assert {str(s.lines[0]): s.conflicts for s in sites if s.conflicts} == {}


SM70_DECODE = [(dim, 8, None) for dim in DIMS] + [(64, 16, None), (128, 8, "int8"), (128, 8, "int4"), (96, 8, "int8"), (256, 8, "int4")]


@pytest.mark.parametrize(("head_dim", "heads", "kv_dtype"), SM70_DECODE)
@pytest.mark.parametrize("target", ["sm_70", "sm_75"])
def test_sm70_decode_reads_once_and_without_conflicts(target: str, head_dim: int, heads: int, kv_dtype: str | None) -> None:
    """A pack's heads read K and V once, 16 bytes a lane; tiles are written and read, and P passes, without bank conflicts."""
    counts = counted("decode", head_dim, heads, target=target, kv_dtype=kv_dtype)
    row = pa.BlockLayout(1, head_dim, 16, kv_dtype=kv_dtype).token_bytes
    needed = sum(LENGTHS) * 2 * row
    assert needed <= counts.bytes_of("pool").moved_bytes <= 1.03 * needed
    assert {width for name, _, width in counts.global_traffic if name == "pool"} == {16}
    sites = [s for s in counts.shared_sites.values() if any(line.file == "kernels/ptx/memory.cuh" for line in s.lines)]
    kinds = {s.instruction.split()[0] for s in sites}
    assert {"ld.shared.v4.u32", "st.shared.v4.u32"} <= kinds
    assert {str(s.lines): s.conflicts for s in sites if s.conflicts} == {}


@pytest.mark.parametrize(
    ("target", "kv_dtype", "limit"),
    [
        ("sm_75", None, 2.6),
        ("sm_75", "int8", 3.05),
        ("sm_75", "int4", 3.75),
        ("sm_70", None, 3.2),
        ("sm_70", "int8", 3.35),
        ("sm_70", "int4", 3.2),
    ],
)
def test_sm70_decode_instructions_for_a_key_and_head(target: str, kv_dtype: str | None, limit: float) -> None:
    """Warp instructions that another key costs, for each of a pack's eight heads: a sequence's, less those of a shorter one."""
    spent = []
    for length in (512, 1536):
        device = InterpreterDevice(target)
        cache = pa.KVCache(96, num_kv_heads=1, head_dim=128, block_len=16, kv_dtype=kv_dtype, device=device)
        cache.pool[:] = 0
        sequences = [cache.new_sequence()]
        cache.extend(sequences, [length])
        batch = cache.batch(sequences)
        device.counting = True
        pa.paged_attention(device.zeros((1, 8, 128), np.float16), cache, batch)
        spent.append(sum(device.launches[0].instructions.values()))
    found = (spent[1] - spent[0]) / ((1536 - 512) * 8)
    assert found <= limit


def _of_rows_that_end(site: ptx.counts.Site) -> bool:
    return any(line.file == "kernels/prefill/epilogue.cuh" for line in site.lines)


def _reads_kv(site: ptx.counts.Site) -> bool:
    """A read of decode's ring, in its arithmetic."""
    return site.instruction.startswith("ld.shared.v") and any(line.file == "kernels/decode/impl_m16n8.cuh" for line in site.lines)


def test_the_table_says_what_was_counted() -> None:
    counts = counted("prefill", 64)
    shown, table = str(counts), counts._repr_html_()
    for word in ("pool", "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", "tensor", "CTA barriers", "kernels/ptx/ldmatrix.cuh:"):
        assert word in shown
        assert word in table
    assert counts.instructions["tensor"] > 0
    assert counts.barriers >= counts.ctas
    assert counts.thread_instructions > 32 * sum(counts.instructions.values()) / 2


def test_sectors_and_banks_of_known_patterns() -> None:
    """One warp: 4-byte reads 8 bytes apart move twice what they use; 4-byte writes 8 bytes apart take two passes, 128 bytes apart 32."""
    body = """mov.u32 %tmp0, room; .reg .pred %there; setp.lt.u32 %there, %lane, 32;
    mad.lo.u32 %tmp1, %lane, 8, %tmp0; st.shared.u32 [%tmp1], %lane;
    mad.lo.u32 %tmp1, %lane, 128, %tmp0; st.shared.u32 [%tmp1], %lane;
    mad.lo.u32 %tmp1, %lane, 16, %tmp0; @%there st.shared.v4.u32 [%tmp1+8192], {%lane, %lane, %lane, %lane};
    ld.param.u64 %base, [in0_p]; mul.wide.u32 %at, %lane, 8; add.s64 %at, %base, %at; ld.global.u32 %tmp2, [%at];"""
    source = text(
        body.replace(
            "st.shared.u32 [%tmp1], %lane;\n    mad.lo.u32 %tmp1, %lane, 16",
            "st.shared.u32 [%tmp1+16384], %lane;\n    mad.lo.u32 %tmp1, %lane, 16",
        ),
        ["b32"],
        [],
        shared=32768,
    )
    room = np.zeros(64 + 16, np.uint32)
    first = -room.ctypes.data % 64 // 4  # 64 values that begin with a sector
    counts = ptx.run(source, 1, 32, [room[first : first + 64]], counts=True)
    assert [s.passes for s in sorted(counts.shared_sites.values(), key=lambda s: s.ptx_line)] == [2, 32, 4]
    assert {row[1] for _, _, rows in counts.rows()[1:2] for row in rows} == {"st.shared.u32", "st.shared.v4.u32"}
    assert [s.conflicts for s in sorted(counts.shared_sites.values(), key=lambda s: s.ptx_line)] == [1, 31, 0]
    traffic = counts.bytes_of("in0_p")
    assert (traffic.requests, traffic.useful_bytes, traffic.moved_bytes) == (2, 256, 128 + 256)
