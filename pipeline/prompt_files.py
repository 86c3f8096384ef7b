"""Prompt files as a stream of records: `.txt`, `.jsonl`, `.csv`, `.parquet`, local or on any fsspec file system.

Nothing here knows what a prompt is: a `Record` is the fields of one row as its format gives them, or the reason why
they could not be read. Faults of the whole file raise `InputError`, before the first record where they can be known.
Memory is constant: one line, or one batch of a Parquet file, at a time.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Final

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from miga.errors import InputError
from pipeline.addresses import check_address

MAX_LINE_BYTES: Final = 4 << 20
"""A longer line is a bad row: whatever it is, it is no prompt, and it must not fill the memory."""

PEEK_OBJECTS: Final = 100
"""JSON lines looked at for a `prompt` key before the file is taken for one without."""

PARQUET_BATCH_ROWS: Final = 256

_BLANK_BYTES: Final = b" \t\r\n\v\f"


@dataclass(frozen=True)
class Record:
    """One row of a prompt file, not yet judged.

    Attributes:
        source: file name and 1-based line, or row of a Parquet file.
        fields: column → value; None if the row could not be read.
        problem: why not, and what to do about it.
        is_text: whether every value is text (CSV), so that numbers have to be parsed.
    """

    source: str
    fields: dict[str, Any] | None = None
    problem: str = ""
    is_text: bool = False


def read_records(path: str) -> Iterator[Record]:
    """The rows of the prompt file at `path`, in order, bad ones included.

    Raises:
        InputError: if the file cannot be read at all: missing, a folder, of an unknown kind, without a `prompt` column,
            broken. Also while reading on, where only then it shows.
    """
    return _reader_of(path)(path)


def count_records(path: str) -> int:
    """How many rows `read_records` yields; a Parquet file says so itself, others are read through once.

    Raises:
        InputError: as `read_records`.
    """
    if _reader_of(path) is _read_parquet:
        with _opened(path) as file, _parquet_faults(path):
            return int(pq.ParquetFile(file).metadata.num_rows)
    return sum(1 for _ in read_records(path))


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The file, open for reading in binary; whatever keeps it from being read becomes an `InputError`."""
    try:
        fs, fs_path = fsspec.core.url_to_fs(path)
        if fs.isdir(fs_path) and not fs.isfile(fs_path):
            raise InputError(f"{path} is a folder, not a prompt file", "name one .txt, .jsonl, .csv or .parquet file")
        with fs.open(fs_path, "rb") as file:
            yield file
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", "check the path; relative paths start at the working folder") from (
            error
        )
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied", "check its permissions or credentials") from error
    except ImportError as error:
        raise InputError(f"{path} cannot be read: {error}", "install the fsspec package of that kind of storage") from (
            error
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", "use a local path or an s3:// address") from error
    except Exception as error:  # botocore's own, such as missing credentials, share no base with OSError
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise InputError(f"{path} cannot be read: {error}", "check credentials (AWS_…), region and endpoint") from error


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    number: int
    data: bytes
    is_too_long: bool = False

    @property
    def is_blank(self) -> bool:
        return not self.is_too_long and not self.data.strip(_BLANK_BYTES)


def _read_lines(path: str, file: IO[bytes]) -> Iterator[_Line]:
    """Lines without their end (LF or CRLF) and without a byte order mark; only LF ends a line."""
    file = io.BufferedReader(file, 1 << 20)  # type: ignore[type-var]  # remote files know no readline of limited length
    number = 0
    while data := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if number == 1:
            _refuse_utf16(path, data)
            data = data.removeprefix(codecs.BOM_UTF8)
        is_too_long = len(data) > MAX_LINE_BYTES and not data.endswith(b"\n")
        rest = data
        while is_too_long and rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES)
        yield _Line(number, b"" if is_too_long else data.removesuffix(b"\n").removesuffix(b"\r"), is_too_long)


def _refuse_utf16(path: str, start: bytes) -> None:
    sample = start[:1000]
    is_marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    zeros = max(sample[0::2].count(0), sample[1::2].count(0))
    if is_marked or (len(sample) >= 8 and zeros > 0.8 * (len(sample) // 2)):
        raise InputError(f"{path} is UTF-16 or UTF-32, not UTF-8", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")


def _decode(line: _Line, source: str) -> str | Record:
    """The text of a line, or the record that says why there is none."""
    if line.is_too_long:
        return Record(source, problem=f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; split or shorten it")
    try:
        return line.data.decode()
    except UnicodeDecodeError as error:
        return Record(source, problem=_not_utf8(line.data, error))


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    return (
        f"invalid UTF-8: byte 0x{data[error.start]:02x} at byte {error.start + 1} of the line "
        f"({data[max(0, error.start - 20) : error.start + 20]!r}); save the file as UTF-8"
    )


def _read_txt(path: str) -> Iterator[Record]:
    """A prompt a line. A blank line between prompts is a row (a blank one); at the end of the file it is none."""
    name = _name_of(path)
    blank: list[int] = []
    with _opened(path) as file:
        for line in _read_lines(path, file):
            if line.is_blank and len(blank) < 100_000:
                blank.append(line.number)
                continue
            for number in blank:
                yield Record(f"{name}:{number}", {"prompt": ""})
            blank.clear()
            source = f"{name}:{line.number}"
            text = _decode(line, source)
            yield text if isinstance(text, Record) else Record(source, {"prompt": text})


def _read_jsonl(path: str) -> Iterator[Record]:
    """A JSON object a line; blank lines are no rows."""
    name = _name_of(path)
    held: list[Record] = []
    columns: dict[str, None] = {}
    is_known = False
    with _opened(path) as file:
        for line in _read_lines(path, file):
            if line.is_blank:
                continue
            source = f"{name}:{line.number}"
            text = _decode(line, source)
            record = text if isinstance(text, Record) else _parse_object(text, source)
            if is_known or (record.fields is None and not held):
                yield record
                continue
            held.append(record)
            columns.update(dict.fromkeys(record.fields or ()))
            is_known = record.fields is not None and "prompt" in record.fields
            if is_known:
                yield from held
                held.clear()
            elif len(held) >= PEEK_OBJECTS:
                raise _no_prompt_column(path, list(columns))
    if held:
        raise _no_prompt_column(path, list(columns))


def _parse_object(text: str, source: str) -> Record:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return Record(source, problem=f"invalid JSON: {error.msg} at column {error.colno}; write one object a line")
    except (ValueError, RecursionError) as error:
        return Record(source, problem=f"invalid JSON: {error}; write one flat object a line")
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else type(value).__name__
        return Record(source, problem=f'the line is a JSON {kind}, not an object; write {{"prompt": …}}')
    return Record(source, value)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(path: str) -> Iterator[Record]:
    """RFC 4180 with a header; quoted cells may hold line ends; blank lines are no rows."""
    name = _name_of(path)
    with _opened(path) as file:
        too_long: set[int] = set()
        reader = csv.reader(_csv_lines(path, file, too_long), strict=True)
        header = _csv_header(path, reader)
        while True:
            first_line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Record(_csv_source(name, first_line, reader.line_num), problem=_csv_problem(str(error)))
                continue
            if cells or too_long:
                yield _csv_record(_csv_source(name, first_line, reader.line_num), header, cells, bool(too_long))
                too_long.clear()


def _csv_lines(path: str, file: IO[bytes], too_long: set[int]) -> Iterator[str]:
    """Lines as text with their ends; bytes that are no UTF-8 are carried as lone surrogates to be judged."""
    for line in _read_lines(path, file):
        if line.is_too_long:
            too_long.add(line.number)
        yield line.data.decode(errors="surrogateescape") + "\n"


def _csv_header(path: str, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next((cells for cells in reader if cells), None)
    except csv.Error as error:
        raise InputError(f"{path}: the header cannot be read: {error}", "the first line must name the columns") from (
            error
        )
    if header is None:
        raise InputError(f"{path} holds no rows", "write a header line with a `prompt` column, then a line a video")
    header = [column.strip() for column in header]
    if any("\udc80" <= character <= "\udcff" for column in header for character in column):
        raise InputError(f"{path}: the header is not UTF-8", "save the file as UTF-8")
    _check_columns(path, header)
    return header


def _csv_record(source: str, header: Sequence[str], cells: Sequence[str], is_too_long: bool) -> Record:
    if is_too_long:
        return Record(source, problem=f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; split or shorten it")
    joined = ",".join(cells)
    try:
        joined.encode()
    except UnicodeEncodeError:
        data = joined.encode(errors="surrogateescape")
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return Record(source, problem=_not_utf8(data, error))
    if len(cells) != len(header):
        return Record(
            source,
            problem=f"the row has {len(cells)} cells where the header has {len(header)} ({', '.join(header)}); put "
            'prompts with commas in "quotes" and write empty cells for what is left out',
        )
    return Record(source, dict(zip(header, cells, strict=True)), is_text=True)


def _csv_source(name: str, first_line: int, last_line: int) -> str:
    return f"{name}:{first_line}" if last_line <= first_line else f"{name}:{first_line}-{last_line}"


def _csv_problem(error: str) -> str:
    if "field larger" in error or "unexpected end" in error:
        return f"a quoted cell never ends ({error}); close the quote, and double every quote inside a cell"
    return f"the row cannot be split into cells ({error}); double every quote inside a quoted cell"


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(path: str) -> Iterator[Record]:
    """Every column of every row, a small batch at a time."""
    name = _name_of(path)
    row = 0
    with _opened(path) as file, _parquet_faults(path):
        table = pq.ParquetFile(file)
        _check_columns(path, table.schema_arrow.names)
        _check_prompt_type(path, table.schema_arrow.field("prompt").type)
        for batch in table.iter_batches(batch_size=PARQUET_BATCH_ROWS, use_threads=False):
            for fields in _batch_rows(batch):
                row += 1
                source = f"{name}:{row}"
                yield Record(source, problem=fields) if isinstance(fields, str) else Record(source, fields)


@contextmanager
def _parquet_faults(path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no Parquet file, or a broken one: {text}", "write or copy it again") from error


def _batch_rows(batch: Any) -> Iterator[dict[str, Any] | str]:
    """The rows of a record batch; one that cannot be turned into Python values is the reason why."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    for i in range(batch.num_rows):
        try:
            yield {column: batch.column(column)[i].as_py() for column in batch.schema.names}
        except UnicodeDecodeError as error:
            yield f"invalid UTF-8: {error.reason}; write the column as UTF-8 strings"
        except (ValueError, OverflowError, pa.ArrowException) as error:
            yield f"a value cannot be read: {error}; write the row again"


def _check_prompt_type(path: str, kind: Any) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not pa.types.is_null(kind):
        raise InputError(
            f"{path}: column 'prompt' is {kind}, not text", "it must hold strings, or lists of strings for several"
        )


# ---- shared ----------------------------------------------------------------------------------------------------------


def _name_of(path: str) -> str:
    return PurePosixPath(path.replace("\\", "/")).name


def _check_columns(path: str, columns: Sequence[str]) -> None:
    if empty := [str(i) for i, column in enumerate(columns, 1) if not column]:
        raise InputError(
            f"{path}: the header is ragged: column {', '.join(empty)} of {len(columns)} has no name",
            "name every column; there must be as many names as cells in a row",
        )
    if doubled := sorted({column for column in columns if columns.count(column) > 1}):
        raise InputError(f"{path}: two columns are called {', '.join(map(repr, doubled))}", "rename or drop one")
    if "prompt" not in columns:
        raise _no_prompt_column(path, columns)


def _no_prompt_column(path: str, columns: Sequence[str]) -> InputError:
    there = ", ".join(repr(column) for column in columns[:20]) or "none"
    alike = [c for c in columns if c.strip().lower().rstrip("s") == "prompt"]
    alike = alike or difflib.get_close_matches("prompt", columns, 1)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint = "the cells seem to be parted by something else than commas; save it with commas"
    elif alike:
        hint = f"rename {alike[0]!r} to 'prompt'"
    else:
        hint = "add a column 'prompt' with the text of each video"
    return InputError(f"{path} has no column 'prompt'; its columns: {there}", hint)


_READERS: Final[dict[str, Callable[[str], Iterator[Record]]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _reader_of(path: str) -> Callable[[str], Iterator[Record]]:
    check_address(path, InputError, "prompts")
    suffix = PurePosixPath(_name_of(path)).suffix.lower()
    try:
        return _READERS[suffix]
    except KeyError:
        with _opened(path):
            pass
        kinds = ", ".join(_READERS)
        hint = "write a JSON object a line and call it .jsonl" if suffix == ".json" else f"use one of {kinds}"
        raise InputError(f"{path}: unknown kind of prompt file {suffix!r}; known: {kinds}", hint) from None
