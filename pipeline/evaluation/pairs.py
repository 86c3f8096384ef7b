"""Videos of several runs, put together by what they were asked for: the prompts and the seed."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, TypeAlias

from miga.errors import UsageError
from pipeline.records.manifest import Manifest
from pipeline.records.references import video_name
from pipeline.records.run_folder import read_run
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

Asked: TypeAlias = tuple[tuple[str, ...], int | None]
"""Prompts in turn, and the seed."""

FORM: Final = ("num_frames", "fps", "height", "width")
"""What is equal of videos that people compare: nothing may tell them apart but what they show."""
_MOST_SHOWN: Final = 60


@dataclass(frozen=True, kw_only=True)
class System:
    """A run whose videos are compared.

    Attributes:
        name: that it goes by in tables; pages do not say it.
        storage: of the run.
        rows: asked for → the row that was made of it.
        faults: rows that cannot be compared, in words.
    """

    name: str
    storage: Storage
    rows: Mapping[Asked, ManifestRow]
    faults: tuple[str, ...] = ()

    def video_path(self, asked: Asked) -> str:
        """Where the video lies in the run's storage."""
        row = self.rows[asked]
        return f"video/{row.shard:05d}/{video_name(row)}"


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """What several systems have in common.

    Attributes:
        asked: prompts and seeds that all of them have a video of, in the order of the first one's rows.
        left_out: what they have not, or in another form, in words.
    """

    asked: tuple[Asked, ...]
    left_out: tuple[str, ...]


def open_systems(outs: Sequence[str]) -> list[System]:
    """The runs at these places, by the last parts of their names, or their whole names where those are alike.

    Raises:
        UsageError: if there are fewer than two, or the same twice.
        OutputError: if one holds no run, or its manifest cannot be read.
    """
    storages = [open_storage(out) for out in outs]
    roots = [storage.root for storage in storages]
    if len(outs) < 2:
        raise UsageError("two or more runs are compared, and one was named", "name them: OUT_A OUT_B")
    if len(set(roots)) < len(roots):
        raise UsageError("the same run is named twice", "name different ones")
    names = [PurePosixPath(root.rstrip("/")).name for root in roots]
    if len(set(names)) < len(names):
        names = roots
    return [_open(name, storage) for name, storage in zip(names, storages, strict=True)]


def _open(name: str, storage: Storage) -> System:
    record = read_run(storage)
    rows: dict[Asked, ManifestRow] = {}
    faults: list[str] = []
    for row in Manifest(storage, record.settings.run.prompts_per_shard).read_rows():
        asked = (row.prompts, row.seed)
        if row.status != "ok":
            faults.append(f"{name}: row {row.row} ({described(asked)}) has no video: {row.error_type}")
        elif asked in rows:
            faults.append(
                f"{name}: row {row.row} is left out: row {rows[asked].row} has its prompt and seed ({described(asked)})"
            )
        else:
            rows[asked] = row
    return System(name=name, storage=storage, rows=rows, faults=tuple(faults))


def pair_up(systems: Sequence[System], form: Iterable[str] = FORM) -> Pairing:
    """Finds the videos that all systems have of one prompt and seed, and says by name what is left out.

    Args:
        systems: at least two.
        form: columns of the manifest in which they must be equal.
    """
    left_out = [fault for system in systems for fault in system.faults]
    every = list(dict.fromkeys(asked for system in systems for asked in system.rows))
    seeds: dict[tuple[str, ...], dict[str, list[int | None]]] = defaultdict(lambda: defaultdict(list))
    for system in systems:
        for prompts, seed in system.rows:
            seeds[prompts][system.name].append(seed)
    common: list[Asked] = []
    for asked in every:
        lacking = [system.name for system in systems if asked not in system.rows]
        if lacking:
            left_out.append(_unpaired(asked, systems, lacking, seeds[asked[0]]))
        elif unlike := _unlike(asked, systems, form):
            left_out.append(f"{described(asked)}: {unlike}")
        else:
            common.append(asked)
    return Pairing(asked=tuple(common), left_out=tuple(left_out))


def _unpaired(
    asked: Asked, systems: Sequence[System], lacking: Sequence[str], seeds: Mapping[str, Sequence[int | None]]
) -> str:
    there = ", ".join(system.name for system in systems if asked in system.rows)
    others = [f"{name} has it with seed {', '.join(map(str, seeds[name]))}" for name in lacking if name in seeds]
    without = [f"{name} does not have that prompt" for name in lacking if name not in seeds]
    return f"{described(asked)} of {there}: {'; '.join(others + without)}"


def _unlike(asked: Asked, systems: Sequence[System], form: Iterable[str]) -> str:
    """In which columns the videos are unlike; empty if in none."""
    faults = []
    for column in form:
        values = [getattr(system.rows[asked], column) for system in systems]
        if len(set(values)) > 1:
            each = ", ".join(f"{value} in {system.name}" for value, system in zip(values, systems, strict=True))
            faults.append(f"{column} differs: {each}")
    return "; ".join(faults)


def described(asked: Asked) -> str:
    """Prompt and seed in a few words."""
    prompts, seed = asked
    text = " / ".join(prompts)
    return f"{text[:_MOST_SHOWN]}{'…' if len(text) > _MOST_SHOWN else ''} (seed {seed})"


def pairs_of(systems: Sequence[System]) -> list[tuple[System, System]]:
    """Every two of them, the earlier one first."""
    return list(itertools.combinations(systems, 2))
