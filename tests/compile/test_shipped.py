"""Every shipped kernel compiles for every target, and takes no more than the target grants. Each is compiled once a run."""

from __future__ import annotations

import re
import struct

import pytest

from pagedattn import arch, build, nvrtc
from pagedattn.errors import UnsupportedError
from pagedattn.footprint import STATIC_SHARED_BYTES
from pagedattn.kernel import Kernel
from pagedattn.shipped import shipped
from pagedattn.spec import KernelSpec
from pagedattn.store import Store

TARGETS = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
try:
    HERE = [t for t in TARGETS if arch.parse(t) in nvrtc.archs()]
except UnsupportedError:  # no compiler: the tests are skipped, target by target
    HERE = []
# Variants (general, varlen, parts) differ from prefill and plain decode in few lines: they are compiled for one target of each mma only.
VARIANT_TARGETS = ("sm_70", "sm_75", "sm_80")
SPECS = [
    s
    for s in shipped(HERE)
    if not (s.op == "varlen" or s.general or s.splits == "parts") or (s.arch in VARIANT_TARGETS and not (s.op == "varlen" and s.general))
]
# CUDA C++ Programming Guide, technical specifications per compute capability.
# A multiprocessor has four partitions, to which warps are dealt out.
PARTITION_REGISTERS, THREAD_REGISTERS = 16384, 255
REGISTER_UNIT = 8  # a thread's registers are granted in eights
PREFILL_STACK_BYTES = 64  # a few values that a tile needs once; more would be traffic in the loop
CP_ASYNC, CP_ASYNC_UNIFORM, END_COLLECTIVE = 0xFAE, 0xDAE, 0x91B  # opcodes, as nvdisasm -hex shows them
CTA_SYSTEM_BYTES = 1024  # of shared memory that the system keeps for each CTA since sm_80


@pytest.mark.parametrize("target", TARGETS)
def test_the_compiler_has_the_target(target: str) -> None:
    if target not in HERE:
        pytest.skip(f"NVRTC {'.'.join(map(str, nvrtc.version()))} lacks {target}: none of its kernels were compiled")


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_compiles_within_the_budget(spec: KernelSpec) -> None:
    kernel = build.make(spec, Store())
    _check_entry_point(kernel)
    _check_registers(kernel)
    _check_shared_memory(kernel)
    if spec.family == "sm80" and spec.op in ("decode", "prefill", "varlen"):
        _check_instructions(kernel)
    assert "warning" not in kernel.log


@pytest.mark.parametrize("splits", ["whole", "parts"])
@pytest.mark.parametrize(("head_dim", "kv_dtype"), [(64, None), (128, None), (256, None), (128, "int8")])
def test_scores_that_change_are_written_once(head_dim: int, kv_dtype: str | None, splits: str) -> None:
    """Of the general kernels for the targets whose assembler would write them twice."""
    if "sm_90" not in HERE:
        pytest.skip("NVRTC lacks sm_90")
    spec = KernelSpec("prefill", head_dim=head_dim, kv_dtype=kv_dtype, arch="sm_90", splits=splits, general=True)
    _check_instructions(build.make(spec, Store()))


def _check_entry_point(kernel: Kernel) -> None:
    assert re.findall(r"\.entry (\w+)\(", kernel.ptx) == [kernel.spec.name]
    assert f"\0.text.{kernel.spec.name}\0".encode() in kernel.cubin
    assert f".target {kernel.spec.arch}" in kernel.ptx


def _check_registers(kernel: Kernel) -> None:
    spec = kernel.spec
    per_thread = -(-kernel.registers // REGISTER_UNIT) * REGISTER_UNIT
    assert 0 < kernel.registers <= THREAD_REGISTERS
    warps = -(-(spec.min_ctas or 1) * (spec.warps or 0) // 4)
    assert warps * 32 * per_thread <= PARTITION_REGISTERS
    if spec.op in ("prefill", "varlen"):
        assert kernel.stack_bytes <= PREFILL_STACK_BYTES
    else:
        assert (kernel.spill_bytes, kernel.stack_bytes) == (0, 0)


def _check_shared_memory(kernel: Kernel) -> None:
    target = arch.parse(kernel.spec.arch)
    assert kernel.static_shared_bytes <= STATIC_SHARED_BYTES
    assert kernel.shared_bytes <= target.cta_shared_bytes
    system = CTA_SYSTEM_BYTES if target.family == "sm80" else 0
    assert (kernel.spec.min_ctas or 1) * (kernel.shared_bytes + system) <= target.sm_shared_bytes


def _check_instructions(kernel: Kernel) -> None:
    """No cp.async takes its place in shared memory from a uniform register, and what a warp does together is written once.

    Assemblers confuse the place's register with that of the L2 policy (mainloop_sm80.cuh, `after`): the H200 called such an instruction
    illegal. From sm_90 on they write every vote and shuffle a second time for lanes that a branch before it may have parted, a tenth of a
    kernel's code; a vote, or `uniform`, tells them that it does not. Kernels that write codes of new rows have a few.
    """
    spec = kernel.spec
    opcodes = {word & 0xFFF for word in _instructions(kernel)}
    assert CP_ASYNC in opcodes
    assert CP_ASYNC_UNIFORM not in opcodes
    assert END_COLLECTIVE not in opcodes or (spec.fused and spec.quantised)


def _instructions(kernel: Kernel) -> list[int]:
    """The first half of each 16-byte instruction of the entry point's section in the cubin, an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", kernel.cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", kernel.cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", kernel.cubin, table + i * size) for i in range(count)]
    names = sections[names_at][4]
    wanted = f".text.{kernel.spec.name}\0".encode()
    (section,) = (s for s in sections if kernel.cubin.startswith(wanted, names + s[0]))
    return [word for word, _ in struct.iter_unpack("<QQ", kernel.cubin[section[4] : section[4] + section[5]])]
