"""What `pagedattn tune` found: a race for each key, and the report of them all."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pagedattn.tuning import DecodeTile, Key, Tile

if TYPE_CHECKING:
    from pagedattn.tuned import Row

Seconds = tuple[float, ...]  # of a call, for each workload


class Shape(NamedTuple):
    """A workload: so many sequences of `length` tokens, of which `new` are queries."""

    sequences: int
    new: int
    length: int

    def __str__(self) -> str:
        return f"{self.sequences} x {self.length}" if self.new == 1 else f"{self.sequences} x {self.new} of {self.length}"


class Outcome(NamedTuple):
    """How a finalist did against the shipped row.

    Attributes
    ----------
    gain : float
        The median pair's: 0.02 is 2 % faster, over all workloads.
    spread : tuple of float
        The lowest and the highest pair's.
    each : tuple of float
        The median pair's for each workload by itself.
    """

    gain: float
    spread: tuple[float, float]
    each: tuple[float, ...]


@dataclass(frozen=True)
class Race:
    """The candidates of one key.

    Attributes
    ----------
    key : Key
    shapes : tuple of Shape
        The workloads.
    shipped : Tile
        The row of the shipped table.
    figures : dict of Tile to tuple of float
        Seconds of a call of each workload, for every candidate that was measured.
    finals : dict of Tile to Outcome
        The pairs that the fastest raced against the shipped row.
    skipped : dict of Tile to str
        Why the others were not measured, or did not win.
    ahead : tuple of Tile
        Finalists that beat the shipped row by more than the noise, best first.
    winner : Tile, optional
        The first of them whose kernels are all sound; None: the shipped row stays.
    """

    key: Key
    shapes: tuple[Shape, ...]
    shipped: Tile
    figures: Mapping[Tile, Seconds]
    finals: Mapping[Tile, Outcome]
    skipped: dict[Tile, str] = field(default_factory=dict)
    ahead: tuple[Tile, ...] = ()
    winner: Tile | None = None

    @classmethod
    def of(
        cls,
        key: Key,
        shapes: tuple[Shape, ...],
        figures: Mapping[Tile, Seconds],
        pairs: Mapping[Tile, Sequence[tuple[Seconds, Seconds]]],
        skipped: dict[Tile, str],
        least_gain: float,
        most_loss: float,
    ) -> Race:
        """Judge pairs of (shipped row's seconds, finalist's): a finalist is ahead that gains enough over all workloads, gains at all in
        every pair but one, and in no workload loses more than is granted.
        """
        finals, ahead = {}, []
        for tile, found in pairs.items():
            gains = sorted(faster(theirs, mine) - 1 for theirs, mine in found)
            each = tuple(median([a[i] / b[i] - 1 for a, b in found]) for i in range(len(shapes)))
            finals[tile] = Outcome(median(gains), (gains[0], gains[-1]), each)
            if finals[tile].gain >= least_gain and gains[min(1, len(gains) - 1)] > 0 and min(each) >= -most_loss:
                ahead.append(tile)
        ahead.sort(key=lambda tile: finals[tile].gain, reverse=True)
        return cls(key, shapes, next(iter(figures)), figures, finals, skipped, tuple(ahead))

    def with_winner(self, tile: Tile) -> Race:
        """The race, won by a tile."""
        return replace(self, winner=tile)

    @property
    def best(self) -> Tile | None:
        """The winner, else the finalist that came nearest; None if there was none."""
        return self.winner or max(self.finals, key=lambda tile: self.finals[tile].gain, default=None)

    def to_dict(self) -> dict[str, Any]:
        """The race as plain data."""
        return {
            **self.key._asdict(),
            "workloads": [str(shape) for shape in self.shapes],
            "shipped": self.shipped._asdict(),
            "winner": self.winner and self.winner._asdict(),
            "finals": [{"tile": tile._asdict(), **outcome._asdict()} for tile, outcome in self.finals.items()],
            "us": [{"tile": tile._asdict(), "us": [round(1e6 * s, 2) for s in seconds]} for tile, seconds in self.figures.items()],
            "skipped": [{"tile": tile._asdict(), "why": why} for tile, why in self.skipped.items()],
        }


@dataclass(frozen=True)
class TuneReport:
    """What `tune` did; prints as a table.

    Attributes
    ----------
    device, arch : str
        The GPU's name, and its target.
    path : Path, optional
        The file that was written, or removed where no row is left; None: nothing was kept.
    races : tuple of Race
        One for each key that was measured.
    left : tuple of Key
        Those for which no time was left.
    seconds : float
        What it all took.
    """

    device: str
    arch: str
    path: Path | None
    races: tuple[Race, ...]
    left: tuple[Key, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "device": self.device,
            "arch": self.arch,
            "path": self.path and str(self.path),
            "seconds": round(self.seconds, 1),
            "races": [race.to_dict() for race in self.races],
            "left": [key._asdict() for key in self.left],
        }

    def __str__(self) -> str:
        lines = [f"{'row for':<24}{'tried':>6}{'skipped':>9}  {'shipped':<20}{'us':>16}  {'best other':<20}{'us':>16}{'gain':>8}"]
        lines += [line for race in self.races for line in _lines(race)]
        won = sum(race.winner is not None for race in self.races)
        kept = f"kept in {self.path}" if self.path is not None and self.path.exists() else "nothing is kept"
        left = f"; no time was left for {len(self.left)} more" if self.left else ""
        lines.append(f"{won} of {len(self.races)} rows tuned on {self.device}, {self.arch}, in {self.seconds:.0f} s{left}; {kept}")
        return "\n".join(lines)


@dataclass(frozen=True)
class TableInUse:
    """The rows that a device uses, prefill's for long sequences behind that for all others; prints as a table. `model` is empty where tuned
    rows are not looked for."""

    device: str
    model: str
    arch: str
    rows: Sequence[tuple[Key, Row]]

    def to_dict(self) -> dict[str, Any]:
        """The table as plain data."""
        rows = [{**key._asdict(), "tile": row.tile._asdict(), "origin": row.origin} for key, row in self.rows]
        return {"device": self.device, "model": self.model, "arch": self.arch, "rows": rows}

    def __str__(self) -> str:
        lines = [f"{words(key):<24}{short(row.tile):<24}{row.origin}" for key, row in self.rows]
        return "\n".join([f"{self.device}: {self.model or 'no GPU of its own'}, {self.arch}", *lines])


def faster(theirs: Seconds, mine: Seconds) -> float:
    """How many times faster `mine` is, over all workloads.

    >>> faster((4.0, 1.0), (2.0, 2.0))
    1.0
    """
    return math.prod(a / b for a, b in zip(theirs, mine, strict=True)) ** (1 / len(mine))


def median(values: Sequence[float]) -> float:
    """The middle one of an odd number of values; the mean of the middle two of an even one."""
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def short(tile: Tile) -> str:
    """A row in the words of the kernels' names.

    >>> short(DecodeTile(10, 2))
    's16x2_w10'
    """
    if isinstance(tile, DecodeTile):
        return f"s{tile.cta_s}x{tile.stages}_w{tile.warps}"
    return f"q{tile.cta_q}_s{tile.cta_s}x{tile.stages}_w{tile.warps}_c{tile.min_ctas}_p{tile.part_tiles}"


def words(key: Key) -> str:
    """A key in a few words.

    >>> words(Key("decode", 128, 8, 4)), words(Key("prefill", 64, 0, 16))
    ('decode d128 h8 4-bit', 'prefill d64 16-bit')
    """
    return f"{key.op} d{key.head_dim}{f' h{key.heads}' if key.heads else ''} {key.bits}-bit"


def _lines(race: Race) -> Iterator[str]:
    start = f"{words(race.key):<24}{len(race.figures):>6}{len(race.skipped):>9}  {short(race.shipped):<20}{_us(race, race.shipped):>16}"
    best = race.best
    if best is None:
        yield f"{start}  none"
    else:
        gain = f"{100 * race.finals[best].gain:+.1f} %"
        yield f"{start}  {short(best):<20}{_us(race, best):>16}{gain:>8}{'  taken' if race.winner else ''}"
    for why in dict.fromkeys(race.skipped.values()):
        yield f"  {' '.join(short(tile) for tile, reason in race.skipped.items() if reason == why)}: {why}"


def _us(race: Race, tile: Tile) -> str:
    return " ".join(f"{1e6 * seconds:.0f}" for seconds in race.figures[tile])
