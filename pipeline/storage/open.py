"""Where a run keeps its files: a local folder, or a prefix of a bucket, behind one small protocol.

Paths are relative, POSIX, and made by this program (prompts and ids never become path names). Nothing partial is ever
seen at a final name: locally a file is finished beside its place and renamed; in a bucket an object is put whole. Every
fault is an `OutputError` that names the place and the remedy.

S3 is spoken through aiobotocore, Google Cloud Storage and Azure Blob Storage through obstore; docs/log.md says why not
all three through obstore. Not done through `fs.open(..., "wb")`: an exception inside it publishes what was written so
far as if it were all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from miga.errors import OutputError
from pipeline.storage.addresses import check_address
from pipeline.storage.base import PROBE_PREFIX, FileInfo, Leftover, Storage, checked_path
from pipeline.storage.bucket import BucketStorage
from pipeline.storage.cloud import AzureStorage, GoogleStorage
from pipeline.storage.local import PARTIAL_SUFFIX, LocalStorage
from pipeline.storage.s3 import S3Storage

__all__ = [
    "BUCKETS",
    "PARTIAL_SUFFIX",
    "PLACES",
    "PROBE_PREFIX",
    "FileInfo",
    "Leftover",
    "LocalStorage",
    "S3Storage",
    "Storage",
    "bucket_storage",
    "canonical",
    "checked_path",
    "is_in_bucket",
    "open_storage",
]

BUCKETS: Final[dict[str, type[BucketStorage]]] = {
    storage.scheme: storage for storage in (S3Storage, GoogleStorage, AzureStorage)
}
"""Scheme of an address → the storage that knows it."""

PLACES: Final = "a folder, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

_OTHER_SCHEMES: Final = {"gcs": "gs", "abfs": "az", "abfss": "az"}
"""As other programs write them, and what they mean."""


def canonical(address: str) -> str:
    """The address with the scheme that is written here; itself, if it has no other."""
    scheme, separator, rest = address.partition("://")
    return f"{_OTHER_SCHEMES.get(scheme, scheme)}{separator}{rest}"


def is_in_bucket(address: str) -> bool:
    """Whether an address is one of a bucket that can be opened."""
    return canonical(address).partition("://")[0] in BUCKETS and "://" in address


def bucket_storage(address: str, patience_s: float | None = None) -> BucketStorage | None:
    """The storage at an address of a bucket; None if it is another kind of address.

    Raises:
        OutputError: as `open_storage`.
    """
    address = canonical(address)
    kind = BUCKETS.get(address.partition("://")[0]) if "://" in address else None
    return None if kind is None else kind(address, patience_s)


def open_storage(out: str | Path, patience_s: float | None = None) -> Storage:
    """The storage at `out`: a folder (made when first written to) or a prefix of a bucket. It pickles.

    Args:
        out: the address.
        patience_s: seconds that a bucket's server may be gone; None means what this process's environment says.

    Raises:
        OutputError: if `out` is neither, such as a file or a link to what is not there; if it holds a password; or if
            what the environment says of the bucket's server cannot work.
    """
    text = str(out)
    check_address(text, OutputError, "OUT")
    if (storage := bucket_storage(text, patience_s)) is not None:
        return storage
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" in text:
        raise OutputError(f"{text}: this kind of storage is not known", f"use {PLACES}")
    if not text.strip() or "\0" in text:
        raise OutputError(f"OUT is {text!r}, which names no folder", f"name {PLACES}")
    return LocalStorage(text)
