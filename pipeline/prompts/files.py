"""Prompt files as a stream of records: `.txt`, `.jsonl`, `.csv`, `.parquet`, local or on any fsspec file system.

Nothing here knows what a prompt is: a `Record` is the fields of one row as its format gives them, or the reason why
they could not be read. Faults of the whole file raise `InputError`, before the first record where they can be known;
so does a change of the file while it is read, before any record is given out after it.
Memory is constant: one line, or one batch of a Parquet file, at a time.

Lines end with LF, CRLF or a lone CR, in one file by turns; nothing else ends one. A byte order mark at the start of a
line, as in files joined from several, is no part of it.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from miga.errors import InputError
from pipeline.prompts.parquet import ParquetRows
from pipeline.prompts.source import PromptFile, SteadyFile

MAX_LINE_BYTES: Final = 4 << 20
"""A longer line is a bad row: whatever it is, it is no prompt, and it must not fill the memory."""

PEEK_OBJECTS: Final = 100
"""JSON lines looked at for a `prompt` key before the file is taken for one without."""

MAX_DIGITS: Final = 4300
"""Python reads no whole numbers of more digits."""

_CHUNK_BYTES: Final = 64 << 10
_LINE_END: Final = re.compile(rb"\r{0,2}\n|\r")
"""CR CR LF is what Windows makes of a CRLF that it takes for a LF."""
_BLANK_BYTES: Final = b" \t\r\n\v\f"
_MARK: Final = "\ufeff"
_JOINED: Final = "a byte order mark stands within the line, as where files were joined; end the line before it"


@dataclass(frozen=True)
class AsWritten:
    """A value that no value of Python says exactly: a number out of range, an object that says a key twice.

    Attributes:
        text: as the file has it, or as near to that as can be.
        kind: what it is, for messages.
    """

    text: str
    kind: str

    def __str__(self) -> str:
        return self.text


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


def read_records(prompts: PromptFile) -> Iterator[Record]:
    """The rows of a prompt file, in order, bad ones included.

    Raises:
        InputError: if the file cannot be read at all: without a `prompt` column, broken, changed since it was looked
            at. Also while reading on, where only then it shows.
    """
    with prompts.open() as file:
        for record in _READERS[prompts.kind](prompts, file):
            file.check()
            yield record


def count_records(prompts: PromptFile) -> int:
    """How many rows `read_records` yields, found out by reading them, without their values where that can be.

    Raises:
        InputError: as `read_records`.
    """
    if prompts.kind == ".parquet":
        with prompts.open() as file:
            return ParquetRows(prompts.path, file, check_columns).count()
    if prompts.kind == ".jsonl":
        next(read_records(prompts), None)  # what is wrong with the file as a whole
        with prompts.open() as file:
            count = sum(not line.is_blank for line in _read_lines(prompts.path, file))
            file.check()
        return count
    return sum(1 for _ in read_records(prompts))


# ---- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Line:
    number: int
    data: bytes
    is_too_long: bool = False
    end: bytes = b"\n"

    @property
    def is_blank(self) -> bool:
        return not self.is_too_long and not self.data.strip(_BLANK_BYTES)


def _read_lines(path: str, file: SteadyFile) -> Iterator[_Line]:
    """Lines without their end, and without a byte order mark at their start."""
    for number, (data, end) in enumerate(_split_lines(path, file), 1):
        if data is None:
            yield _Line(number, b"", is_too_long=True, end=end)
        else:
            yield _Line(number, data.removeprefix(codecs.BOM_UTF8), end=end)


def _split_lines(path: str, file: SteadyFile) -> Iterator[tuple[bytes | None, bytes]]:
    """Each line and its end; None for one that is too long, which is not kept."""
    parts: list[bytes] = []
    size, held, is_first = 0, b"", True
    while chunk := file.read(_CHUNK_BYTES):
        if is_first:
            _refuse_utf16(path, chunk)
            is_first = False
        data = held + chunk
        held = data[-2:] if data.endswith(b"\r\r") else data[-1:] if data.endswith(b"\r") else b""
        data = data[: len(data) - len(held)]
        start = 0
        for match in _LINE_END.finditer(data):
            parts.append(data[start : match.start()])
            yield _joined(parts, size + match.start() - start), b"\r" if match[0] == b"\r" else b"\n"
            parts, size, start = [], 0, match.end()
        size += len(data) - start
        if size <= MAX_LINE_BYTES:
            parts.append(data[start:])
    for _ in held:
        yield _joined(parts, size), b"\r"
        parts, size = [], 0
    if size:
        yield _joined(parts, size), b""


def _joined(parts: list[bytes], size: int) -> bytes | None:
    return b"".join(parts) if size <= MAX_LINE_BYTES else None


def _refuse_utf16(path: str, start: bytes) -> None:
    sample = start[:4000]
    is_marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
    zeros = [sample[parity::2].count(0) for parity in (0, 1)]
    is_two_bytes = max(zeros) >= 4 and max(zeros) > 0.2 * (len(sample) // 2) and min(zeros) <= 0.1 * max(zeros)
    is_four_bytes = len(sample) >= 8 and sum(zeros) > 0.6 * len(sample)
    if is_marked or is_two_bytes or is_four_bytes:
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


def _read_txt(prompts: PromptFile, file: SteadyFile) -> Iterator[Record]:
    """A prompt a line. A blank line between prompts is a row (a blank one); at the end of the file it is none."""
    blank: list[int] = []
    for line in _read_lines(prompts.path, file):
        if line.is_blank and len(blank) < 100_000:
            blank.append(line.number)
            continue
        for number in blank:
            yield Record(f"{prompts.name}:{number}", {"prompt": ""})
        blank.clear()
        source = f"{prompts.name}:{line.number}"
        text = _decode(line, source)
        if isinstance(text, Record):
            yield text
        else:
            yield Record(source, problem=_JOINED) if _MARK in text else Record(source, {"prompt": text})


def _read_jsonl(prompts: PromptFile, file: SteadyFile) -> Iterator[Record]:
    """A JSON object a line; blank lines are no rows."""
    held: list[Record] = []
    columns: dict[str, None] = {}
    is_known = False
    for line in _read_lines(prompts.path, file):
        if line.is_blank:
            continue
        source = f"{prompts.name}:{line.number}"
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
            raise _no_prompt_column(prompts.path, list(columns))
    if held:
        raise _no_prompt_column(prompts.path, list(columns))


def _parse_object(text: str, source: str) -> Record:
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_float=_float)
    except json.JSONDecodeError as error:
        reason = _JOINED if _MARK in text else f"{error.msg} at column {error.colno}; write one object a line"
        return Record(source, problem=f"invalid JSON: {reason}")
    except RecursionError:
        return Record(source, problem="invalid JSON: it is nested too deep; write one flat object a line")
    if isinstance(value, AsWritten) and value.kind == _TWICE:
        return Record(source, problem="the object says a key twice; write every key once")
    if not isinstance(value, dict):
        kind = "list" if isinstance(value, list) else type(value).__name__
        return Record(source, problem=f'the line is a JSON {kind}, not an object; write {{"prompt": …}}')
    return Record(source, value)


_TWICE: Final = "an object that says a key twice"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | AsWritten:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    inner = ", ".join(f"{json.dumps(key)}: {json.dumps(value, default=str)}" for key, value in pairs)
    return AsWritten(f"{{{inner}}}", _TWICE)


def _integer(text: str) -> int | AsWritten:
    return int(text) if len(text) <= MAX_DIGITS else AsWritten(text, f"a number of {len(text)} digits")


def _float(text: str) -> float | AsWritten:
    number = float(text)
    return AsWritten(text, f"the number {text[:40]}") if number in (float("inf"), float("-inf")) else number


# ---- CSV -------------------------------------------------------------------------------------------------------------


def _read_csv(prompts: PromptFile, file: SteadyFile) -> Iterator[Record]:
    """RFC 4180 with a header; quoted cells may hold line ends; blank lines are no rows."""
    too_long: set[int] = set()
    reader = csv.reader(_csv_lines(prompts.path, file, too_long), strict=True)
    header = _csv_header(prompts.path, reader)
    while True:
        first_line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Record(_csv_source(prompts.name, first_line, reader.line_num), problem=_csv_problem(str(error)))
            continue
        if cells or too_long:
            source = _csv_source(prompts.name, first_line, reader.line_num)
            yield _csv_record(source, header, cells, bool(too_long))
            too_long.clear()


def _csv_lines(path: str, file: SteadyFile, too_long: set[int]) -> Iterator[str]:
    """Lines as text with their ends; bytes that are no UTF-8 are carried as lone surrogates to be judged."""
    for line in _read_lines(path, file):
        if line.is_too_long:
            too_long.add(line.number)
        yield line.data.decode(errors="surrogateescape") + (line.end or b"\n").decode()


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
    check_columns(path, header)
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
    if [cell.strip() for cell in cells] == header:
        return Record(source, problem="the header stands here again, as where files were joined; take the line out")
    fields = dict(zip(header, cells, strict=True))
    return Record(source, problem=_JOINED) if _MARK in fields["prompt"] else Record(source, fields, is_text=True)


def _csv_source(name: str, first_line: int, last_line: int) -> str:
    return f"{name}:{first_line}" if last_line <= first_line else f"{name}:{first_line}-{last_line}"


def _csv_problem(error: str) -> str:
    if "field larger" in error or "unexpected end" in error:
        return f"a quoted cell never ends ({error}); close the quote, and double every quote inside a cell"
    return f"the row cannot be split into cells ({error}); double every quote inside a quoted cell"


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def _read_parquet(prompts: PromptFile, file: SteadyFile) -> Iterator[Record]:
    """Every column of every row, a small batch at a time."""
    for number, fields in enumerate(ParquetRows(prompts.path, file, check_columns).read(), 1):
        source = f"{prompts.name}:{number}"
        yield Record(source, problem=fields) if isinstance(fields, str) else Record(source, fields)


# ---- shared ----------------------------------------------------------------------------------------------------------


def check_columns(path: str, columns: Sequence[str]) -> None:
    """Returns if all columns have names, no two the same, and there is a `prompt` among them.

    Raises:
        InputError: if not.
    """
    if empty := [str(i) for i, column in enumerate(columns, 1) if not column]:
        raise InputError(
            f"{path}: the header is ragged: column {', '.join(empty[:20])} of {len(columns)} has no name",
            "name every column; there must be as many names as cells in a row",
        )
    if doubled := sorted(column for column, count in Counter(columns).items() if count > 1):
        raise InputError(f"{path}: two columns are called {', '.join(map(repr, doubled[:20]))}", "rename or drop one")
    if "prompt" not in columns:
        raise _no_prompt_column(path, columns)


def _no_prompt_column(path: str, columns: Sequence[str]) -> InputError:
    there = ", ".join(repr(column) for column in columns[:20]) or "none"
    alike = [c for c in columns if c.strip().lower().rstrip("s") == "prompt"]
    alike = alike or difflib.get_close_matches("prompt", columns[:1000], 1)
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        hint = "the cells seem to be parted by something else than commas; save it with commas"
    elif alike:
        hint = f"rename {alike[0]!r} to 'prompt'"
    else:
        hint = "add a column 'prompt' with the text of each video"
    return InputError(f"{path} has no column 'prompt'; its columns: {there}", hint)


_READERS: Final[dict[str, Callable[[PromptFile, SteadyFile], Iterator[Record]]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
