"""Parquet files row by row, in memory that neither a hostile file nor a large column can raise.

A file of a kilobyte may hold gigabytes: values that repeat are stored once, and compressed pages say only in their own
headers how large they are. So sizes are looked at before values are made. The headers of all pages are read first (what
the file says of them at its end need not be true); text stays in Arrow's dictionaries until its row's turn
comes; a value that is too large is not made.

Columns that only travel along never keep a row from being made. A value of theirs that Python, or JSON, does not have
becomes text; a column that is too large to be read becomes a sentence that says so.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import zoneinfo
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from miga.errors import InputError, MigaError
from pipeline.prompts.source import SteadyFile

MAX_ROWS: Final = 100_000_000
MAX_PAGES_BYTES: Final = 64 << 20
"""Of the largest page of each column, together: so much is unpacked at a time."""

MAX_CELL_BYTES: Final = 4 << 20
MAX_CELL_VALUES: Final = 1 << 20
MAX_GROUP_VALUES: Final = 16 << 20
"""Of a column of lists, in a group of rows: all may be of one row. Eight times as many if each takes up a byte."""

BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 256 << 20
_DELTA_BYTE_ARRAY: Final = 7
_DATA_PAGES: Final = (0, 3)
_DICTIONARY_PAGE: Final = 2
_MAX_HEADER_BYTES: Final = 16 << 20
_CHUNK_FIELDS: Final = (1, 3, 4, 5, 7, 9)
"""Of a column's description: type, path, codec, values, bytes, first page."""

NEEDED: Final = (
    "prompt", "id", "seed", "num_frames", "negative_prompt", "image", "last_image", "prompt_frames", "prompt_times",
)  # fmt: skip

CheckColumns = Callable[[str, Sequence[str]], None]


@dataclass
class _Pages:
    """What the headers of a column's pages say, of one group of rows.

    Attributes:
        largest_bytes: of its pages, unpacked.
        bytes: of all of them.
        values: in all of them, empty ones counted.
        may_repeat: whether a value may be stored as the one before and an ending, so that it unpacks to more bytes
            than its page.
    """

    largest_bytes: int = 0
    bytes: int = 0
    values: int = 0
    may_repeat: bool = False


@dataclass(frozen=True)
class _Group:
    """How a group of rows is read.

    Attributes:
        columns: those that are.
        left_out: those that are not, and what is said of them.
        batch_rows: rows at a time.
    """

    columns: list[str]
    left_out: dict[str, str]
    batch_rows: int


class ParquetRows:
    """A Parquet file open for reading.

    Args:
        path: for messages.
        file: the file.
        check_columns: refuses the names of its columns.

    Raises:
        InputError: if it is no Parquet file, or one without prompts; the methods raise it, too.
    """

    def __init__(self, path: str, file: SteadyFile, check_columns: CheckColumns) -> None:
        self._path = path
        self._bytes = io.BufferedReader(file, 64 << 10)
        with self._faults():
            groups = self._groups()
            self._meta = pq.read_metadata(self._bytes)
            self._schema = self._meta.schema.to_arrow_schema()
            check_columns(path, self._schema.names)
            _check_prompt_type(path, self._schema.field("prompt").type)
            self._num_rows = [group[3] for group in groups]
            self._check_num_rows()
            self._leaves_of = self._leaves_by_column()
            if any(len(group[1]) != self._meta.num_columns for group in groups):
                raise self._broken("a group of rows lacks columns")
            self._pages = [[self._walk(column[3]) for column in group[1]] for group in groups]
            self._file = pq.ParquetFile(
                self._bytes, read_dictionary=self._kept_in_dictionaries(), buffer_size=64 << 10, pre_buffer=False
            )

    def count(self) -> int:
        """How many rows there are."""
        for group in range(len(self._num_rows)):
            self._plan(group)
        return sum(self._num_rows)

    def read(self) -> Iterator[dict[str, Any] | str]:
        """The rows in order; one that cannot be read is the reason why."""
        for group, expected in enumerate(self._num_rows):
            plan, num_read = self._plan(group), 0
            for batch in self._batches(group, plan):
                num_read += batch.num_rows
                columns = [batch.column(name) for name in plan.columns]
                with self._faults():
                    small = [_small_values(column) for column in columns]
                for i in range(batch.num_rows):
                    yield _row(i, plan, columns, small)
            if num_read != expected:
                raise self._broken(f"rows {num_read} of {expected} of a group are there")

    def _batches(self, group: int, plan: _Group) -> Iterator[Any]:
        with self._faults():
            batches = self._file.iter_batches(plan.batch_rows, [group], columns=plan.columns, use_threads=False)
        while True:
            with self._faults():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    # ---- sizes ----

    def _kept_in_dictionaries(self) -> list[str]:
        """Paths of the leaves whose values Arrow leaves in the dictionaries that the file has them in."""
        schema = self._meta.schema
        leaves = (i for i in range(self._meta.num_columns) if schema.column(i).physical_type == "BYTE_ARRAY")
        return [schema.column(i).path for i in leaves if not any(group[i].may_repeat for group in self._pages)]

    def _leaves_by_column(self) -> dict[str, range]:
        found, start = {}, 0
        for field in self._schema:
            stop = start + _num_leaves(field.type)
            found[field.name] = range(start, stop)
            start = stop
        if start != self._meta.num_columns:
            raise self._broken("its columns are nested in a way that is not known")
        return found

    def _check_num_rows(self) -> None:
        if min(self._num_rows, default=0) < 0 or sum(self._num_rows) != self._meta.num_rows:
            raise self._broken("it contradicts itself on how many rows it has")
        if self._meta.num_rows > MAX_ROWS:
            raise InputError(f"{self._path} says it has {self._meta.num_rows} rows", f"at most {MAX_ROWS} are read")

    def _plan(self, group: int) -> _Group:
        """What of a group of rows can be read, by the sizes in its pages' headers."""
        pages = {name: [self._pages[group][i] for i in leaves] for name, leaves in self._leaves_of.items()}
        room, left_out, columns = MAX_PAGES_BYTES, {}, []
        largest = {name: sum(leaf.largest_bytes for leaf in leaves) for name, leaves in pages.items()}
        for name in sorted(pages, key=lambda name: (name not in NEEDED, largest[name])):
            problem = self._problem_of(group, name, pages[name])
            if not problem and largest[name] > room:
                problem = f"pages of {largest[name]} bytes are more than are read at once"
            if problem and name in NEEDED:
                raise InputError(f"{self._path}: column {name!r} cannot be read: {problem}", "write smaller row groups")
            if problem:
                left_out[name] = f"left out: {problem}"
            else:
                room -= largest[name]
                columns.append(name)
        unpacked = max((leaf.largest_bytes for name in columns for leaf in pages[name] if leaf.may_repeat), default=0)
        rows = max(1, min(BATCH_ROWS, _BATCH_BYTES // max(1, unpacked)))
        in_order = [name for name in self._schema.names if name in columns]
        return _Group(in_order, left_out, rows)

    def _problem_of(self, group: int, name: str, pages: Sequence[_Pages]) -> str:
        """Why values of a column may be too large for memory although its pages are not; empty if they are not."""
        if (width := _fixed_bytes(self._schema.field(name).type)) > MAX_CELL_BYTES:
            return f"each value takes {width} bytes"
        for leaf, found in zip(self._leaves_of[name], pages, strict=True):
            if not self._meta.schema.column(leaf).max_repetition_level:
                if found.values != self._num_rows[group]:
                    raise self._broken(f"column {name!r} has {found.values} values in {self._num_rows[group]} rows")
            elif found.may_repeat or found.values > max(MAX_GROUP_VALUES, min(found.bytes, 8 * MAX_GROUP_VALUES)):
                return f"its lists may hold {found.values} values in a row"
        return ""

    def _groups(self) -> list[dict[int, Any]]:
        """The groups of rows as the file describes them, as field number → value; see `parquet.thrift`.

        Arrow ends the whole process where it is asked for a column that is not described.
        """
        end = self._bytes.seek(0, io.SEEK_END)
        self._bytes.seek(max(0, end - 8))
        tail = self._bytes.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > end - 8:
            raise self._broken("it does not end as one" + (", but is encrypted" if tail[4:] == b"PARE" else ""))
        self._bytes.seek(end - 8 - length)
        try:
            groups: list[dict[int, Any]] = _Thrift(self._bytes.read(length)).struct()[4]
            for column in (column for group in groups for column in group[1]):
                [column[3][number] for number in _CHUNK_FIELDS]
            return groups
        except (IndexError, KeyError, TypeError) as error:
            raise self._broken("the description of its columns at its end is not whole") from error

    def _walk(self, chunk: dict[int, Any]) -> _Pages:
        """Goes through the headers of a column's pages."""
        num_values, size, start, dictionary = chunk[5], chunk[7], chunk[9], chunk.get(11, 0)
        if 0 < dictionary < start:
            start = dictionary
        stop, found = start + size, _Pages()
        while found.values < num_values and start < stop:
            header, size = self._page_header(start)
            packed, unpacked, count = header[3], header[2], _values_of(header)
            if min(packed, unpacked, count) < 0 or (header[1] == _DICTIONARY_PAGE and count > unpacked):
                raise self._broken(f"a page at byte {start} has impossible sizes")
            found.largest_bytes = max(found.largest_bytes, unpacked)
            found.bytes += unpacked
            if header[1] in _DATA_PAGES:
                found.values += count
                found.may_repeat |= _DELTA_BYTE_ARRAY in (header.get(5, {}).get(2), header.get(8, {}).get(4))
            start += size + packed
        if found.values != num_values:
            raise self._broken(f"a column's pages hold {found.values} values, not {num_values}")
        return found

    def _page_header(self, start: int) -> tuple[dict[int, Any], int]:
        """A page's header as field number → value, and its length."""
        size = 1 << 10
        while True:
            self._bytes.seek(start)
            data = self._bytes.read(size)
            thrift = _Thrift(data)
            try:
                header = thrift.struct()
                header[1], header[2], header[3]
                return header, thrift.at
            except KeyError as error:
                raise self._broken(f"a page at byte {start} has no header") from error
            except IndexError as error:
                if len(data) < size or size >= _MAX_HEADER_BYTES:
                    raise self._broken(f"a page at byte {start} has no whole header") from error
                size *= 16

    # ---- faults ----

    def _broken(self, how: str) -> InputError:
        return InputError(f"{self._path} is no Parquet file, or a broken one: {how}", "write or copy it again")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except MigaError:
            raise
        except Exception as error:  # of Arrow: it raises whatever a broken file leads it to
            text = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
            raise self._broken(text.encode(errors="backslashreplace").decode()) from error


def _values_of(header: dict[int, Any]) -> int:
    return int(next((header[part].get(1, 0) for part in (5, 7, 8) if part in header), 0))


class _Thrift:
    """Structs of Thrift's compact protocol, of which a Parquet file's descriptions are made.

    Raises:
        IndexError: if the data ends within one, or they nest deeper than those do.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Field number → value: a number, a struct or a list of them; None for text."""
        fields: dict[int, Any] = {}
        number = 0
        if depth > 16:
            raise IndexError
        while kind := self._byte():
            delta, kind = kind >> 4, kind & 15
            number = number + delta if delta else self._zigzag()
            fields[number] = self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return self._skip(8)
            case 8:
                return self._skip(self._varint())
            case 9 | 10:
                about = self._byte()
                count = about >> 4 if about >> 4 < 15 else self._varint()
                return [self._item(about & 15, depth) for _ in range(count)]
            case 12:
                return self.struct(depth + 1)
        raise IndexError

    def _item(self, kind: int, depth: int) -> Any:
        return self._byte() if kind in (1, 2) else self._value(kind, depth + 1)

    def _byte(self) -> int:
        value = self._data[self.at]
        self.at += 1
        return value

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise IndexError

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self._data):
            raise IndexError


# ---- types -----------------------------------------------------------------------------------------------------------


def _check_prompt_type(path: str, kind: Any) -> None:
    value = _inner(kind)
    if pa.types.is_list(value) or pa.types.is_large_list(value) or pa.types.is_fixed_size_list(value):
        value = _inner(value.value_type)
    is_text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    if not is_text and not pa.types.is_null(value):
        raise InputError(
            f"{path}: column 'prompt' is {_inner(kind)}, not text",
            "it must hold strings, or lists of strings for several",
        )


def _inner(kind: Any) -> Any:
    """What the values of a type are once they are taken out of dictionaries and extensions."""
    while isinstance(kind, pa.BaseExtensionType | pa.DictionaryType):
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind.value_type
    return kind


def _children(kind: Any) -> list[Any]:
    kind = _inner(kind)
    return [kind.field(i).type for i in range(kind.num_fields)]


def _num_leaves(kind: Any) -> int:
    children = _children(kind)
    return sum(map(_num_leaves, children)) if children else 1


def _fixed_bytes(kind: Any) -> int:
    """Bytes that a value takes even if it is empty."""
    kind = _inner(kind)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size) * max(1, _fixed_bytes(kind.value_type))
    return sum(map(_fixed_bytes, _children(kind))) if pa.types.is_struct(kind) else 1


# ---- values ----------------------------------------------------------------------------------------------------------


def _row(i: int, plan: _Group, columns: Sequence[Any], small: Sequence[list[Any] | None]) -> dict[str, Any] | str:
    """The values of row `i` of a batch, or why it cannot be read."""
    fields: dict[str, Any] = {}
    for name, column, values in zip(plan.columns, columns, small, strict=True):
        try:
            fields[name] = _cell(column[i], name) if values is None else values[i]
        except ValueError as error:
            return str(error)
    return {**fields, **plan.left_out}


def _small_values(array: Any) -> list[Any] | None:
    """All values of an array, where they are few bytes and of types that Python has; None otherwise."""
    size, count = _unpacked(array)
    if size > MAX_CELL_BYTES or count > MAX_CELL_VALUES or not _is_plain(array.type):
        return None
    try:
        values: list[Any] = (array.dictionary_decode() if isinstance(array, pa.DictionaryArray) else array).to_pylist()
        return values
    except (ValueError, OverflowError, pa.ArrowException):  # each by itself, then
        return None


def _is_plain(kind: Any) -> bool:
    """Whether every value of a type is one of Python's, whatever else is installed beside Arrow."""
    if isinstance(kind, pa.DictionaryType):
        return _is_plain(kind.value_type)
    if pa.types.is_struct(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return all(map(_is_plain, _children(kind)))
    tests = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating, pa.types.is_null, _is_binary)
    return not isinstance(kind, pa.BaseExtensionType) and any(test(kind) for test in tests)


def _cell(cell: Any, name: str) -> Any:
    """One value of a row.

    Raises:
        ValueError: if it is of a column with a meaning, and cannot be read.
    """
    too_large = _too_large(cell)
    if name not in NEEDED:
        return too_large or _value(cell)
    if too_large:
        raise ValueError(f"column {name!r} is too large ({too_large.removeprefix('left out: ')}); shorten it")
    try:
        return _exact(cell)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8: {error.reason}; write the column as UTF-8 strings") from error


def _too_large(cell: Any) -> str:
    """What is said of a value that is not made; empty if it can be."""
    scalar = _scalar(cell)
    if not scalar.is_valid:
        return ""
    if isinstance(scalar, pa.BinaryScalar | pa.LargeBinaryScalar):  # and text
        size = scalar.as_buffer().size
        if size <= MAX_CELL_BYTES:
            return ""
        return f"left out: {size} bytes, SHA-256 {hashlib.sha256(scalar.as_buffer()).hexdigest()}"
    if not _children(scalar.type):
        return ""
    size, count = _unpacked_scalar(scalar)
    if size <= MAX_CELL_BYTES and count <= MAX_CELL_VALUES:
        return ""
    return f"left out: {count} values of {size} bytes together"


def _unpacked_scalar(scalar: Any) -> tuple[int, int]:
    """Bytes and values of a nested value once nothing in it is stored only once."""
    if isinstance(scalar, pa.StructScalar):
        parts = [_unpacked_scalar(_scalar(item)) for _, item in scalar.items()]
        return sum(size for size, _ in parts), 1 + sum(count for _, count in parts)
    values = getattr(scalar, "values", None)  # of a list or a map
    return (0, 1) if values is None else _unpacked(values)


def _unpacked(array: Any) -> tuple[int, int]:
    """The same of an array."""
    if isinstance(array, pa.ExtensionArray):
        return _unpacked(array.storage)
    if isinstance(array, pa.DictionaryArray):
        _check_indices(array)
        if not _is_binary(array.type.value_type):
            return int(array.nbytes), len(array)
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0, len(array)
    if isinstance(array, pa.MapArray):
        entries = pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
        array = pa.ListArray.from_arrays(array.offsets, entries)
    if isinstance(array, pa.StructArray):
        parts = [_unpacked(part) for part in array.flatten()]
    elif isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        parts = [_unpacked(array.flatten())]
    else:
        return int(array.nbytes), len(array)
    return sum(size for size, _ in parts), len(array) + sum(count for _, count in parts)


def _check_indices(array: Any) -> None:
    """Returns if all values are in the dictionary, which Arrow does not look at when it reads a file.

    Raises:
        IndexError: if not.
    """
    ends = pc.min_max(array.indices).as_py()
    if ends["min"] is not None and not 0 <= ends["min"] <= ends["max"] < len(array.dictionary):
        raise IndexError("a value is not in its column's dictionary")


def _is_binary(kind: Any) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _scalar(cell: Any) -> Any:
    while isinstance(cell, pa.DictionaryScalar | pa.ExtensionScalar | pa.RunEndEncodedScalar | pa.UnionScalar):
        if cell.value is None:
            return pa.scalar(None)
        cell = cell.value
    return cell


def _exact(cell: Any) -> Any:
    """A value of a column with a meaning, whose text must be text.

    Raises:
        UnicodeDecodeError: if it is not.
    """
    cell = _scalar(cell)
    if cell.is_valid and isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [_exact(item) for item in cell.values]
    return cell.as_py() if isinstance(cell, pa.StringScalar | pa.LargeStringScalar) else _value(cell)


def _value(cell: Any) -> Any:
    """A value that travels along: as Python and JSON have it where they do, otherwise as text."""
    if isinstance(cell, pa.UuidScalar) and cell.is_valid:
        return str(cell.as_py())
    cell = _scalar(cell)
    if not cell.is_valid:
        return None
    if isinstance(cell, pa.StructScalar):
        pairs = [(name, _value(item)) for name, item in cell.items()]
        values = dict(pairs)
        return values if len(values) == len(pairs) else [list(pair) for pair in pairs]
    if isinstance(cell, pa.MapScalar):
        return [[_value(pair[0]), _value(pair[1])] for pair in cell.values]
    if isinstance(cell, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar | pa.ListViewScalar):
        return [_value(item) for item in cell.values]
    if isinstance(cell, pa.TimestampScalar):
        return _time_text(cell.value, cell.type.unit, cell.type.tz)
    if isinstance(cell, pa.DurationScalar):
        seconds = cell.value / _PER_SECOND[cell.type.unit]
        is_exact = round(seconds * _PER_SECOND[cell.type.unit]) == cell.value
        return seconds if is_exact else f"{cell.value} {cell.type.unit}"
    if isinstance(cell, pa.StringScalar | pa.LargeStringScalar):
        return cell.as_buffer().to_pybytes().decode(errors="backslashreplace")
    try:
        return cell.as_py()
    except Exception:  # dates beyond the year 9999, and what else Python has no value for
        return _text(cell)


def _text(cell: Any) -> str:
    try:
        return str(cell.cast(pa.string()).as_py())
    except Exception:  # Arrow has no text for it, or cannot make it
        return f"a value of type {cell.type} that is not known here"


_PER_SECOND: Final = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _time_text(value: int, unit: str, zone: str | None) -> str:
    """A time in ISO 8601, with all its digits; in UTC where its zone is not known here."""
    seconds, rest = divmod(value, _PER_SECOND[unit])
    try:
        at = _EPOCH + dt.timedelta(seconds=seconds)
        if zone is not None:
            at = at.astimezone(_zone(zone))
        text = at.isoformat()
    except OverflowError:
        return f"{value} {unit} since 1970"
    offset = text[19:]
    digits = f"{rest:0{len(str(_PER_SECOND[unit])) - 1}d}"
    fraction = f".{digits.ljust(6, '0')}" if rest else ""
    if len(fraction) == 10 and fraction.endswith("000"):  # whole microseconds, as Python writes them
        fraction = fraction[:7]
    return text[:19] + fraction + ("" if zone is None else offset)


def _zone(name: str) -> dt.tzinfo:
    if name[:1] in "+-" and len(name) == 6:
        try:
            return dt.datetime.strptime(name, "%z").tzinfo or dt.UTC
        except ValueError:
            return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return dt.UTC
