"""What one kernel is made of: source, PTX, machine code, resources; found by name among the shipped and the stored."""

from __future__ import annotations

import difflib
import heapq
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagedattn.build import build
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.kernel import usage
from pagedattn.shipped import shipped
from pagedattn.store import Store

DISASSEMBLERS = {"nvdisasm": (), "cuobjdump": ("-sass",)}


@dataclass(frozen=True)
class Shown:
    """One kernel's parts.

    Attributes
    ----------
    name, source, ptx : str
        The spec's name, the CUDA source, the PTX.
    cubin : bytes
        Machine code (ELF).
    resources : dict
        What a thread and a CTA take, by name.
    """

    name: str
    source: str
    ptx: str
    cubin: bytes
    resources: dict[str, Any]

    def sass(self) -> str:
        """The machine code, disassembled; UnsupportedError where no disassembler is on PATH, or it fails."""
        found = next((path for tool in DISASSEMBLERS if (path := shutil.which(tool))), None)
        if found is None:
            names = " or ".join(DISASSEMBLERS)
            raise UnsupportedError(
                f"machine code is disassembled by {names}, and neither is on PATH. Both are in the CUDA toolkit, and in the wheels "
                "nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump, which put them under site-packages/nvidia."
            )
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder) / f"{self.name}.cubin"
            cubin.write_bytes(self.cubin)
            done = subprocess.run([found, *DISASSEMBLERS[Path(found).stem], str(cubin)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnsupportedError(f"{found} cannot read {self.name}: {done.stderr.strip()}. A newer CUDA toolkit may know the target.")
        return done.stdout


def find(name: str) -> Shown:
    """The kernel called `name`: a shipped one is compiled if need be, another must be in the store.

    Raises
    ------
    ArgumentError
        If there is none; the text names the closest.
    """
    specs = {spec.name: spec for spec in shipped()}
    if name in specs:
        kernel = build(specs[name])
        resources = {
            "registers": kernel.registers,
            "spill_bytes": kernel.spill_bytes,
            "stack_bytes": kernel.stack_bytes,
            "shared_bytes": kernel.shared_bytes,
            "threads": kernel.spec.threads,
            "code_bytes": len(kernel.cubin),
            "compile_seconds": round(kernel.seconds, 3),
        }
        return Shown(name, kernel.source, kernel.ptx, kernel.cubin, resources)
    stored = {entry.name: entry for entry in Store().entries()}
    if name not in stored:
        closest = _closest(name, [*stored, *specs])
        hint = f" Did you mean {' or '.join(closest)}?" if closest else " `pagedattn store list` prints those that were compiled."
        raise ArgumentError(f"a kernel must be in the shipped set or in the store; there is none called {name!r}.{hint}")
    try:
        source, compiled = stored[name].read()
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{stored[name].path} must be whole to be shown; {error}. `pagedattn store clear` removes it.") from error
    return Shown(name, source, compiled.ptx.decode(), compiled.cubin, {**usage(compiled.log)._asdict(), "code_bytes": len(compiled.cubin)})


def _closest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names that share the most parts with `name`, its operation before all; one that lacks parts is nearly right too."""
    parts = name.split("_")

    def shared(other: str) -> int:
        found = other.split("_")
        return len(set(parts) & set(found)) + len(parts) * (parts[0] == found[0])

    ranked: dict[str, int] = {other: shared(other) for other in names}
    best = heapq.nlargest(50, (other for other, count in ranked.items() if count), key=ranked.__getitem__)
    return sorted(best, key=lambda other: (-ranked[other], -difflib.SequenceMatcher(None, name, other).ratio()))[:3]
