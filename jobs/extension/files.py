"""The files of longer videos in OUT, and which row a key names: of the run itself, or of a longer video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from miga.errors import OutputError, UsageError
from miga.outside_data import OutsideDataError
from pipeline.records.manifest import ADDRESSES, Manifest
from pipeline.records.run_folder import RunRecord, path_in_out
from pipeline.rows import ManifestRow
from pipeline.storage.base import Storage

FOLDER: Final = "extended"
_NOTE: Final = re.compile(r"(\d{8,18})-[0-9a-f]{16}-(\d{1,9})\.json", re.ASCII)
MIN_KEY: Final = 4
"""Characters of a key that are enough to name a row, if no other key begins with them."""


def find_row(storage: Storage, record: RunRecord, key: str) -> ManifestRow:
    """The row that a key, or its beginning, names; of several rows of the same key the first.

    Raises:
        UsageError: if none does, or the beginnings of several keys are alike.
    """
    if len(key) < MIN_KEY:
        raise UsageError(f"{key!r} is too short for a key", f"give at least its first {MIN_KEY} characters")
    found: dict[str, ManifestRow] = {}
    for row in _rows(storage, record):
        if row.key.startswith(key):
            found.setdefault(row.key, row)
    if not found:
        raise UsageError(f"no row of {storage.root} has a key that begins with {key!r}", "look it up in the manifest")
    if len(found) > 1:
        named = ", ".join(sorted(found)[:3])
        raise UsageError(f"{len(found)} keys begin with {key!r}: {named}", "give more of it")
    return next(iter(found.values()))


def _rows(storage: Storage, record: RunRecord) -> Iterator[ManifestRow]:
    yield from Manifest(storage, record.settings.run.prompts_per_shard).read_rows()
    for name in storage.children(FOLDER):
        if _NOTE.fullmatch(name):
            yield read_note(storage, record, name)


def read_note(storage: Storage, record: RunRecord, name: str) -> ManifestRow:
    """The row of a longer video, which must be of the video that its file's name says.

    Raises:
        OutputError: if it is not.
    """
    path = f"{FOLDER}/{name}"
    try:
        row = ManifestRow.from_json(storage.read_bytes(path))
        if what := _not_of_its_name(row, record, name):
            raise OutsideDataError(what)
    except ValueError as error:
        raise OutputError(f"{storage.uri(path)} is broken: {error}", "delete it, and extend that row again") from error
    places = {name: storage.uri(path_in_out(uri)) for name in ADDRESSES if (uri := getattr(row, name))}
    return replace(row, **places)  # OUT may have been moved


def _not_of_its_name(row: ManifestRow, record: RunRecord, name: str) -> str:
    """What a note says that its name denies, or its own key; empty if nothing."""
    match = _NOTE.fullmatch(name)
    assert match is not None
    if (row.row, row.num_frames) != (int(match[1]), int(match[2])):
        return f"it is of row {row.row} with {row.num_frames} frames"
    if row.status != "ok" or row.seed is None or row.num_frames is None:
        return f"it is of a row that is {row.status}"
    key = record.key_of(row, row.seed, row.num_frames)
    return "" if row.key == key else "its key is not of what it says"
