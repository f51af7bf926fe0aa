"""The file of tuned rows beside the store: `tuned/<GPU>-<target>.json`, one row a line, checked as a whole and replaced as a whole."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pagedattn import render, resources, tuning
from pagedattn.errors import UnsupportedError
from pagedattn.store import Store
from pagedattn.tuning import DecodeTile, Key, PrefillTile, Tile

FOLDER = "tuned"
TILES = {"decode": DecodeTile, "prefill": PrefillTile}


class Record(NamedTuple):
    """A row that was tuned.

    Attributes
    ----------
    key : Key
    tile : DecodeTile or PrefillTile
    made : str
        The day, such as "2026-11-21".
    gain : float
        How much faster than the shipped row: 0.02 is 2 %.
    """

    key: Key
    tile: Tile
    made: str
    gain: float


@cache
def kernels() -> str:
    """What rows are tuned for: a digest of every header, template and shipped row."""
    import hashlib  # here and not above: `import pagedattn` stays quick

    digest = hashlib.sha256()
    for name, content in render.headers().items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    for path in sorted(resources.folder("templates").glob("*.j2")):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} ".encode() + content)
    digest.update(repr((tuning.DECODE_OF, tuning.PREFILL_OF, tuning.PREFILL_LONG)).encode())
    return digest.hexdigest()[:12]


def place(root: Path, model: str, arch: str) -> Path:
    """Where a store keeps the rows for a GPU's name and target.

    >>> place(Path("store"), "NVIDIA H200", "sm_90").as_posix()
    'store/tuned/NVIDIA-H200-sm_90.json'
    """
    return root / FOLDER / f"{re.sub('[^0-9A-Za-z]+', '-', model).strip('-')}-{arch}.json"


def find(model: str, arch: str) -> list[Path]:
    """The files for a GPU's name and target: the user's own, then those of the layers."""
    shelf = Store()
    return [path for root in (shelf.path, *shelf.layers) if (path := place(root, model, arch)).exists()]


def read(path: Path, model: str, arch: str) -> list[Record]:
    """What a file holds; OSError, ValueError, TypeError or KeyError if it is damaged, or made for other GPUs or kernels."""
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is no file of tuned rows: it is nested too deep") from None
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        raise ValueError("it is not what was written: its checksum differs")
    if (content["device"], content["arch"]) != (model, arch):
        raise ValueError(f"it is for {content['device']}, {content['arch']}, and this GPU is {model}, {arch}")
    if content["kernels"] != kernels():
        raise ValueError(f"its rows were tuned for the kernels of another version, {content['kernels']}; these are {kernels()}")
    if not isinstance(content["rows"], list):
        raise ValueError("its rows must be a list")
    return [_record(row) for row in content["rows"]]


def write(model: str, arch: str, nvrtc: str, records: Iterable[Record]) -> Path:
    """Replace the user's own file, whole or not at all; without records, remove it.

    Raises
    ------
    UnsupportedError
        If it cannot be written.
    """
    shelf, rows = Store(), [_row(record) for record in sorted(records)]
    path = place(shelf.path, model, arch)
    content = {"device": model, "arch": arch, "kernels": kernels(), "nvrtc": nvrtc, "rows": rows}
    head, lines = {**content, "checksum": _checksum(content)}, ",\n  ".join(map(json.dumps, rows))
    del head["rows"]
    import shutil  # here and not above: `import pagedattn` stays quick

    temporary = shelf.path / f".tmp-{os.urandom(16).hex()}"  # the store sweeps what a killed process leaves
    try:
        if not rows:
            path.unlink(missing_ok=True)
            return path
        temporary.mkdir(parents=True)
        try:
            (temporary / path.name).write_text(f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n', encoding="utf-8")
            path.parent.mkdir(exist_ok=True)
            (temporary / path.name).replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UnsupportedError(f"{path} must be writable to keep tuned rows; got {error}. Set PAGEDATTN_HOME to another folder.") from error
    return path


def _row(record: Record) -> dict[str, Any]:
    return {**record.key._asdict(), "tile": record.tile._asdict(), "gain": round(record.gain, 4), "made": record.made}


def _record(row: dict[str, Any]) -> Record:
    key = Key(*(row[name] for name in Key._fields))
    return Record(key, TILES[key.op](**row["tile"]), str(row["made"]), float(row["gain"]))


def _checksum(content: dict[str, Any]) -> str:
    import hashlib  # here and not above: `import pagedattn` stays quick

    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
