"""The page of a run, report.html."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from miga.errors import UsageError
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.report.page import write_report
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage


def make_report(storage: Storage, folder: str | None = None) -> Any:
    """Writes the page of a run: beside its videos, or into `folder` for one in object storage."""
    record = read_run(storage)
    manifest = Manifest(storage, record.settings.run.prompts_per_shard)
    if folder is None and not isinstance(storage, LocalStorage):
        raise UsageError(f"{storage.root} is in object storage", "say where the page goes: --to FOLDER")
    rows = (asdict(row) for row in manifest.read_rows())
    return write_report(rows, asdict(record), folder or storage.root, out_uri=storage.root)
