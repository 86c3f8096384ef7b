"""The rows that flow through a run: a prompt read, a row refused, a line of the manifest.

All are frozen values without behaviour of their own but conversion; the prompt file makes `PromptRow` and `BadRow`, the
coordinator turns every one of them into exactly one `ManifestRow`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Final, Literal, NotRequired, TypeAlias, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from miga.outside_data import OutsideDataError, decode, parse_json_object, validated

Status = Literal["ok", "failed"]

SEED_LIMIT: Final = 2**64
"""Seeds are 64-bit: 0 <= seed < SEED_LIMIT."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """One video to make.

    Attributes:
        index: 0-based position in the prompt file, counting bad rows; the identity of a row within a run.
        id: the user's, or the position as a string.
        prompts: one prompt, or several that follow one another in the video; kept exactly as written.
        negative_prompt: None means the model's own.
        seed: 64 bits, unsigned.
        num_frames: length of the video; already known to be one that the model's VAE makes.
        metadata: the columns that mean nothing to the pipeline, as JSON values.
        source: where it was read, such as "prompts.jsonl:17" (1-based line, or row of a Parquet file).
        image, last_image: pictures that the video begins and ends with, as the row names them; None for none.
        image_sha256, last_image_sha256: of their files; None too where nobody has looked at them.
        prompt_frames: frame at which each prompt begins, from 0 on; empty: not said so.
        prompt_times: the same in seconds; both empty: prompts have even shares.
    """

    index: int
    id: str
    prompts: tuple[str, ...]
    negative_prompt: str | None
    seed: int
    num_frames: int
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    image: str | None = None
    image_sha256: str | None = None
    last_image: str | None = None
    last_image_sha256: str | None = None
    prompt_frames: tuple[int, ...] = ()
    prompt_times: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that cannot be made, known before any GPU time is spent.

    Attributes:
        index: as in `PromptRow`.
        id: the row's own where it could be read, otherwise its position.
        source: as in `PromptRow`.
        prompts: as far as they could be read.
        error_type: name of the class of error, for grouping.
        error: what is wrong, where, and what to do about it.
        metadata: as far as it could be read.
    """

    index: int
    id: str
    source: str
    error: str
    error_type: str = "BadRowError"
    prompts: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


def _score(value: Any) -> Any:
    """A score from how JSON says it: no number and the infinities are text there, or null."""
    if value is None:
        return math.nan
    return float(value) if value in ("nan", "inf", "-inf") else value


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("it must carry a time zone")
    if not _FIRST_YEAR < value.year < _LAST_YEAR:  # the ends of the calendar have no UTC
        raise ValueError(f"the year {value.year} is none of a run")
    return value.astimezone(UTC)


_FIRST_YEAR, _LAST_YEAR = 1969, 9999

Int32: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
Int64: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=SEED_LIMIT)]
Score: TypeAlias = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_score)]
Data: TypeAlias = bytes
"""`bytes` within `ManifestRow`, which has a column of that name."""
Time: TypeAlias = Annotated[datetime, AfterValidator(_in_utc)]


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One line of the manifest: everything known of a video, or why there is none.

    What each column means is said once, in `pipeline.records.manifest.SCHEMA`. Columns that a failed row has no value
    for are None; the lists are empty. The types are those of Parquet, and are held when a row is read.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    key: str
    id: str
    row: Int64
    shard: Int32
    status: Status
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    image: str | None = None
    image_sha256: str | None = None
    last_image: str | None = None
    last_image_sha256: str | None = None
    prompt_frames: tuple[Int64, ...] = ()
    prompt_times: tuple[float, ...] = ()
    seed: Seed | None = None
    profile: str
    model: str
    model_revision: str
    config: str
    config_hash: str
    num_frames: Int64 | None = None
    num_latents: Int64 | None = None
    fps: float | None = None
    height: Int32 | None = None
    width: Int32 | None = None
    uri: str | None = None
    bytes: Int64 | None = None
    sha256: str | None = None
    duration_s: float | None = None
    network_calls: Int64 | None = None
    encode_text_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    encode_video_s: float | None = None
    upload_s: float | None = None
    queue_wait_s: float | None = None
    peak_memory_bytes: Int64 | None = None
    device: str | None = None
    node: str | None = None
    attempt: Int32 = 0
    gpu_s: float | None = None
    helper_calls: float | None = None
    latents_uri: str | None = None
    consistency: tuple[Score, ...] = ()
    consistency_latents: tuple[Int32, ...] = ()
    searched_at: tuple[Int32, ...] = ()
    corrected_at: tuple[Int32, ...] = ()
    final_consistency: tuple[Score, ...] = ()
    num_evaluations: Int64 = 0
    num_searches: Int64 = 0
    num_corrections: Int64 = 0
    error_type: str | None = None
    error: str | None = None
    created_at: Time
    version: str
    metadata: str = "{}"
    quality: str | None = None

    def __post_init__(self) -> None:
        if self.status not in ("ok", "failed"):
            raise ValueError(f"status must be 'ok' or 'failed', not {self.status!r}")
        if self.created_at.tzinfo is None:
            raise ValueError("created_at must carry a time zone")

    def to_json(self) -> str:
        """The row as one JSON object, in column order; `from_json` gives the same row back, NaN included."""
        values = vars(self)
        try:
            return _ENCODER.encode(values)
        except ValueError:  # a number that JSON does not have
            return _ENCODER.encode({name: _plain(value) for name, value in values.items()})

    def to_record(self) -> Data:
        """The file that settles the row: its JSON, ended by the checksum of that JSON."""
        text = self.to_json()
        return f'{text[:-1]}, "checksum": "{hashlib.sha256(text.encode()).hexdigest()}"}}'.encode()

    @classmethod
    def from_json(cls, data: str | Data) -> ManifestRow:
        """The row that `to_json` or `to_record` wrote; versions before wrote no checksum.

        Raises:
            OutsideDataError: if it is not one: broken JSON, a column missing, unknown or of another type, or other
                content than the checksum is of.
        """
        text = data if isinstance(data, str) else decode(data)
        if found := _CHECKSUM.search(text):
            text = text[: found.start()] + "}"
            if hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest() != found[1]:
                raise OutsideDataError("its content is not what its checksum is of")
        return cls.from_values(parse_json_object(text))

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ManifestRow:
        """A row from plain values, as JSON or Arrow give them (lists, times, scores that are no number).

        Raises:
            OutsideDataError: if a column is missing, unknown, or of another type or range.
        """
        plain = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            if isinstance(created_at := plain.get("created_at"), str):
                plain["created_at"] = datetime.fromisoformat(created_at)
            return cls(**_row_adapter().validate_python(plain))
        except ValueError:  # seldom: in words, then
            return validated(cls, {name: _jsonable(value) for name, value in values.items()})


@cache
def _row_adapter() -> TypeAdapter[Any]:
    """The columns as a dictionary: in strict mode, no other is taken for a dataclass than the dataclass itself."""
    hints = get_type_hints(ManifestRow, include_extras=True)
    columns = {
        column.name: hints[column.name] if column.default is MISSING else NotRequired[hints[column.name]]
        for column in fields(ManifestRow)
    }
    row_type = TypedDict("_Row", columns)  # type: ignore[misc]  # mypy knows literal ones alone
    return TypeAdapter(with_config(ManifestRow.__pydantic_config__)(row_type))


def _jsonable(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


_CHECKSUM: Final = re.compile(r', "checksum": "([0-9a-f]{64})"\}\s*\Z')


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become the strings that `float()` takes."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat()


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_time)


def canonical_json(value: Any) -> str:
    """One spelling per value, which hashes are made of: sorted keys, no spaces, ASCII; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def content_hash(value: Any) -> str:
    """SHA-256 in hex of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def video_key(
    prompts: tuple[str, ...],
    negative_prompt: str | None,
    seed: int,
    num_frames: int,
    resolved_sampler_config: Mapping[str, Any],
    model_revision: str,
    image_sha256: str | None = None,
    last_image_sha256: str | None = None,
    prompt_frames: tuple[int, ...] = (),
    prompt_times: tuple[float, ...] = (),
) -> str:
    """What a video is made from, as one name: equal keys mean the same video, up to the arithmetic of the device.

    Two rows of a prompt file may share a key (same prompt, same seed); each is still made and recorded by itself.
    Pictures count by their files' digests, wherever they lie; where prompts begin counts as it is written.
    """
    pictures = {"image": image_sha256, "last_image": last_image_sha256}
    starts = {"prompt_frames": list(prompt_frames), "prompt_times": list(prompt_times)}
    return content_hash(
        {
            **{name: digest for name, digest in pictures.items() if digest is not None},
            **{name: each for name, each in starts.items() if each},
            "prompts": list(prompts),
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_frames": num_frames,
            "sampler": dict(resolved_sampler_config),
            "model_revision": model_revision,
        }
    )


def first_frames(row: PromptRow | ManifestRow, fps: float) -> tuple[int, ...]:
    """Frame at which each prompt of a row begins; empty where they have even shares."""
    return row.prompt_frames or tuple(round(each * fps) for each in row.prompt_times)


def bad_row_key(row: BadRow) -> str:
    """The key of a row that no video is made from: its position and what could be read of it."""
    return content_hash({"bad_row": row.index, "id": row.id, "prompts": list(row.prompts)})
