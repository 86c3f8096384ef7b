"""What OUT holds, and whether a run may go on in it.

    run.json                                   what the run is, written once
    lease/000001.json                          who writes here (pipeline/lease.py)
    video/00000/00000017-<key16>-e1a1.mp4      videos, a name per epoch of the lease and attempt at the row
    checkpoint/00000/00000017-<key16>/e1a1-0001.safetensors    a video in the making, from its attempt's first part on
    latents/00000/00000017-<key16>-e1a1.safetensors            finished latents, where they are kept
    done/00000/00000017-<key16>.json           a row made        (a `ManifestRow`)
    dead/00000/00000017-<key16>.json           a row quarantined (a `ManifestRow`)
    manifest/shard-00000.parquet               all rows of a shard, once each of them is done or dead

Running the same command again resumes. The same means: the same videos would come out. So the prompts, the model, the
profile, every sampler setting, the seed, the default length, how files are encoded and how rows are sharded must be
what they were (a setting that did not exist then was what is its default now); `limit`, `[workers]`, most of `[run]`
and where the prompt file lies may change.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

import fsspec

from miga.errors import InputError, OutputError
from pipeline.addresses import check_address
from pipeline.config import RunConfig
from pipeline.rows import content_hash
from pipeline.storage import PROBE_PREFIX, Storage

RUN_FILE: Final = "run.json"
FORMAT: Final = 1

FREE_KEYS: Final = frozenset(
    {
        "config.limit",
        "config.workers",
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
    }
)
"""Keys of run.json, sections whole, that may differ when a run is resumed."""

START_PATIENCE_S: Final = 20.0
"""For the first word with a storage: an address that is wrong shows within seconds."""

_JUNK: Final = frozenset((".DS_Store", "Thumbs.db", "lost+found"))


@dataclass(frozen=True, kw_only=True)
class PromptsFingerprint:
    """Which prompt file a run is of.

    Attributes:
        path: where it lay when the run was started.
        bytes: its size.
        sha256: of its content, in hex.
    """

    path: str
    bytes: int
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
    """

    config: dict[str, Any]
    model: str
    model_revision: str
    profile: str
    sampler: dict[str, Any]
    prompts: PromptsFingerprint
    version: str
    created_at: str
    format: int = field(default=FORMAT)

    @property
    def config_hash(self) -> str:
        """SHA-256 of the resolved sampler config: the manifest's `config_hash`."""
        return content_hash(self.sampler)

    def to_json(self) -> str:
        """For people and machines."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """What `to_json` wrote.

        Raises:
            ValueError: if it is not that, or of another format.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("it is not the run.json of a run")
        if values["format"] != FORMAT:
            raise ValueError(f"it is of format {values['format']}; this version reads {FORMAT}")
        if set(values) != {item.name for item in fields(cls)}:
            raise ValueError("it lacks keys, or has unknown ones")
        try:
            return cls(**(values | {"prompts": PromptsFingerprint(**values["prompts"])}))
        except TypeError as error:
            raise ValueError(str(error)) from error


def fingerprint(path: str) -> PromptsFingerprint:
    """The fingerprint of a prompt file, read through once in constant memory.

    Raises:
        InputError: if it cannot be read, or its address holds credentials, which would stand in run.json.
    """
    check_address(path, InputError, "prompts")
    digest = hashlib.sha256()
    size = 0
    try:
        with fsspec.open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"{path} cannot be read: {error}", "check the path and its permissions") from error
    where = path if "://" in path else os.path.abspath(path)
    return PromptsFingerprint(path=where, bytes=size, sha256=digest.hexdigest())


def read_run(storage: Storage) -> RunRecord:
    """What the run in `storage` is.

    Raises:
        OutputError: if there is none, or its run.json is broken.
    """
    try:
        return RunRecord.from_json(storage.with_patience(START_PATIENCE_S).read_bytes(RUN_FILE).decode())
    except FileNotFoundError as error:
        raise OutputError(f"{storage.root} holds no run: there is no {RUN_FILE}", "check OUT") from error
    except (ValueError, KeyError) as error:
        raise OutputError(f"{storage.uri(RUN_FILE)} cannot be used: {error}", "choose another OUT") from error


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
        lines = "".join(f"\n  {key}: {was} there, {now} now" for key, was, now in changes)
        raise OutputError(
            f"{storage.root} holds a run of another config:{lines}",
            "repeat the settings of that run to resume it, or name another OUT",
        )
    return earlier


def open_run(storage: Storage, record: RunRecord) -> tuple[RunRecord, bool]:
    """Starts the run in `storage`, or resumes it.

    Returns:
        The record that stands in run.json, and whether it was there before.

    Raises:
        OutputError: as `check_run`, or if nothing can be written there.
    """
    storage.probe(single_coordinator=bool(record.config["run"]["single_coordinator"]))
    earlier = check_run(storage, record)
    if earlier is None and storage.write_bytes(RUN_FILE, record.to_json().encode(), if_absent=True):
        return record, False
    return earlier or check_run(storage, record) or record, True


def differences(earlier: RunRecord, now: RunRecord) -> list[tuple[str, str, str]]:
    """Key, earlier and present value of whatever keeps `now` from resuming `earlier`."""
    before, after = _flat(asdict(earlier)), _flat(asdict(now))
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


def sidecar_path(status: str, shard: int, row: int, key: str) -> str:
    """Where a row's result is noted; `status` as in the manifest."""
    return f"{'done' if status == 'ok' else 'dead'}/{shard:05d}/{_name(row, key)}.json"


def video_path(shard: int, row: int, key: str, epoch: int, attempt: int) -> str:
    """Where an attempt puts its video: rows of one key, and attempts of one row, never share a name."""
    return f"video/{shard:05d}/{_name(row, key)}-e{epoch}a{attempt}.mp4"


def latents_path(shard: int, row: int, key: str, epoch: int, attempt: int) -> str:
    """Where an attempt puts its video's finished latents."""
    return f"latents/{shard:05d}/{_name(row, key)}-e{epoch}a{attempt}.safetensors"


def open_state_path(latents: str) -> str:
    """Where the state lies that a longer video goes on from, beside the finished latents of a video."""
    return latents.removesuffix(".safetensors") + "-open.safetensors"


def checkpoint_folder(shard: int, row: int, key: str) -> str:
    """Where the checkpoints of a row are, of all attempts."""
    return f"checkpoint/{shard:05d}/{_name(row, key)}"


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


_CHECKPOINT: Final = re.compile(r"e(\d+)a(\d+)-(\d{4,})\.safetensors", re.ASCII)


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


def _name(row: int, key: str) -> str:
    return f"{row:08d}-{key[:16]}"


def manifest_path(shard: int) -> str:
    """Where a sealed shard's rows are."""
    return f"manifest/shard-{shard:05d}.parquet"
