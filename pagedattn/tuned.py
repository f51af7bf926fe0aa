"""Tuned rows: what `pagedattn tune` measured to be better on a GPU than the row of the shipped table, and that comes before it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from pagedattn import env, tuned_file, tuning
from pagedattn.footprint import TILED
from pagedattn.spec import KernelSpec
from pagedattn.tuned_file import Record
from pagedattn.tuning import Key, PrefillTile, Tile, fields_of

MOST_CTAS = 2  # of prefill's that share a multiprocessor by a tuned row, unless the shipped row has more: workspace_bytes counts on it
STORED = {16: None, 8: "int8", 4: "int4"}  # a kv_dtype for each number of bits


class Row(NamedTuple):
    """A row of the tuning table, and where it comes from."""

    tile: Tile
    origin: str


class Table(NamedTuple):
    """The tuned rows for GPUs of one name and target, and the file that has them."""

    rows: Mapping[Key, Record]
    path: Path | None


EMPTY = Table({}, None)
_tables: dict[tuple[str, str], Table] = {}  # what `trying` puts here comes before any file


def taken(spec: KernelSpec, model: str) -> KernelSpec:
    """`spec`, with the row that was tuned on GPUs called `model` in place of the shipped one, if there is one."""
    record = table(model, spec.arch).rows.get(spec.key) if model and spec.op in ("decode", *TILED) else None
    return spec if record is None else replace(spec, **fields_of(record.tile))


def table(model: str, arch: str) -> Table:
    """The tuned rows for a GPU's name and target: none for no name, under PAGEDATTN_TUNED=0, or where the file cannot be used."""
    return _tables.get((model, arch)) or _read(model, arch)


def forget() -> None:
    """Empty this process's memory; files stay."""
    _read.cache_clear()
    row_of.cache_clear()


def model_for(splits: str | None, model: str) -> str:
    """Whose rows a kernel takes: those of a GPU's model, or the shipped ones, "". Results of "fixed:N" must not change with what was tuned.

    >>> model_for("flat", "NVIDIA H200"), model_for("cut", "NVIDIA H200")
    ('NVIDIA H200', '')
    """
    return "" if splits == "cut" else model


@cache
def row_of(spec: KernelSpec, model: str) -> Row:
    """The row that dispatch took for a spec of decode, prefill or varlen on GPUs called `model`, "" for all others.

    >>> row_of(KernelSpec("decode", arch="sm_86"), "").origin
    'row 3 of 3 of the shipped table'
    """
    found = table(model, spec.arch)
    if record := found.rows.get(spec.key):
        return Row(record.tile, f"tuned on {model}, {record.made}, {found.path or 'on trial'}")
    rows = tuning.rows(str(spec.mma), spec.key)
    long = tuning.long_row(str(spec.mma), spec.key)
    unset: dict[str, Any] = dict.fromkeys(tuning.SPEC_FIELDS)
    if long is not None and spec == replace(spec, **unset).for_long():
        return Row(long, "row for long sequences of the shipped table")
    number = next(i for i, row in enumerate(rows) if all(getattr(spec, name) == value for name, value in fields_of(row).items()))
    return Row(rows[number], f"row {number + 1} of {len(rows)} of the shipped table")


def for_long(spec: KernelSpec, model: str) -> KernelSpec | None:
    """Prefill's spec for long sequences in place of `spec`, the one for all others; None: they have the same, as where a row was tuned."""
    return None if spec.key in table(model, spec.arch).rows else _long(spec)


_long = cache(KernelSpec.for_long)


def prefill_row(spec: KernelSpec, model: str) -> PrefillTile:
    """`row_of` for prefill and varlen."""
    tile = row_of(spec, model).tile
    assert isinstance(tile, PrefillTile)
    return tile


@contextmanager
def trying(model: str, arch: str, key: Key, tile: Tile | None) -> Iterator[None]:
    """In its body a row is used in place of any other; None: the shipped one."""
    before = _tables.get((model, arch))
    _tables[model, arch] = Table({} if tile is None else {key: Record(key, tile, "", 0.0)}, None)
    row_of.cache_clear()
    try:
        yield
    finally:
        del _tables[model, arch]
        if before is not None:
            _tables[model, arch] = before
        row_of.cache_clear()


def spec_of(key: Key, arch: str, tile: Tile | None = None, **fields: Any) -> KernelSpec:
    """The spec of a key with a row, None: the shipped one. PagedAttnError if no kernel can have that row on the target."""
    fields = {"op": key.op, "kv_dtype": STORED[key.bits], "heads": key.heads or None, **({} if tile is None else fields_of(tile)), **fields}
    return KernelSpec(head_dim=key.head_dim, arch=arch, **fields)


def why_not(key: Key, arch: str, tile: Tile) -> str:
    """Why a row cannot take the place of the shipped one; empty if it can. PagedAttnError if no kernel can have it.

    It may want no more workspace, for `workspace_bytes` knows the shipped rows only.
    """
    new, old = spec_of(key, arch, tile), spec_of(key, arch)
    mine, theirs = ((s.min_ctas or 1) * s.cta_pieces * s.piece_bytes for s in (new, old))
    if mine > theirs:
        return f"it wants {mine} bytes of workspace for a multiprocessor, more than the shipped row's {theirs}"
    if isinstance(tile, PrefillTile):
        shipped = prefill_row(old, "")
        if tile.min_ctas > max(MOST_CTAS, shipped.min_ctas):
            return f"more than {max(MOST_CTAS, shipped.min_ctas)} CTAs would share a multiprocessor, and the keys of a query tile"
        if tile.cta_s * tile.part_tiles < shipped.cta_s * shipped.part_tiles:
            return f"CTAs would share fewer than {shipped.cta_s * shipped.part_tiles} keys each"
    return ""


@cache
def _read(model: str, arch: str) -> Table:
    if not model or not env.tuned_enabled():
        return EMPTY
    paths = tuned_file.find(model, arch)
    for path, following in zip(paths, [*paths[1:], "the shipped tuning table"], strict=False):
        try:
            records = tuned_file.read(path, model, arch)
            for record in records:
                if why := why_not(record.key, arch, record.tile):
                    raise ValueError(f"its row for {' '.join(map(str, record.key))} does not fit this version: {why}")
        except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            warnings.warn(
                f"{path} is ignored, and {following} used: {reason.rstrip('.')}. `pagedattn tune` measures anew, and "
                "`pagedattn tune --reset` removes the file, if it is your store's own.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            return Table({record.key: record for record in records}, path)
    return EMPTY
