"""Launches: what the driver is told, and that kernels which may start early wait before they touch memory."""

from __future__ import annotations

import ctypes
import re
import threading
from typing import Any

import numpy as np
import pytest

from pagedattn import nvrtc, params, render
from pagedattn.devices.launch import Config, Launcher, may_overlap
from pagedattn.params import OPERANDS, STRUCT_BYTES
from pagedattn.spec import KernelSpec

KERNELS = [
    *(
        KernelSpec(op=op, head_dim=64, arch="sm_90", kv_dtype=kv)
        for op in ("decode", "prefill", "append", "gather")
        for kv in (None, "int8")
    ),
    KernelSpec(op="decode", head_dim=64, arch="sm_90", fused=True),
    KernelSpec(op="decode", head_dim=64, arch="sm_90", splits="cut"),
    KernelSpec(op="decode", head_dim=64, arch="sm_90", general=True),
    KernelSpec(op="varlen", head_dim=64, arch="sm_90"),
    KernelSpec(op="merge", head_dim=64, arch="sm_90"),
    KernelSpec(op="decode", head_dim=64, arch="sm_90", family="sm70"),
]


class Driver:
    """Notes the last launch."""

    status = 0

    def __call__(self, config: int, function: int, pointers: int, extra: int) -> int:
        self.config, self.function, self.extra = Config.from_address(config), function, extra
        argument = ctypes.cast(pointers, ctypes.POINTER(ctypes.c_void_p))[0]
        assert argument is not None
        self.argument = ctypes.string_at(argument, STRUCT_BYTES)
        self.attributes = [tuple((ctypes.c_int * 3).from_address(self.config.attributes))] * self.config.num_attributes
        return self.status


@pytest.mark.parametrize("overlapping", [False, True])
def test_what_the_driver_is_told(overlapping: bool) -> None:
    driver, bound = Driver(), []
    launcher = Launcher(driver, RuntimeError, lambda: bound.append(threading.get_ident()), overlapping)
    struct = np.frombuffer(np.random.default_rng(0).bytes(STRUCT_BYTES), np.uint8)
    image = launcher.image(struct.tobytes(), 132, 384, 200_000)
    operands = tuple((1 << 44) + 16 * i for i in range(len(OPERANDS)))
    launcher.launch(1 << 40, image, operands[:-2], operands[-2:], 1 << 45)
    config = driver.config
    assert (list(config.grid), list(config.block), config.shared_bytes, config.stream) == ([132, 1, 1], [384, 1, 1], 200_000, 1 << 45)
    assert (driver.function, driver.extra) == (1 << 40, 0)
    told = np.frombuffer(driver.argument, params.dtype())[0]
    assert tuple(told[name] for name in OPERANDS) == operands
    assert driver.argument[8 * len(operands) :] == struct[8 * len(operands) :].tobytes()
    assert driver.attributes == ([(6, 0, 1)] if overlapping else [])  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, padding, 1
    assert bound == [threading.get_ident()]


def test_a_status_is_an_error() -> None:
    driver = Driver()
    launcher = Launcher(driver, RuntimeError, lambda: None, overlapping=True)
    driver.status = 701
    with pytest.raises(RuntimeError, match="701"):
        launch(launcher, 0)


def test_each_thread_has_memory_of_its_own() -> None:
    """What another thread launches while the driver reads this one's launch does not change it."""
    driver, bound, places = Driver(), [], []

    def reading(config: int, function: int, pointers: int, extra: int) -> int:
        places.append((config, pointers))
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=launch, args=(launcher, 2))
            thread.start()
            thread.join()
        return driver(config, function, pointers, extra)

    launcher = Launcher(reading, RuntimeError, lambda: bound.append(threading.get_ident()), overlapping=False)
    for _ in range(2):
        launch(launcher, 1)
        assert np.frombuffer(driver.argument, params.dtype())[0]["q"] == 1
        assert driver.config.stream == 1
    assert len(bound) == 3  # this thread once, and two others
    assert places[0] == places[2]
    assert places[0] != places[1]


def launch(launcher: Launcher, number: int) -> None:
    launcher.launch(1, launcher.image(b"", 1, 32, 0), (number,) * 7, (number,) * 2, number)


@pytest.mark.parametrize(("arch", "driver", "may"), [(90, 12030, True), (120, 13000, True), (90, 12020, False), (89, 13000, False)])
def test_who_may_overlap(arch: int, driver: int, may: bool) -> None:
    assert may_overlap(arch, driver) is may


@pytest.mark.parametrize("spec", KERNELS, ids=lambda spec: spec.name)
def test_kernels_wait_before_they_touch_memory(spec: KernelSpec) -> None:
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy")
    compiled: Any = nvrtc.compile(render.render(spec), spec.name, spec.arch, render.headers())
    ptx = compiled.ptx if isinstance(compiled.ptx, str) else compiled.ptx.decode()
    body = ptx[ptx.index(f".entry {spec.name}") :]
    wait = body.index("griddepcontrol.wait;")
    touched = re.search(r"\b(ld|st|atom|red|cp\.async|prefetch)(\.\w+)*\.global|\bprefetch\b|\bld\.volatile\b", body)
    assert touched is not None
    assert wait < touched.start()
    assert not re.search(r"\bbra\b", body[:wait])  # every thread waits


@pytest.mark.parametrize(("arch", "hinted"), [("sm_80", False), ("sm_90", True)])
def test_decode_tells_l2_what_to_give_up_first(arch: str, hinted: bool) -> None:
    """From sm_90 on, and only for keys and values: lines of codes' parameters are read by more copies than one."""
    pytest.importorskip("cupy", reason="NVRTC comes with CuPy")
    spec = KernelSpec("decode", kv_dtype="int8", arch=arch)
    ptx = nvrtc.compile(render.render(spec), spec.name, arch, render.headers()).ptx.decode()
    copies = re.findall(r"cp\.async\.cg\S*", ptx)
    assert {"cache_hint" in copy for copy in copies} == ({True, False} if hinted else {False})
    policies = set(re.findall(r"cache_hint\S* .*(%rd\d+);", ptx))
    assert bool(policies) is hinted
    assert all(re.search(rf"\bld\.param\.[bu]64\s+{policy},", ptx) for policy in policies), "a parameter, which costs no registers"


@pytest.mark.cuda
def test_policies_are_those_that_the_gpu_makes() -> None:
    cp = pytest.importorskip("cupy")
    if int(cp.cuda.Device().compute_capability) < 80:
        pytest.skip("createpolicy needs sm_80")
    made = cp.zeros(1, cp.uint64)
    code = 'asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(*made));'
    kernel = cp.RawKernel(f'extern "C" __global__ void make(unsigned long long* made) {{ {code} }}', "make")
    kernel((1,), (1,), (made,))
    assert int(made[0]) == params.EVICT_FIRST
