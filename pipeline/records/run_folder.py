"""What OUT holds, and whether a run may go on in it.

    run.json                                   what the run is, written once
    lease/000001.json                          who writes here (pipeline/records/lease.py)
    video/00000/00000017-<key16>-e1a1.mp4      videos, a name per epoch of the lease and attempt at the row
    checkpoint/00000/00000017-<key16>/e1a1-0001.safetensors    a video in the making, from its attempt's first part on
    latents/00000/00000017-<key16>-e1a1.safetensors            finished latents, where they are kept
    done/00000/00000017-<key16>.json           a row made        (a `ManifestRow`)
    dead/00000/00000017-<key16>.json           a row quarantined (a `ManifestRow`)
    manifest/shard-00000.parquet               all rows of a shard, once each of them is done or dead
    records/00000/e000003.jsonl.gz             the same, a `ManifestRow` a line, where `gc --sidecars` removed done/
    aside/e000004/...                          what `repair` has replaced

Running the same command again resumes. The same means: the same videos would come out. So the prompts, the model, the
profile, every sampler setting, the seed, the default length, how files are encoded and how rows are sharded must be
what they were (a setting that did not exist then was what is its default now); `limit`, `[workers]`, `[logs]`, most of
`[run]` and where the prompt file lies may change.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Annotated, Any, ClassVar, Final

from pydantic import ConfigDict, Field

from miga.errors import ConfigError, OutputError
from miga.outside_data import OutsideDataError, parse_json_object, shown, validated
from pipeline.config import RunConfig, parse_config
from pipeline.prompts.source import PromptFile, look_at
from pipeline.rows import BadRow, ManifestRow, PromptRow, bad_row_key, canonical_json, content_hash, video_key
from pipeline.storage.base import PROBE_PREFIX, Storage

RUN_FILE: Final = "run.json"
FORMAT: Final = 1

FREE_KEYS: Final = frozenset(
    {
        "config.limit",
        "config.workers",
        "config.logs",
        "config.run.max_failed_share",
        "config.run.min_finished_rows",
        "config.run.max_attempts",
        "config.run.checkpoint_every_s",
        "config.run.keep_latents",
        "config.run.lease_ttl_s",
        "config.run.stop_grace_s",
        "config.run.single_coordinator",
        "prompts.path",
        "version",
        "created_at",
        "weights",
    }
)
"""Keys of run.json, sections whole, that may differ when a run is resumed."""

START_PATIENCE_S: Final = 20.0
"""For the first word with a storage: an address that is wrong shows within seconds."""

_JUNK: Final = frozenset((".DS_Store", "Thumbs.db", "lost+found"))


_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_ASKED: Final = (
    "negative_prompt", "seed", "num_frames", "image", "image_sha256", "last_image", "last_image_sha256",
    "prompt_frames", "prompt_times",
)  # fmt: skip
"""Columns of the manifest that a row of the prompt file says."""


@dataclass(frozen=True, kw_only=True)
class PromptsFingerprint:
    """Which prompt file a run is of.

    Attributes:
        path: where it lay when the run was started.
        bytes: its size.
        sha256: of its content, in hex.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    path: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of run.json.

    Attributes:
        config: the `RunConfig` as plain values, what the command line said included.
        model: name or folder the model was loaded from.
        model_revision: commit, or a digest of the files of a folder.
        profile: name of the profile.
        sampler: the resolved `SamplerConfig` as plain values.
        prompts: the prompt file.
        version: of this program.
        created_at: ISO 8601, UTC.
        weights: what is to be known of the model's weights, such as that they were in 8 bits; not written if nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    config: dict[str, Any]
    model: str
    model_revision: str
    profile: str
    sampler: dict[str, Any]
    prompts: PromptsFingerprint
    version: str
    created_at: str
    weights: tuple[str, ...] = ()
    format: int = field(default=FORMAT)

    @cached_property
    def settings(self) -> RunConfig:
        """The config; what it did not say then is what is the default now, and what is unknown now is left out.

        Raises:
            ConfigError: if a value is not what this version takes.
        """
        return parse_config(_known(self.config, RunConfig().to_dict()), RUN_FILE)

    @cached_property
    def config_hash(self) -> str:
        """SHA-256 of the resolved sampler config: the manifest's `config_hash`."""
        return content_hash(self.sampler)

    def key(self, row: PromptRow | BadRow) -> str:
        """What names the video of a row of the prompt file."""
        if isinstance(row, BadRow):
            return bad_row_key(row)
        return self.key_of(row, row.seed, row.num_frames)

    def key_of(self, row: PromptRow | ManifestRow, seed: int, num_frames: int) -> str:
        """What names the video of a row, of that seed and length."""
        return video_key(
            row.prompts,
            row.negative_prompt,
            seed,
            num_frames,
            self.sampler,
            self.model_revision,
            row.image_sha256,
            row.last_image_sha256,
            row.prompt_frames,
            row.prompt_times,
        )

    def columns(self, row: PromptRow | BadRow, key: str) -> dict[str, Any]:
        """The columns of a `ManifestRow` that are known before the row is settled."""
        asked = {name: getattr(row, name) for name in _ASKED} if isinstance(row, PromptRow) else {}
        return {
            "key": key,
            "id": row.id,
            "row": row.index,
            "shard": shard_of(row.index, self.settings.run.prompts_per_shard),
            "prompts": row.prompts,
            "profile": self.profile,
            "model": self.model,
            "model_revision": self.model_revision,
            "config": self._sampler_json,
            "config_hash": self.config_hash,
            "version": self.version,
            "metadata": json.dumps(row.metadata, ensure_ascii=False),
            **asked,
        }

    @cached_property
    def _sampler_json(self) -> str:
        return canonical_json(self.sampler)

    def to_json(self) -> str:
        """For people and machines."""
        values = asdict(self)
        if not self.weights:
            del values["weights"]
        return json.dumps(values, indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, data: str | bytes) -> RunRecord:
        """What `to_json` wrote.

        Raises:
            ValueError: if it is not that, or of another format.
        """
        values = parse_json_object(data)
        if "format" not in values:
            raise OutsideDataError("it is not the run.json of a run")
        if values["format"] != FORMAT or isinstance(values["format"], bool):
            raise OutsideDataError(f"it is of format {shown(values['format'])}; this version reads {FORMAT}")
        record = validated(cls, values)
        try:
            record.settings  # noqa: B018 (raises)
        except ConfigError as error:
            raise OutsideDataError(error.message) from error
        return record


def _known(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Of a config's values those whose keys this version knows; all of a section that names none."""
    known: dict[str, Any] = {}
    for name, default in defaults.items():
        value = values.get(name, default)
        is_section = isinstance(default, dict) and bool(default) and isinstance(value, Mapping)
        known[name] = _known(value, default) if is_section else value
    return known


def fingerprint(prompts: str | PromptFile) -> PromptsFingerprint:
    """What run.json says of a prompt file, which is read through once if it is given by its path.

    Raises:
        InputError: if it cannot be read, or its address holds credentials, which would stand in run.json.
    """
    file = look_at(prompts) if isinstance(prompts, str) else prompts
    return PromptsFingerprint(path=file.where, bytes=file.bytes, sha256=file.sha256)


def read_run(storage: Storage) -> RunRecord:
    """What the run in `storage` is.

    Raises:
        OutputError: if there is none, or its run.json is broken.
    """
    try:
        return RunRecord.from_json(storage.with_patience(START_PATIENCE_S).read_bytes(RUN_FILE))
    except FileNotFoundError as error:
        raise OutputError(f"{storage.root} holds no run: there is no {RUN_FILE}", "check OUT") from error
    except ValueError as error:
        raise OutputError(
            f"{storage.uri(RUN_FILE)} cannot be used: {error}",
            "restore it from a copy, or choose another OUT",
        ) from error


def check_run(storage: Storage, record: RunRecord) -> RunRecord | None:
    """Whether `record` may run in `storage`, without writing anything.

    Returns:
        The record of the run that it would resume; None where it would be the first.

    Raises:
        OutputError: if there is something else, or a run that would make other videos; every difference is named.
    """
    if not storage.with_patience(START_PATIENCE_S).exists(RUN_FILE):
        others = [name for name in storage.children() if name not in _JUNK and not name.startswith(PROBE_PREFIX)]
        if others:
            named = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
            raise OutputError(
                f"{storage.root} is not empty and holds no run ({named})", "name a new or an empty folder as OUT"
            )
        return None
    earlier = read_run(storage)
    if changes := differences(earlier, record):
        lines = "".join(f"\n  {key}: {was} there, {now} now" for key, was, now in changes if not _is_of_prompts(key))
        if any(_is_of_prompts(key) for key, _, _ in changes):
            lines = f"\n  {_of_prompts(earlier.prompts, record.prompts)}{lines}"
        raise OutputError(
            f"{storage.root} holds another run, of which this would make other videos:{lines}", _remedy(changes)
        )
    return earlier


def _is_of_prompts(key: str) -> bool:
    return key.startswith("prompts.")


def _of_prompts(then: PromptsFingerprint, now: PromptsFingerprint) -> str:
    """How a prompt file differs from that of a run."""
    is_edited = then.path == now.path
    moved = "it was edited since that run was started" if is_edited else f"that run was of {then.path}"
    return (
        f"the prompt file {now.path}: {then.bytes:,} bytes, SHA-256 {then.sha256[:12]}… there, "
        f"{now.bytes:,} bytes, SHA-256 {now.sha256[:12]}… now: {moved}"
    )


def _remedy(changes: Iterable[tuple[str, str, str]]) -> str:
    of_prompts = [key for key, _, _ in changes if _is_of_prompts(key)]
    settings = [key for key, _, _ in changes if not _is_of_prompts(key)]
    parts = ["restore the prompt file as it was"] * bool(of_prompts) + ["repeat those settings"] * bool(settings)
    return f"{' and '.join(parts)} to resume it, or name another OUT for a new run"


def open_run(storage: Storage, record: RunRecord) -> tuple[RunRecord, bool]:
    """Starts the run in `storage`, or resumes it.

    Returns:
        The record that stands in run.json, and whether it was there before.

    Raises:
        OutputError: as `check_run`, or if nothing can be written there.
    """
    storage.probe(single_coordinator=record.settings.run.single_coordinator)
    earlier = check_run(storage, record)
    if earlier is None and storage.write_bytes(RUN_FILE, record.to_json().encode(), if_absent=True):
        return record, False
    return earlier or check_run(storage, record) or record, True


def differences(earlier: RunRecord, now: RunRecord) -> list[tuple[str, str, str]]:
    """Key, earlier and present value of whatever keeps `now` from resuming `earlier`."""
    from miga.profiles import stored_values  # not at the top: whoever only reads a record needs no torch

    before = _flat({**asdict(earlier), "sampler": stored_values(earlier.sampler)})  # of an earlier version, maybe
    after = _flat(asdict(now))
    defaults = _flat(RunConfig().to_dict(), "config.")
    changed = []
    for key in sorted(before.keys() | after.keys()):
        if key in FREE_KEYS or any(key.startswith(f"{free}.") for free in FREE_KEYS):
            continue
        was, now_is = before.get(key, defaults.get(key, _NOTHING)), after.get(key, _NOTHING)
        if was != now_is:
            changed.append((key, was + (" (by default)" if key not in before and key in defaults else ""), now_is))
    return changed


_NOTHING: Final = "nothing"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted key → JSON of the value."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value, ensure_ascii=False)
    return flat


def shard_of(row: int, prompts_per_shard: int) -> int:
    """The shard that a row belongs to."""
    return row // prompts_per_shard


def sidecar_path(status: str, shard: int, row: int, key: str, number: int = 0) -> str:
    """Where a row's result is noted; `status` as in the manifest, `number` of broken ones that were there before."""
    beside = f"-{number}" if number else ""
    return f"{'done' if status == 'ok' else 'dead'}/{shard:05d}/{file_stem(row, key)}{beside}.json"


def pack_folder(shard: int | None = None) -> str:
    """Where second copies of a shard's rows are, or of all shards."""
    return "records" if shard is None else f"records/{shard:05d}"


def pack_path(shard: int, epoch: int) -> str:
    """Where the holder of a lease writes a second copy of a shard's rows."""
    return f"{pack_folder(shard)}/e{epoch:06d}.jsonl.gz"


def path_in_out(uri: str) -> str:
    """The path in OUT of a video, or of its latents, whose address was noted there; OUT may have been moved since.

    Raises:
        OutsideDataError: if it is the address of no such file.
    """
    *_, above, folder, name = ("", "", *uri.split("/"))
    path = f"{above}/{folder}/{name}" if above in ("video", "latents") else f"{folder}/{name}"
    if not _FILE_OF_A_ROW.fullmatch(path):
        raise OutsideDataError(f"{shown(uri)} is the address of no video and no latents of an OUT")
    return path


_FILE_OF_A_ROW: Final = re.compile(
    r"(?:(?:video|latents)/\d{5,9}|extended)/[A-Za-z0-9_=-][A-Za-z0-9._=-]{0,199}", re.ASCII
)


def video_path(shard: int, row: int, key: str, epoch: int, attempt: int) -> str:
    """Where an attempt puts its video: rows of one key, and attempts of one row, never share a name."""
    return f"video/{shard:05d}/{file_stem(row, key)}-e{epoch}a{attempt}.mp4"


def latents_path(shard: int, row: int, key: str, epoch: int, attempt: int) -> str:
    """Where an attempt puts its video's finished latents."""
    return f"latents/{shard:05d}/{file_stem(row, key)}-e{epoch}a{attempt}.safetensors"


def open_state_path(latents: str) -> str:
    """Where the state lies that a longer video goes on from, beside the finished latents of a video."""
    return latents.removesuffix(".safetensors") + "-open.safetensors"


def checkpoint_folder(shard: int, row: int, key: str) -> str:
    """Where the checkpoints of a row are, of all attempts."""
    return f"checkpoint/{shard:05d}/{file_stem(row, key)}"


@dataclass(frozen=True, order=True)
class CheckpointName:
    """One file of `checkpoint_folder`. The parts of one attempt, from number 1 on, make a checkpoint together.

    Attributes:
        epoch: of the lease.
        attempt: at the row, in that epoch.
        number: of the part.
    """

    epoch: int
    attempt: int
    number: int

    def __str__(self) -> str:
        return f"e{self.epoch}a{self.attempt}-{self.number:04d}.safetensors"

    @classmethod
    def parse(cls, name: str) -> CheckpointName | None:
        """What a file's name says; None if it is no such file."""
        found = _CHECKPOINT.fullmatch(name)
        return None if found is None else cls(int(found[1]), int(found[2]), int(found[3]))

    def parts(self) -> list[CheckpointName]:
        """The parts from the first up to this one."""
        return [CheckpointName(self.epoch, self.attempt, number) for number in range(1, self.number + 1)]


_CHECKPOINT: Final = re.compile(r"e(\d{1,9})a(\d{1,9})-(\d{4,9})\.safetensors", re.ASCII)


def newest_checkpoint(names: Iterable[str]) -> CheckpointName | None:
    """Of the files of a row's checkpoint folder the last whole one: every part before it is there."""
    attempts: dict[tuple[int, int], set[int]] = {}
    for name in filter(None, map(CheckpointName.parse, names)):
        attempts.setdefault((name.epoch, name.attempt), set()).add(name.number)
    for epoch, attempt in sorted(attempts, reverse=True):
        numbers = attempts[epoch, attempt]
        num_whole = next(number for number in itertools.count() if number + 1 not in numbers)
        if num_whole:
            return CheckpointName(epoch, attempt, num_whole)
    return None


def file_stem(row: int, key: str) -> str:
    """What names of a row's files begin with."""
    return f"{row:08d}-{key[:16]}"


def manifest_path(shard: int) -> str:
    """Where a sealed shard's rows are."""
    return f"manifest/shard-{shard:05d}.parquet"
