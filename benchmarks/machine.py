"""What a result was measured on: device, driver, versions, clocks and temperature, and the commit."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "torch", "flashinfer-python", "flash-attn", "matplotlib")
MODE = {
    "decode": "medians of replayed graphs, no load before: the clocks are what short work gets",
    "prefill": "sustained: medians of events after half a second of uninterrupted load, limited by power",
}
_STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit", "clocks_event_reasons.active")


def facts(commit: str | None = None) -> dict[str, Any]:
    """The machine and the code; `commit` is for a source tree that came without its history."""
    import cupy

    import pagedattn
    from pagedattn import nvrtc

    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {
        "device": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "multiprocessors": properties["multiProcessorCount"],
        "l2_bytes": properties["l2CacheSize"],
        "driver": asked("driver_version", device.id).get("driver_version"),
        "cuda_of_driver": cupy.cuda.runtime.driverGetVersion(),
        "python": platform.python_version(),
        "pagedattn": pagedattn.__version__,
        "cupy": cupy.__version__,
        "nvrtc": ".".join(map(str, nvrtc.version())),
        **versions(),
        "commit": commit or commit_of(ROOT),
        "thermal_mode": MODE,
    }


def versions() -> dict[str, str | None]:
    """Of what may be installed besides; None: it is not."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit_of(folder: Path) -> str | None:
    """The commit that is checked out in `folder`, with "-dirty" if tracked files differ from it; None: no repository, or no git."""
    try:
        top, head = _git(folder, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top).resolve() != folder.resolve():
            return None
        return head + ("-dirty" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout


def state(index: int = 0) -> dict[str, str]:
    """Clocks, temperature and power now."""
    return asked(",".join(_STATE), index)


def asked(names: str, index: int = 0) -> dict[str, str]:
    """What nvidia-smi says of a GPU; empty where it is not to be had."""
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={names}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(names.split(","), values, strict=False))
