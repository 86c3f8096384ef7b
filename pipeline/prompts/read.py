"""The prompt file, judged row by row before any GPU time is spent.

A file that cannot be used at all raises `InputError`; a row that cannot be made becomes a `BadRow` with its reason, and
the others go on. What a row may hold:

- `prompt`: text, or a list of texts for several prompts in turn (text only in `.csv` and `.txt`); kept as written.
- `id`: text or a whole number, unlike every other; without one, the row's position.
- `seed`: 0 <= seed < 2**64; without one, the run's seed plus the row's position (mod 2**64), so that a prompt that
  stands in the file twice gives two videos, and a row keeps its video when others are given seeds of their own.
- `num_frames`: a length the model's VAE makes; without one, the run's.
- `negative_prompt`: text; without one (or null), the model's own. Empty text means none
  at all (`.csv` cannot say that).
- `image`, `last_image`: a picture that the video begins, or ends, with: a path, from the prompt file's folder on, or
  an address. The file is read, and refused by name if it is none (`miga/pictures.py`).
- `prompt_frames` or `prompt_times`: of several prompts in turn the frame, or the second, at which each begins; without
  them, prompts have even shares.
- everything else goes into `metadata`, as JSON, and never keeps a row from being made: NaN becomes null; infinities,
  bytes (base64), times, and whatever else JSON or Python has no value for become text, half a character its escape;
  what is too large becomes a sentence with its size and, where it was read, its SHA-256.

Whole numbers may be written as floats, as pandas does with a column that has gaps: 42.0 is 42, NaN is not given. From
2**53 on a float does not say which whole number is meant, and is refused.

In `.txt` a blank line is a row with a blank prompt, hence quarantined, so that positions stay line numbers; blank lines
at the end are none. In `.jsonl` and `.csv` a blank line is never a row.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import hashlib
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from miga.errors import BadRowError, InputError
from pipeline.prompts.files import AsWritten, Record, count_records, read_records
from pipeline.prompts.images import COLUMNS, RowImages
from pipeline.prompts.seen_ids import RowBits, SeenIds
from pipeline.prompts.source import PromptFile, look_at
from pipeline.prompts.starts import COLUMNS as START_COLUMNS
from pipeline.prompts.starts import read_starts
from pipeline.rows import SEED_LIMIT, BadRow, PromptRow, canonical_json

MAX_METADATA_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_NUM_FRAMES: Final = 2**31 - 1


_COLUMNS: Final = ("prompt", "id", "seed", "num_frames", "negative_prompt", *COLUMNS, *START_COLUMNS)
_INVISIBLE: Final = frozenset("\u2800\u3164\u115f\u1160\uffa0")
_INVISIBLE_CATEGORIES: Final = frozenset(("Cc", "Cf", "Zs", "Zl", "Zp", "Mn"))
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,400}", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?([0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})([eE][+-]?[0-9]{1,4})?", re.ASCII)
_FLOAT_ID: Final = re.compile(r"[+-]?[0-9]{1,16}\.0", re.ASCII)
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_EXACT_FLOATS: Final = 2**53
"""Below it a float is one whole number."""
_LARGE_COLUMN_BYTES: Final = 1000


CheckPrompt: TypeAlias = Callable[[str], str | None]
CheckStarts: TypeAlias = Callable[[PromptRow], str | None]


@runtime_checkable
class ManyPromptsCheck(Protocol):
    """A check of prompts that is faster for many at once."""

    def many(self, prompts: Sequence[str]) -> Sequence[str | None]:
        """What the check says of each."""
        ...


def read_prompts(
    prompts: str | PromptFile,
    *,
    seed: int,
    num_frames: int,
    limit: int | None = None,
    check_num_frames: Callable[[int], str | None] | None = None,
    check_prompt: CheckPrompt | None = None,
    check_starts: CheckStarts | None = None,
    read_ahead: int = 1,
    images: RowImages | None = None,
    check_num_prompts: Callable[[int], str | None] | None = None,
) -> Iterator[PromptRow | BadRow]:
    """The rows of a prompt file, read as they are asked for; the same file gives the same rows every time.

    Args:
        prompts: a local path or an fsspec address; or what was found there before, which it must still hold.
        seed: the run's.
        num_frames: for rows without their own.
        limit: stop after so many rows, bad ones counted.
        check_num_frames: says why a length cannot be made, such as which lengths the VAE makes.
        check_prompt: says why a prompt cannot be used, such as that it has more tokens than the text encoder takes. One
            with a method `many` is asked about all prompts of the rows read ahead at once.
        check_starts: says why the prompts of a row cannot begin where it says they do.
        read_ahead: rows read at once.
        images: reads the pictures that rows name; None: nobody looks at them, and rows have no digests of them.
        check_num_prompts: says why so many prompts in turn cannot be, such as that a profile takes one.

    Raises:
        InputError: if the file cannot be read at all; by this call where it shows before the first row, otherwise
            while reading on.
    """
    file = look_at(prompts) if isinstance(prompts, str) else prompts
    records = itertools.islice(read_records(file), limit)
    first = next(records, None)
    if first is None:
        raise InputError(f"{file.path} holds no rows", "write at least one prompt into it")
    judge = _Judge(seed, num_frames, check_num_frames, check_prompt, images, check_starts, check_num_prompts)
    from_first: Iterator[Record] = itertools.chain((first,), records)
    if read_ahead > 1 and isinstance(check_prompt, ManyPromptsCheck):
        from_first = judge.looked_at_ahead(from_first, read_ahead, check_prompt)
    return map(judge.judge, itertools.count(), from_first)


def count_rows(prompts: str | PromptFile, limit: int | None = None) -> int:
    """How many rows `read_prompts` yields.

    Raises:
        InputError: as `read_prompts`.
    """
    count = count_records(look_at(prompts) if isinstance(prompts, str) else prompts)
    return count if limit is None else min(count, limit)


class _Judge:
    """Turns records into rows; remembers the ids used, and nothing else."""

    def __init__(
        self,
        seed: int,
        num_frames: int,
        check_num_frames: Callable[[int], str | None] | None,
        check_prompt: CheckPrompt | None,
        images: RowImages | None,
        check_starts: CheckStarts | None,
        check_num_prompts: Callable[[int], str | None] | None,
    ) -> None:
        self._images = images
        self._check_starts = check_starts or _accept
        self._check_num_prompts = check_num_prompts or _accept
        self._seed = seed
        self._num_frames = num_frames
        self._check_num_frames = check_num_frames or _accept
        self._check_prompt = check_prompt or _accept
        self._known_reasons: dict[str, str | None] = {}
        self._seen = SeenIds()
        self._unnamed = RowBits()

    def looked_at_ahead(self, records: Iterator[Record], count: int, check: ManyPromptsCheck) -> Iterator[Record]:
        """The records; of so many at a time the prompts have been checked together."""
        while batch := list(itertools.islice(records, count)):
            prompts = list(dict.fromkeys(text for record in batch for text in _texts(record)))
            self._known_reasons = dict(zip(prompts, check.many(prompts), strict=True)) if prompts else {}
            yield from batch

    def judge(self, index: int, record: Record) -> PromptRow | BadRow:
        fields = record.fields
        if fields is None:
            return BadRow(index=index, id=str(index), source=record.source, error=f"{record.source}: {record.problem}")
        try:
            return self._prompt_row(index, record, fields)
        except BadRowError as error:
            text = f"{record.source}: {error.message}" + (f"; {error.hint}" if error.hint else "")
            return BadRow(
                index=index,
                id=_readable_id(_id_of(fields, record.is_text), index),
                source=record.source,
                error=_escaped(text),
                prompts=_readable_prompts(fields.get("prompt")),
                metadata=_readable_metadata(fields),
            )

    def _prompt_row(self, index: int, record: Record, fields: Mapping[str, Any]) -> PromptRow:
        if record.is_text:
            fields = {name: _absent_if_empty(name, value) for name, value in fields.items()}
        row_id = self._id(index, _id_of(fields, record.is_text))
        prompts = _prompts(fields)
        for prompt in prompts:
            known = self._known_reasons
            if reason := known[prompt] if prompt in known else self._check_prompt(prompt):
                raise BadRowError(f"prompt {_shown(prompt)}: {reason}")
        if reason := self._check_num_prompts(len(prompts)):
            raise BadRowError(reason)
        own_seed = _whole(fields.get("seed"), "seed", record.is_text)
        if own_seed is not None and not 0 <= own_seed < SEED_LIMIT:
            raise BadRowError(f"seed {_cut(own_seed)} is not in 64 bits", f"use 0 to {SEED_LIMIT - 1}")
        row = PromptRow(
            index=index,
            id=row_id,
            prompts=prompts,
            negative_prompt=_text_or_none(fields.get("negative_prompt"), "negative_prompt"),
            seed=own_seed if own_seed is not None else (self._seed + index) % SEED_LIMIT,
            num_frames=self._length(_whole(fields.get("num_frames"), "num_frames", record.is_text)),
            metadata=_metadata(fields),
            source=record.source,
            **self._pictures(fields),
            **read_starts(fields, len(prompts)),
        )
        if (row.prompt_frames or row.prompt_times) and (reason := self._check_starts(row)):
            raise BadRowError(reason)
        return row

    def _pictures(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The pictures that a row names, and their digests."""
        found: dict[str, Any] = {}
        for column in COLUMNS:
            name = _text_or_none(fields.get(column), column)
            found[column] = name
            found[f"{column}_sha256"] = None if self._images is None else self._images.digest(column, name)
        if found["last_image"] is not None and found["image"] is None:
            raise BadRowError("there is a 'last_image' and no 'image'", "give both, or leave the last one out")
        return found

    def _length(self, own: int | None) -> int:
        num_frames = self._num_frames if own is None else own
        if num_frames < 1:
            raise BadRowError(f"num_frames is {_cut(num_frames)}", "ask for at least one frame, or leave it out")
        if num_frames > MAX_NUM_FRAMES:
            raise BadRowError(f"num_frames {_cut(num_frames)} is more than {MAX_NUM_FRAMES}", "ask for fewer")
        if reason := self._check_num_frames(num_frames):
            raise BadRowError(reason if "num_frames" in reason else f"num_frames {num_frames}: {reason}")
        return num_frames

    def _id(self, index: int, value: Any) -> str:
        """The row's id, unlike those before it; explicit and given ones alike."""
        own = _explicit_id(value)
        row_id = str(index) if own is None else own
        first = self._seen.first_row(row_id)
        if first is None and own is not None:
            named = int(own) if own.isascii() and own.isdigit() and len(own) < 19 else -1
            first = named if named in self._unnamed and str(named) == own else None
        if first is not None:
            raise BadRowError(
                f"id {_shown(row_id)} is the id of row {first} already (rows are counted from 0)",
                "give every row an id of its own, or none at all",
            )
        if own is None:
            self._unnamed.add(index)
        else:
            self._seen.add(row_id, index)
        return row_id


def _texts(record: Record) -> list[str]:
    """What may be a record's prompts, as far as it is text that a tokenizer can be given."""
    value = (record.fields or {}).get("prompt")
    texts = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    return [text for text in texts if text.isascii() or not _LONE_SURROGATE.search(text)]


def _accept(_: Any) -> None:
    return None


def _absent_if_empty(name: str, value: Any) -> Any:
    """An empty CSV cell of an optional column means that it is left out."""
    return None if name in _COLUMNS[1:] and not value.strip() else value


def _id_of(fields: Mapping[str, Any], is_text: bool) -> Any:
    """The row's own id as it is written; of a CSV, 1.0 is the whole number that pandas wrote so."""
    value = fields.get("id")
    return value.strip()[:-2] if is_text and isinstance(value, str) and _FLOAT_ID.fullmatch(value.strip()) else value


def _explicit_id(value: Any) -> str | None:
    if value is None or _is_nan(value):
        return None
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return str(_whole(value, "id", is_text=False))
    if not isinstance(value, str):
        raise BadRowError(f"id is {_kind(value)}, not text", "write it in quotes")
    if not value.strip():
        raise BadRowError("id is blank", "fill it in or leave it out")
    return _text(value, "id")


def _prompts(fields: Mapping[str, Any]) -> tuple[str, ...]:
    if "prompt" not in fields:
        there = ", ".join(map(repr, list(fields)[:20])) or "nothing"
        raise BadRowError(f"there is no 'prompt', only {there}", "add one")
    value = fields["prompt"]
    if isinstance(value, str):
        return (_visible(value, "prompt"),)
    if not isinstance(value, list):
        raise BadRowError(f"prompt is {_kind(value)}, not text", "write text, or a list of texts for several in turn")
    if not value:
        raise BadRowError("prompt is an empty list", "write at least one prompt into it")
    return tuple(_visible(item, f"prompt {i} of {len(value)}") for i, item in enumerate(value, 1))


def _visible(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {_kind(value)}, not text", "write text")
    text = _text(value, name)
    if all(c in _INVISIBLE or unicodedata.category(c) in _INVISIBLE_CATEGORIES for c in text):
        raise BadRowError(
            f"{name} is blank" + (f" ({_shown(text)} shows nothing)" if text else ""), "write what the video shows"
        )
    return text


def _text(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise BadRowError(
            f"{name} holds half a character (lone surrogate \\u{code:04x}) at position {error.start + 1}",
            "write the character whole, such as an emoji itself instead of half its escape",
        ) from error
    return value


def _text_or_none(value: Any, name: str) -> str | None:
    if value is None or _is_nan(value):
        return None
    if not isinstance(value, str):
        raise BadRowError(f"{name} is {_kind(value)}, not text", "write text, or leave it out")
    return _text(value, name)


def _whole(value: Any, name: str, is_text: bool) -> int | None:
    if is_text and isinstance(value, str):
        value = _number(value.strip())
    if value is None or _is_nan(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, float | decimal.Decimal) or not _is_whole(value):
        shown = _shown(value) if isinstance(value, str) else _kind(value)
        raise BadRowError(f"{name} is {shown}, not a whole number", "write digits only, or leave it out")
    if isinstance(value, float) and abs(value) >= _EXACT_FLOATS:
        raise BadRowError(
            f"{name} is {value!r}, a float that stands for many whole numbers",
            "write all digits, without a point or an exponent",
        )
    return int(value)


def _is_whole(number: float | decimal.Decimal) -> bool:
    return number.is_integer() if isinstance(number, float) else number == number.to_integral_value()


def _number(text: str) -> Any:
    """What a CSV cell says if it is a number, and the cell otherwise."""
    if _WHOLE.fullmatch(text):
        return int(text)
    if text.lower() == "nan":
        return math.nan
    if _DECIMAL.fullmatch(text):
        exact = decimal.Decimal(text)
        return float(exact) if _is_whole(exact) else text
    return text


def _metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for name, value in fields.items():
        if name not in _COLUMNS:
            metadata[_unused(_escaped(name), metadata)] = _json_value(value, 0)
    if metadata and len(canonical_json(metadata)) > MAX_METADATA_BYTES:
        _leave_out_largest(metadata)
    return metadata


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name


def _leave_out_largest(metadata: dict[str, Any]) -> None:
    """Puts a sentence in the place of the largest columns, until the others are few enough bytes."""
    sizes = {name: len(canonical_json(value)) for name, value in metadata.items()}
    total = len(canonical_json(metadata))
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if total <= MAX_METADATA_BYTES:
            return
        if sizes[name] < _LARGE_COLUMN_BYTES:
            raise BadRowError(f"the {len(sizes)} columns to carry along are {total} bytes", "drop some of them")
        text = canonical_json(metadata[name]).encode()
        metadata[name] = f"left out: {len(text)} bytes of JSON, SHA-256 {hashlib.sha256(text).hexdigest()}"
        total += len(canonical_json(metadata[name])) - sizes[name]


def _json_value(value: Any, depth: int) -> Any:
    """`value` as JSON can say it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if isinstance(value, Mapping | list | tuple):
        return _nested(value, depth)
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dt.timedelta):
        return value.total_seconds()
    return _escaped(str(value))


def _nested(value: Mapping[Any, Any] | Sequence[Any], depth: int) -> Any:
    if depth >= MAX_DEPTH:
        return _deep_text(value)
    if not isinstance(value, Mapping):
        return [_json_value(item, depth + 1) for item in value]
    inner: dict[str, Any] = {}
    for key, item in value.items():
        inner[_unused(_escaped(str(key)), inner)] = _json_value(item, depth + 1)
    return inner


def _deep_text(value: Any) -> str:
    """The JSON of what is nested too deep to be carried as it is."""
    try:
        return json.dumps(value, default=str)
    except RecursionError as error:
        raise BadRowError("a column to carry along is nested too deep", "flatten or drop it") from error


def _escaped(text: str) -> str:
    """`text` with halves of characters as their escapes."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _readable_id(value: Any, index: int) -> str:
    try:
        return _explicit_id(value) or str(index)
    except BadRowError:
        return str(index)


def _readable_prompts(value: Any) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(_escaped(item) for item in items if isinstance(item, str))


def _readable_metadata(fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _metadata(fields)
    except BadRowError:
        return {}


def _is_nan(value: Any) -> bool:
    """Whether it is how pandas writes what is missing."""
    return isinstance(value, float | decimal.Decimal) and math.isnan(value)


def _kind(value: Any) -> str:
    if isinstance(value, AsWritten):
        return value.kind
    names = {type(None): "missing (null)", bool: "true/false", list: "a list", dict: "an object", bytes: "bytes"}
    return names.get(type(value)) or (
        f"the number {value}" if isinstance(value, int | float | decimal.Decimal) else type(value).__name__
    )


def _cut(number: int) -> str:
    digits = str(number)
    return digits if len(digits) <= 40 else f"{digits[:20]}… ({len(digits)} digits)"


def _shown(text: str) -> str:
    """`text` for a message: in quotes, control characters escaped, cut."""
    return ascii(text) if len(text) <= 60 else ascii(text[:57]) + "…"
