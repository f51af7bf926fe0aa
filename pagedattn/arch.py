"""Compiler targets and what each grants a kernel."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pagedattn.errors import ArgumentError, UnsupportedError


@dataclass(frozen=True, order=True)
class Arch:
    """A compiler target, such as sm_80.

    Attributes
    ----------
    number : int
        Compute capability times ten.
    cta_shared_bytes, sm_shared_bytes : int
        Shared memory that one CTA may take, and that one multiprocessor has (CUDA C Programming Guide, technical specifications
        per compute capability; a CTA also pays 1 KB that the system keeps).
    """

    number: int
    cta_shared_bytes: int
    sm_shared_bytes: int

    @property
    def name(self) -> str:
        return f"sm_{self.number}"

    @property
    def family(self) -> str:
        """Which source serves this target: "sm70" (synchronous loads) or "sm80" (cp.async)."""
        return "sm70" if self.number < 80 else "sm80"

    @property
    def mma(self) -> str:
        """The shape of the tensor-core instruction that its kernels use."""
        return next(name for name, (_, oldest) in reversed(MMAS.items()) if oldest <= self.number)

    def __str__(self) -> str:
        return self.name


def _kib(number: int, cta: int, sm: int) -> Arch:
    return Arch(number, cta * 1024, sm * 1024)


ARCHS = {
    a.number: a
    for a in (
        _kib(70, 96, 96),
        _kib(75, 64, 64),
        _kib(80, 163, 164),
        _kib(86, 99, 100),
        _kib(87, 163, 164),
        _kib(89, 99, 100),
        _kib(90, 227, 228),
        _kib(100, 227, 228),
        _kib(103, 227, 228),
        _kib(120, 99, 100),
        _kib(121, 99, 100),
    )
}
OLDEST = 70
FAMILIES = ("sm70", "sm80")
# Shape -> its family, and the oldest target that has it
MMAS = {"m8n8k4": ("sm70", 70), "m16n8k8": ("sm70", 75), "m16n8k16": ("sm80", 80)}


def parse(value: str | int | Arch) -> Arch:
    """The target that `value` names: "sm_80", "80", 80, or an Arch.

    >>> parse("sm_90").cta_shared_bytes
    232448
    >>> parse("sm_91")
    Traceback (most recent call last):
    ...
    pagedattn.errors.UnsupportedError: sm_91 is not a target of this version; the nearest is sm_90. Targets: sm_70, ...
    """
    if isinstance(value, Arch):
        return value
    match = re.fullmatch(r"(?:sm_|compute_)?(\d+)a?", str(value))
    if not match:
        raise ArgumentError(f"`arch` must look like 'sm_80'; got {value!r}.")
    number = int(match[1])
    if number in ARCHS and number >= OLDEST:
        return ARCHS[number]
    known = [n for n in ARCHS if n >= OLDEST]
    nearest = max((n for n in known if n <= number), default=min(known))
    names = ", ".join(f"sm_{n}" for n in known)
    raise UnsupportedError(f"sm_{number} is not a target of this version; the nearest is sm_{nearest}. Targets: {names}.")


def of_device(number: int) -> Arch:
    """The target for a device of compute capability `number` / 10: the newest known of the same generation.

    A cubin runs on devices of its own major version and a minor version at least its own.
    """
    same = [n for n in ARCHS if n // 10 == number // 10 and n <= number and n >= OLDEST]
    return ARCHS[max(same)] if same else parse(number)


def borrowed(source: str, own: Arch) -> Arch:
    """The target whose kernels a GPU is to run instead of its own's: what a device's name asks for after its "+".

    >>> str(borrowed("sm_75", parse("sm_90")))
    'sm_75'
    """
    target = parse(source)
    if target.family != "sm70" or target > own:
        raise ArgumentError(f"`device` may ask for the kernels of sm_70 or sm_75, not newer than the GPU's own {own}; got '+{source}'.")
    return target
