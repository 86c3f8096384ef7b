"""The page of a run, report.html."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from miga.errors import UsageError
from pipeline.evaluation.page_scores import read_scores
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.report.links import Links
from pipeline.report.page import write_report
from pipeline.report.pictures import RowPictures
from pipeline.report.strips import StripMaker
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage, checked_root

STRIPS_OF_A_BUCKET = 200
"""Contact strips of a page that plays no video, if not said otherwise."""


def make_report(
    storage: Storage,
    folder: str | None = None,
    *,
    valid_s: int | None = None,
    num_strips: int | None = None,
    served: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes the page of a run: beside its videos, or into a folder of its own.

    Args:
        storage: of the run.
        folder: where the page goes; None means into a local OUT.
        valid_s: for so many seconds, links to videos in object storage are signed addresses that play.
        num_strips: videos that get a contact strip; None means none where videos play, else `STRIPS_OF_A_BUCKET`.
        served: whether the page is for `miga serve`, which has the videos below it.
        say: is told what is going on.

    Returns:
        The path of the page.

    Raises:
        UsageError: if OUT is in object storage and no folder is named, or links cannot be signed.
        OutputError: if there is no run, or the page cannot be written.
    """
    record = read_run(storage)
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    is_local = isinstance(storage, LocalStorage)
    if folder is None and not is_local:
        raise UsageError(
            f"{storage.root} is in object storage, where a page cannot be opened",
            "say where the page goes: --to FOLDER; or look at the run with `miga serve OUT`",
        )
    if folder is not None and ("://" in folder or not folder.strip()):
        raise UsageError(f"--to {folder!r} is no folder of this machine", "name one; it may then be copied anywhere")
    if valid_s is not None and is_local:
        raise UsageError(
            f"--presign is for runs in object storage, and {storage.root} is a folder", "leave --presign out"
        )
    page_folder = storage.root if folder is None else checked_root(folder)
    note = ""
    if valid_s is not None:
        until = datetime.now(UTC) + timedelta(seconds=valid_s)
        note = (
            f"Links to videos are signed, and valid until {until:%Y-%m-%d %H:%M} UTC or as long as the credentials "
            "that signed them. Until then, whoever has this page can see the videos."
        )
    links = Links(
        storage.root,
        page_folder,
        served=served,
        signed=None if valid_s is None else lambda path: storage.signed_address(path, valid_s),
    )
    if num_strips is None:
        num_strips = 0 if is_local or served or valid_s is not None else STRIPS_OF_A_BUCKET
    strips = StripMaker(storage, num_strips, say) if num_strips else None
    about, rows = asdict(record), (vars(row) for row in manifest.read_rows())
    scores = read_scores(storage)
    if scores.by:
        about["scored_by"] = scores.by
        rows = ({**row, **scores.of(row["row"], row["sha256"])} for row in rows)
    pictures = RowPictures(record.prompts.path)
    page = write_report(rows, about, page_folder, links=links, strips=strips, pictures=pictures, note=note)
    if strips is not None and strips.num_missing:
        say(f"{strips.num_missing} videos could not be read, and have no contact strip: see `miga verify OUT`")
    return page
