"""Where the package's own files lie: kernels/ and templates/, in a checkout and in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pagedattn.errors import UnsupportedError


@cache
def folder(name: str) -> Path:
    """The folder called `name`: inside the package (a wheel), else beside it (a checkout).

    Parameters
    ----------
    name : str
        "kernels" or "templates".

    Raises
    ------
    UnsupportedError
        If the installation lacks it.

    Examples
    --------
    >>> folder("kernels").name
    'kernels'
    """
    package = Path(__file__).resolve().parent
    checkout = package.parent
    candidates = [package / name]
    if (checkout / "pyproject.toml").is_file():  # beside a wheel, in site-packages, `kernels` would be somebody else's
        candidates.append(checkout / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    looked = " or ".join(str(c) for c in candidates)
    raise UnsupportedError(f"an installation must hold the folder {name!r}; there is none at {looked}. Install pagedattn again.")
