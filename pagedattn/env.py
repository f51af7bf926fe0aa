"""The only module that reads the process environment."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Where compiled kernels are kept: $PAGEDATTN_HOME, else pagedattn under the XDG cache folder."""
    if chosen := os.environ.get("PAGEDATTN_HOME"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pagedattn"


def store_layers() -> list[Path]:
    """Read-only stores below the user's own ($PAGEDATTN_STORE_PATH, separated like $PATH): container layers, shared disks."""
    return [Path(p) for p in os.environ.get("PAGEDATTN_STORE_PATH", "").split(os.pathsep) if p]


def jit_enabled() -> bool:
    """False under PAGEDATTN_JIT=0: a kernel that the store lacks is then an error, not a compilation."""
    return _flag("PAGEDATTN_JIT", True)


def check_enabled() -> bool:
    """True under PAGEDATTN_CHECK=1: calls on a GPU check block tables on the host before they launch."""
    return _flag("PAGEDATTN_CHECK", False)


def tuned_enabled() -> bool:
    """False under PAGEDATTN_TUNED=0: GPUs use the shipped tuning table, whatever `pagedattn tune` has found."""
    return _flag("PAGEDATTN_TUNED", True)


def plain_terminal() -> bool:
    """True under NO_COLOR (no-color.org) and on TERM=dumb: no escape sequences."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _flag(name: str, default: bool) -> bool:
    value = os.environ.get(name)
    return default if not value else value.strip().lower() not in ("0", "false", "no", "off")
