"""The weights file: float16 arrays and a JSON text in one .npz, read without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from pagedattn.demo.model import Config
from pagedattn.errors import ArgumentError

SHIPPED = Path(__file__).with_name("weights.npz")


@dataclass(frozen=True)
class Weights:
    """What the file holds.

    Attributes
    ----------
    config : Config
        The shape of the model.
    arrays : dict of str to ndarray
        float16, named and shaped as Config.shapes() says.
    training : dict
        How they were made: text, tokens, seconds, bits per byte on held-out files.
    """

    config: Config
    arrays: dict[str, np.ndarray[Any, Any]]
    training: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())


def load(path: Path = SHIPPED) -> Weights:
    """Read a weights file.

    Raises
    ------
    ArgumentError
        If a weight is missing, or is not float16 of its shape; the text names it.

    Examples
    --------
    >>> weights = load()
    >>> weights.config.num_heads, weights.config.num_kv_heads
    (8, 2)
    """
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    if "about" not in arrays:
        raise ArgumentError(f"{path} must hold a text `about`; it holds {', '.join(arrays) or 'nothing'}.")
    about = json.loads(str(arrays.pop("about")))
    config = Config(**{f.name: about["config"][f.name] for f in fields(Config)})
    for name, shape in config.shapes().items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != np.float16:
            came = "nothing" if found is None else f"{found.dtype} {found.shape}"
            raise ArgumentError(f"{path}: {name!r} must be float16 {shape}; got {came}.")
    return Weights(config, arrays, about["training"])


def save(path: Path, config: Config, arrays: Mapping[str, np.ndarray[Any, Any]], training: Mapping[str, Any]) -> None:
    """Write a weights file; arrays are rounded to float16."""
    about = json.dumps({"config": asdict(config), "training": dict(training)})
    rounded = {name: np.asarray(arrays[name]).astype(np.float16) for name in config.shapes()}
    with path.open("wb") as file:
        np.savez(file, about=np.array(about), **rounded)  # type: ignore[arg-type]
