"""One object of a bucket that is read in parts, and is the one that it was when it was opened.

Requests are those of a storage (`s3.py`): none hangs, and a server that fails is asked again until patience is used up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from miga.errors import OutputError
from pipeline.storage.s3 import BUCKET, S3Storage, heading, whole_body
from pipeline.storage.s3_client import Progress

AHEAD_BYTES: Final = 8 << 20
"""Fetched at once where an object is read on; where it is read here and there, `_ELSEWHERE_BYTES`."""
_ELSEWHERE_BYTES: Final = 1 << 20


class S3Object:
    """An object, for reading.

    Args:
        address: `s3://bucket/key`; the key may be any that a bucket takes.
        patience_s: seconds for which a call goes on asking a server that fails; None means the environment's.

    Attributes:
        bytes: its size.

    Raises:
        FileNotFoundError: if there is none.
        IsADirectoryError: if there is none, but there are keys below that one.
        OutputError: for every other fault, and once patience is used up.
    """

    def __init__(self, address: str, patience_s: float | None = None) -> None:
        bucket, _, key = address.removeprefix("s3://").partition("/")
        if not BUCKET.fullmatch(bucket):
            raise OutputError("the address begins with no name of a bucket", "write s3://bucket/key")
        if not key:
            raise IsADirectoryError(address)
        self._storage = S3Storage(f"s3://{bucket}", patience_s)
        self._key, self._at = key, {"Bucket": bucket, "Key": key}
        try:
            found = self._head()
        except FileNotFoundError:
            if self._is_folder():
                raise IsADirectoryError(address) from None
            raise
        self.bytes = int(found["ContentLength"])
        self._tag = str(found["ETag"])
        self._start, self._data = 0, b""

    def version(self) -> tuple[Any, ...]:
        """Size, tag and time of what lies there now.

        Raises:
            FileNotFoundError: if nothing does.
            OutputError: as above.
        """
        found = self._head()
        return int(found["ContentLength"]), str(found["ETag"]), str(found["LastModified"])

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
                self._start, self._data = start, self._fetch(start, min(start + ahead, self.bytes))
            part = self._data[start - self._start : stop - self._start]
            start += len(part)
            yield part

    def _fetch(self, start: int, stop: int) -> bytes:
        at, tag = self._at, self._tag

        async def fetch(client: Any, progress: Progress) -> bytes:
            answer = await client.get_object(**at, Range=f"bytes={start}-{stop - 1}", IfMatch=tag)
            async with answer["Body"] as body:
                data = await whole_body(body, progress)
            if len(data) != stop - start:
                raise ConnectionError(f"{len(data)} bytes came, {stop - start} were asked for")
            return data

        return self._storage.ask(self._key, fetch)

    def _head(self) -> dict[str, Any]:
        return self._storage.ask(self._key, heading(self._at))

    def _is_folder(self) -> bool:
        at = {"Bucket": self._at["Bucket"], "Prefix": f"{self._key.rstrip('/')}/", "MaxKeys": 1}

        async def look(client: Any, _: Progress) -> bool:
            return bool((await client.list_objects_v2(**at)).get("Contents"))

        return self._storage.ask(self._key, look)
