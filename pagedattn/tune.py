"""tune: measure on this GPU whether other tiles serve it better than the shipped tuning table's, and keep those that do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedattn import arch as archs
from pagedattn import candidates, devices, dispatch, env, tuned, tuned_file, tuning
from pagedattn.errors import ArgumentError, UnsupportedError
from pagedattn.layout import HEAD_DIMS
from pagedattn.precompile import fill, listed, workers
from pagedattn.spec import HEAD_PACKS
from pagedattn.trial import Trial, load, timed, variants
from pagedattn.tune_report import Race, Seconds, TableInUse, TuneReport, faster, words
from pagedattn.tuned_file import Record
from pagedattn.tuning import Key, Tile
from pagedattn.values import whole

if TYPE_CHECKING:
    from pagedattn.devices.base import Device
    from pagedattn.store import Store

LEAST_GAIN = 0.01  # over all workloads of a key; what is less may be noise
MOST_LOSS = 0.01  # in any of them
ROUNDS = 7  # pairs of shipped row and candidate, one after the other, that decide
FINALISTS = 3
GROUPS = {0: 4, 8: 4, 16: 16}  # query heads of a KV head, for each pack, unless the caller says


def tune(
    device: str | Device | None = None,
    *,
    ops: Iterable[str] | str | None = None,
    head_dims: Iterable[int] | int | None = None,
    kv_dtypes: Iterable[str] | str | None = None,
    groups: Iterable[int] | int | None = None,
    quick: bool = False,
    seconds: float | None = None,
    dry_run: bool = False,
    jobs: int | None = None,
    progress: bool = True,
) -> TuneReport:
    """Measure candidates for rows of the tuning table on a GPU, and keep those that beat the shipped row.

    Every candidate is compiled, refused if it spills, and compared with attention in float64 before it is timed. The fastest ones then race
    the shipped row in pairs; one that wins by more than 1 % and by more than the pairs differ is kept in a file beside the store, which
    calls on GPUs of the same name and target read once per process. In a script, call it under ``if __name__ == "__main__":``.

    Parameters
    ----------
    device : str or Device, optional
        None: the default device.
    ops : sequence of str, optional
        "decode", "prefill"; None: both.
    head_dims : sequence of int, optional
        None: all.
    kv_dtypes : sequence of str, optional
        "float16" (bfloat16 shares its rows), "int8", "int4"; None: all.
    groups : sequence of int, optional
        Query heads of each KV head: for decode they choose the rows, of packs that hold such groups. None: 4, and 16 for decode.
    quick : bool
        Only the candidates that are nearest to the shipped row.
    seconds : float, optional
        Begin no further row after this time; None: all are measured.
    dry_run : bool
        Keep nothing.
    jobs : int, optional
        Processes that compile; None: one per core.
    progress : bool
        Show bars on stderr.

    Raises
    ------
    ArgumentError, UnsupportedError
        A value that no row has, a device that is no GPU, a store that cannot be written. Nothing was measured then.

    Examples
    --------
    >>> tune("cpu")
    Traceback (most recent call last):
    ...
    pagedattn.errors.UnsupportedError: tuning measures a GPU with its own kernels; got device cpu. ...
    """
    start = time.perf_counter()
    target, arch = _gpu(device)
    if not env.tuned_enabled():
        raise UnsupportedError("PAGEDATTN_TUNED=0 switches tuned rows off; unset it to tune.")
    work, processes = selected(arch, ops, head_dims, kv_dtypes, groups), workers(jobs)
    if seconds is not None and not seconds > 0:
        raise ArgumentError(f"`seconds` must be positive or None; got {seconds!r}.")
    import tempfile  # here and not above: `import pagedattn` stays quick

    from pagedattn.store import Store

    shelf = Store()
    if not dry_run and (why := shelf.why_unwritable()):
        raise UnsupportedError(f"the store at {shelf.path} must be writable to keep what is found; {why}. Set PAGEDATTN_HOME.")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Store(folder, layers=(shelf.path, *shelf.layers))
        tiles = {key: candidates.of(key, arch, quick) for key in work}
        first = [spec for key in work for tile in tiles[key] for spec in timed(key, arch, tile)]
        fill(list(dict.fromkeys(first)), scratch, processes, progress)
        races = []
        for key in work:
            if seconds is not None and time.perf_counter() - start > seconds:
                break
            races.append(_raced(Trial(target, key, work[key]), tiles[key], scratch, progress))
        found = [s for race in races for tile in race.ahead for s in variants(race.key, arch, tile)]
        if found:
            fill(list(dict.fromkeys(found)), scratch, processes, progress)
        races = [_decided(race, Trial(target, race.key, work[race.key]), scratch) for race in races]
        path = None if dry_run else _kept(races, target, arch, scratch, shelf)
    dispatch.forget()
    left = tuple(key for key in work if key not in {race.key for race in races})
    return TuneReport(target.model, arch, path, tuple(races), left, time.perf_counter() - start)


def reset(device: str | Device | None = None) -> Path | None:
    """Remove the file of tuned rows for a GPU: the path, or None where there was none."""
    target, arch = _gpu(device)
    from pagedattn.store import Store  # here and not above: `import pagedattn` stays quick

    path = tuned_file.place(Store().path, target.model, arch)
    there = path.exists()
    if there:
        tuned_file.write(target.model, arch, "", ())
    dispatch.forget()
    return path if there else None


def selected(
    arch: str,
    ops: Iterable[str] | str | None = None,
    head_dims: Iterable[int] | int | None = None,
    kv_dtypes: Iterable[str] | str | None = None,
    groups: Iterable[int] | int | None = None,
) -> dict[Key, int]:
    """The keys of a target that are asked for, each with the group that it is measured with."""
    bits = {"float16": 16, "int8": 8, "int4": 4}
    wanted: dict[str, list[Any]] = {}
    for name, values, known in (("ops", ops, ("decode", "prefill")), ("head_dims", head_dims, HEAD_DIMS), ("kv_dtypes", kv_dtypes, bits)):
        wanted[name] = list(known) if (given := listed(values)) is None else given
        if not wanted[name] or any(value not in known for value in wanted[name]):
            raise ArgumentError(f"`{name}` must be some of {', '.join(map(str, known))}, or None; got {values!r}.")
    sizes = listed(groups)
    if sizes is not None and (not sizes or any((number := whole(n)) is None or not 1 <= number <= 64 for n in sizes)):
        raise ArgumentError(f"`groups` must be integers from 1 to 64, or None; got {groups!r}.")
    mma = archs.parse(arch).mma
    found: dict[Key, int] = {}
    for op in wanted["ops"]:
        for head_dim in wanted["head_dims"]:
            for stored in wanted["kv_dtypes"]:
                for group in sizes or ((GROUPS[8], GROUPS[16]) if op == "decode" else (GROUPS[0],)):
                    pack = dispatch.pack_size(group, head_dim, stored, mma) if op == "decode" else 0
                    key = Key(op, head_dim, pack, bits[stored])
                    if tuning.rows(mma, key):
                        found.setdefault(key, group)
    return found


def table(
    device: str | Device | None = None,
    *,
    ops: Iterable[str] | str | None = None,
    head_dims: Iterable[int] | int | None = None,
    kv_dtypes: Iterable[str] | str | None = None,
    groups: Iterable[int] | int | None = None,
) -> TableInUse:
    """The rows that a device uses, each with where it comes from: all, or those that `tune` would measure if it were asked for the same."""
    target = devices.get(device)
    if target.arch is None or target.source is None:
        raise UnsupportedError(f"device {target.name} runs no kernels and has no tuning table. Name another, such as 'interpreter:sm_90'.")
    names = target.arch.name, target.source.name
    wanted = selected(names[1], ops, head_dims, kv_dtypes, groups)
    found: list[tuple[Key, tuned.Row]] = []
    for op, packs in (("decode", HEAD_PACKS), ("prefill", (0,))):
        for key in (Key(op, head_dim, heads, bits) for head_dim in HEAD_DIMS for heads in packs for bits in tuned.STORED):
            if key in wanted and tuning.rows(target.source.mma, key):
                stored = tuned.STORED[key.bits] or "float16"
                spec = dispatch.spec_for(op, "float16", stored, key.head_dim, *names, key.heads or None, model=target.model)
                long = tuned.for_long(spec, target.model) if op == "prefill" else None
                found += [(key, tuned.row_of(one, target.model)) for one in (spec, long) if one is not None]
    return TableInUse(target.name, target.model, names[0], found)


def _gpu(device: str | Device | None) -> tuple[Device, str]:
    target = devices.get(device)
    if target.arch is None or not target.model:
        raise UnsupportedError(
            f"tuning measures a GPU with its own kernels; got device {target.name}. `pagedattn doctor` says what is here."
        )
    return target, target.arch.name


def _raced(trial: Trial, tiles: Sequence[Tile], scratch: Store, progress: bool) -> Race:
    """Measure the candidates of a key, the first of which is the shipped row, and let the fastest race it."""
    shipped, *others = tiles
    assert trial.device.arch is not None
    figures: dict[Tile, Seconds] = {}
    skipped: dict[Tile, str] = {}
    for tile in _with_bar(tiles, trial.key, progress):
        if why := load(timed(trial.key, trial.device.arch.name, tile), trial.device, scratch) or trial.wrong(tile):
            if tile == shipped:
                raise UnsupportedError(f"the shipped row for {words(trial.key)} must be right to be raced; {why}")
            skipped[tile] = why
            continue
        if tile == shipped:
            trial.seconds(tile)  # warms the GPU up
        figures[tile] = trial.seconds(tile)
    order = sorted((t for t in others if t in figures), key=lambda t: faster(figures[shipped], figures[t]), reverse=True)
    finals = {tile: [(trial.seconds(shipped), trial.seconds(tile)) for _ in range(ROUNDS)] for tile in order[:FINALISTS]}
    return Race.of(trial.key, trial.shapes, figures, finals, skipped, LEAST_GAIN, MOST_LOSS)


def _decided(race: Race, trial: Trial, scratch: Store) -> Race:
    """The first of those that are ahead whose kernels are all sound."""
    assert trial.device.arch is not None
    for tile in race.ahead:
        specs = variants(race.key, trial.device.arch.name, tile)
        if why := load(specs, trial.device, scratch) or trial.wrong(tile, thorough=True):
            race.skipped[tile] = why
        else:
            return race.with_winner(tile)
    return race


def _kept(races: Sequence[Race], target: Device, arch: str, scratch: Store, shelf: Store) -> Path:
    """Write the file: rows of keys that were measured now are replaced, or removed; others stay, if they are still good."""
    today, measured = time.strftime("%Y-%m-%d"), {race.key for race in races}
    tuned.forget()
    records = [record for key, record in tuned.table(target.model, arch).rows.items() if key not in measured]
    won = {race.key: race.winner for race in races if race.winner is not None}
    records += [Record(race.key, tile, today, race.finals[tile].gain) for race in races if (tile := race.winner) is not None]
    names = {spec.name for key, tile in won.items() for spec in variants(key, arch, tile)}
    for entry in scratch.entries():
        if entry.name in names and entry.path.parent == scratch.path:
            shelf.install(entry.path.name, {p.name: p.read_bytes() for p in entry.path.iterdir()})
    from pagedattn import nvrtc

    return tuned_file.write(target.model, arch, ".".join(map(str, nvrtc.version())), records)


def _with_bar(tiles: Sequence[Tile], key: Key, shown: bool) -> Iterator[Tile]:
    from tqdm import tqdm  # here and not above: `import pagedattn` stays quick

    yield from tqdm(tiles, desc=words(key), unit="row", disable=not shown, dynamic_ncols=True)
