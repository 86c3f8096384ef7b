"""Where a run keeps its files: a local folder, or a prefix of an S3 bucket, behind one small protocol.

Paths are relative, POSIX, and made by this program (prompts and ids never become path names). Nothing partial is ever
seen at a final name: locally a file is finished beside its place and renamed; on S3 an object is put whole. Every fault
is an `OutputError` that names the place and the remedy.

Not done through `fs.open(..., "wb")`: an exception inside it publishes what was written so far as if it were all.
"""

from __future__ import annotations

from pathlib import Path

from miga.errors import OutputError
from pipeline.storage.addresses import check_address
from pipeline.storage.base import PROBE_PREFIX, FileInfo, Leftover, Storage, checked_path
from pipeline.storage.local import PARTIAL_SUFFIX, LocalStorage
from pipeline.storage.s3 import S3Storage

__all__ = [
    "PARTIAL_SUFFIX",
    "PROBE_PREFIX",
    "FileInfo",
    "Leftover",
    "LocalStorage",
    "S3Storage",
    "Storage",
    "checked_path",
    "open_storage",
]


def open_storage(out: str | Path, s3_patience_s: float | None = None) -> Storage:
    """The storage at `out`: a folder (made when first written to) or `s3://bucket/prefix`. It pickles.

    Args:
        out: the address.
        s3_patience_s: seconds that an S3 server may be gone; None means what this process's environment says.

    Raises:
        OutputError: if `out` is neither, such as a file or a link to what is not there; if it holds a password; or if
            what the environment says of S3 cannot work.
    """
    text = str(out)
    check_address(text, OutputError, "OUT")
    if text.startswith("s3://"):
        return S3Storage(text, s3_patience_s)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        raise OutputError(f"{text}: this kind of storage is not known", "use a folder or s3://bucket/prefix")
    if not text.strip() or "\0" in text:
        raise OutputError(f"OUT is {text!r}, which names no folder", "name a folder or s3://bucket/prefix")
    return LocalStorage(text)
