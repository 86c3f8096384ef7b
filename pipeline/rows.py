"""The rows that flow through a run: a prompt read, a row refused, a line of the manifest.

All are frozen values without behaviour of their own but conversion; the prompt file makes `PromptRow` and `BadRow`, the
coordinator turns every one of them into exactly one `ManifestRow`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final, Literal

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
    """

    index: int
    id: str
    prompts: tuple[str, ...]
    negative_prompt: str | None
    seed: int
    num_frames: int
    metadata: dict[str, Any] = field(default_factory=dict)
    source: str = ""


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


@dataclass(frozen=True, kw_only=True)
class ManifestRow:
    """One line of the manifest: everything known of a video, or why there is none.

    What each column means is said once, in `pipeline.manifest.SCHEMA`. Columns that a failed row has no value for are
    None; the lists are empty.
    """

    key: str
    id: str
    row: int
    shard: int
    status: Status
    prompts: tuple[str, ...]
    negative_prompt: str | None = None
    seed: int | None = None
    profile: str
    model: str
    model_revision: str
    config: str
    config_hash: str
    num_frames: int | None = None
    num_latents: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    uri: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    duration_s: float | None = None
    network_calls: int | None = None
    encode_text_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    encode_video_s: float | None = None
    upload_s: float | None = None
    queue_wait_s: float | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    node: str | None = None
    attempt: int = 0
    gpu_s: float | None = None
    helper_calls: float | None = None
    latents_uri: str | None = None
    consistency: tuple[float, ...] = ()
    consistency_latents: tuple[int, ...] = ()
    searched_at: tuple[int, ...] = ()
    corrected_at: tuple[int, ...] = ()
    final_consistency: tuple[float, ...] = ()
    num_evaluations: int = 0
    num_searches: int = 0
    num_corrections: int = 0
    error_type: str | None = None
    error: str | None = None
    created_at: datetime
    version: str
    metadata: str = "{}"

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

    @classmethod
    def from_json(cls, text: str) -> ManifestRow:
        """The row that `to_json` wrote.

        Raises:
            ValueError: if it is not one: broken JSON, a column missing or unknown.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> ManifestRow:
        """A row from plain values, as JSON or Arrow give them (lists, ISO times, NaN as a string)."""
        known = {column.name for column in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown columns {unknown}")
        row = dict(values)
        for name in ("consistency", "final_consistency"):
            row[name] = tuple(math.nan if v is None else float(v) for v in row.get(name) or ())
        for name in ("prompts", "consistency_latents", "searched_at", "corrected_at"):
            row[name] = tuple(row.get(name) or ())
        for name, value in row.items():
            if name in _FLOATS and value is not None:
                row[name] = float(value)
        created_at = row.get("created_at")
        row["created_at"] = datetime.fromisoformat(created_at) if isinstance(created_at, str) else created_at
        try:
            return cls(**row)
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error


_FLOATS: Final = frozenset(name for name in ManifestRow.__annotations__ if name.endswith("_s")) | {
    "fps",
    "helper_calls",
}


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
) -> str:
    """What a video is made from, as one name: equal keys mean the same video, up to the arithmetic of the device.

    Two rows of a prompt file may share a key (same prompt, same seed); each is still made and recorded by itself.
    """
    return content_hash(
        {
            "prompts": list(prompts),
            "negative_prompt": negative_prompt,
            "seed": seed,
            "num_frames": num_frames,
            "sampler": dict(resolved_sampler_config),
            "model_revision": model_revision,
        }
    )


def bad_row_key(row: BadRow) -> str:
    """The key of a row that no video is made from: its position and what could be read of it."""
    return content_hash({"bad_row": row.index, "id": row.id, "prompts": list(row.prompts)})
