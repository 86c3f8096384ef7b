"""What was noted of a video's frames, kept: one safetensors file for each feature of each video.

A file holds `index` (positions of frames, int64) and `values` (`[N, D]`). It is written as its numbers come, and read
in portions, so neither needs more memory for a longer video.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from miga.evaluation.observers import Noted
from miga.outside_data import OutsideDataError, parse_json_object

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}
_MAX_HEADER_BYTES: Final = 1 << 16


class FeatureWriter:
    """Writes one feature of one video.

    Args:
        path: of the file, which is there once `close` has returned.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index = path.with_suffix(".index").open("w+b")
        self._values = path.with_suffix(".values").open("w+b")
        self._count, self._width, self._kind = 0, 0, "F32"

    def add(self, noted: Noted) -> None:
        """Takes the next numbers."""
        values = noted.values_ND
        if not self._count:
            self._width, self._kind = values.shape[1], "F64" if values.dtype == np.float64 else "F32"
        self._index.write(noted.index_N.astype(_DTYPES["I64"]).tobytes())
        self._values.write(np.ascontiguousarray(values, _DTYPES[self._kind]).tobytes())
        self._count += len(values)

    def close(self) -> None:
        """Puts the file together."""
        index_bytes, values_bytes = self._index.tell(), self._values.tell()
        header = {
            "index": {"dtype": "I64", "shape": [self._count], "data_offsets": [0, index_bytes]},
            "values": {
                "dtype": self._kind,
                "shape": [self._count, self._width],
                "data_offsets": [index_bytes, index_bytes + values_bytes],
            },
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with self._path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for part in (self._index, self._values):
                part.seek(0)
                shutil.copyfileobj(part, file)
        self.discard()

    def discard(self) -> None:
        """Removes what was written on the way."""
        for part in (self._index, self._values):
            part.close()
            Path(part.name).unlink(missing_ok=True)


class FeatureFile:
    """Reads one feature of one video.

    Raises:
        OutsideDataError: if the file is none.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("rb")
        try:
            length = int.from_bytes(self._file.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise OutsideDataError("its header is broken")
            header = parse_json_object(self._file.read(length))
            self._start = 8 + length
            index, values = header["index"], header["values"]
            self._index = self._read(index["data_offsets"][0], int(index["shape"][0]), _DTYPES["I64"])
            self._width, self._dtype = int(values["shape"][1]), _DTYPES[values["dtype"]]
            self._values_start = int(values["data_offsets"][0])
            wanted = self._start + int(values["data_offsets"][1])
            if int(values["shape"][0]) != len(self._index) or path.stat().st_size != wanted:
                raise OutsideDataError("it is cut off")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            self._file.close()
            raise OutsideDataError(f"{path.name} is no file of features: {error}") from error
        if (np.diff(self._index) <= 0).any():
            self._file.close()
            raise OutsideDataError(f"{path.name} is no file of features: its frames are not in order")

    def __len__(self) -> int:
        return len(self._index)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.floating]:
        """Numbers `[N, D]` of frames `start` to `stop`.

        Raises:
            OutsideDataError: if it has not got all of them.
        """
        first, last = np.searchsorted(self._index, (start, stop))
        if last - first != stop - start:
            raise OutsideDataError(f"it has {last - first} of the frames {start} to {stop}")
        return self._rows(int(first), int(last - first))

    def scalars(self) -> dict[int, float]:
        """Position → number, of a feature of one number.

        Raises:
            OutsideDataError: if it is of several.
        """
        if not len(self):
            return {}
        if self._width != 1:
            raise OutsideDataError(f"it has {self._width} numbers of each frame, not one")
        values = self._rows(0, len(self)).ravel()
        return {int(position): float(value) for position, value in zip(self._index, values, strict=True)}

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _rows(self, row: int, count: int) -> npt.NDArray[np.floating]:
        offset = self._values_start + row * self._width * self._dtype.itemsize
        return self._read(offset, count * self._width, self._dtype).reshape(count, self._width)

    def _read(self, offset: int, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        self._file.seek(self._start + offset)
        data = self._file.read(count * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise OutsideDataError("it is cut off")
        return np.frombuffer(data, dtype)


class FileFeatures:
    """The kept features of one video, as measures read them (`miga.evaluation.measures.Features`).

    Args:
        files: feature → its file.
    """

    def __init__(self, files: Mapping[str, FeatureFile]) -> None:
        self._files = files
        self._scalars: dict[str, dict[int, float]] = {}

    def rows(self, feature: str, start: int, stop: int) -> npt.NDArray[np.floating]:
        """See `Features`."""
        return self._files[feature].rows(start, stop)

    def scalars(self, feature: str) -> Mapping[int, float]:
        """See `Features`."""
        if feature not in self._scalars:
            self._scalars[feature] = self._files[feature].scalars()
        return self._scalars[feature]
