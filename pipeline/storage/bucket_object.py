"""One object of a bucket that is read in parts, and is the one that it was when it was opened.

Requests are those of a storage (`bucket.py`): none hangs, and a server that fails is asked again until patience is
used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from miga.errors import OutputError
from pipeline.storage.bucket import ObjectVersion
from pipeline.storage.open import bucket_storage, canonical

AHEAD_BYTES: Final = 8 << 20
"""Fetched at once where an object is read on; where it is read here and there, `_ELSEWHERE_BYTES`."""
_ELSEWHERE_BYTES: Final = 1 << 20


class BucketObject:
    """An object, for reading.

    Args:
        address: such as `s3://bucket/key`; the key may be any that a bucket takes.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.

    Attributes:
        bytes: its size.

    Raises:
        FileNotFoundError: if there is none.
        IsADirectoryError: if there is none, but there are keys below that one.
        OutputError: for every other fault, and once patience is used up.
    """

    def __init__(self, address: str, patience_s: float | None = None) -> None:
        scheme, _, place = canonical(address).partition("://")
        bucket, _, self._key = place.partition("/")
        storage = bucket_storage(f"{scheme}://{bucket}", patience_s)
        if storage is None:
            raise OutputError(f"{scheme}:// is no address of a bucket", "write s3://bucket/key, gs://… or az://…")
        if not self._key:
            raise IsADirectoryError(address)
        self._storage = storage
        try:
            found = self.version()
        except FileNotFoundError:
            if self._storage.is_above_keys(self._key):
                raise IsADirectoryError(address) from None
            raise
        self.bytes = found.bytes
        self._tag = found.tag
        self._start, self._data = 0, b""

    def version(self) -> ObjectVersion:
        """Size, tag and time of what lies there now.

        Raises:
            FileNotFoundError: if nothing does.
            OutputError: as above.
        """
        return self._storage.look_at_key(self._key)

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start` on; fewer at the end only.

        Raises:
            FileExistsError: if another object lies there now.
            FileNotFoundError: if none does.
            OutputError: as above.
        """
        return b"".join(self._parts(start, min(start + size, self.bytes)))

    def _parts(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            end = self._start + len(self._data)
            if not self._start <= start < end:
                ahead = AHEAD_BYTES if start == end else _ELSEWHERE_BYTES
                self._data = self._storage.read_key(self._key, start, min(start + ahead, self.bytes), self._tag)
                self._start = start
            part = self._data[start - self._start : stop - self._start]
            start += len(part)
            yield part
