"""The config of a run: one TOML file, read strictly, with what the command line says over it.

Everything is optional; the defaults are the documentation. Nothing is coerced: 54.7 is no whole number, "3" no number,
true no 1, and a key that is not known is an error with the nearest known one named. TOML has no null: where None stands
below, "none" says it (`preset = "none"`), and so does empty text.

    model = "sprites"
    profile = "paper"
    [sampler]
    num_candidates = 3
    [workers]
    num_actors = 8
    [video]
    crf = 18
    [run]
    max_attempts = 3
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypeAlias, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from miga.errors import ConfigError
from miga.outside_data import MAX_TOML_BYTES, OutsideDataError, parse_toml, read_file
from miga.sharing import MOST_VIDEOS, Share
from miga.video_config import VideoConfig
from pipeline.rows import SEED_LIMIT, canonical_json

_STRICT: Final = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Positive: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
Seconds: TypeAlias = Annotated[float, Field(gt=0)]
Name: TypeAlias = Annotated[str, Field(min_length=1)]
TrackerName: TypeAlias = Literal["tensorboard", "trackio", "wandb"]
VideosPerActor: TypeAlias = Annotated[int, Field(ge=1, le=MOST_VIDEOS)] | Literal["auto"]
SamplerValue: TypeAlias = bool | int | float | str | list[int]


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Where the videos are made; changes nothing in them (`videos_per_actor`: nothing but rounding).

    Attributes:
        num_actors: backbone actors; None means one per GPU, more and fewer as the cluster grows and shrinks, or two on
            CPU slots where there is no GPU.
        max_actors: with `num_actors` None, actors are asked for up to this many while there is work for them, whether
            or not the cluster has room yet: those that wait for it make an autoscaler add nodes (it must be told
            `gpus_per_actor` if it starts without a GPU). None means as many as there is room for.
        max_videos: videos in the making at a time; None means as many as the actors make at once.
        videos_per_actor: videos that an actor makes at once, in step, calls of theirs that do the same made as one;
            more than 1 for causal profiles alone. "auto": as many as its GPU has memory for; without a GPU one.
        share: what actors without a video of their own compute for those that have one. "windows": any window, so all
            GPUs are busy, and one long video is made as fast as can be. "candidates": windows of self-reflection's
            searches alone, so a search costs next to no time, and little goes over the network between nodes.
            "nothing": they idle.
        uploads_ahead: finished videos of an actor that may still be uploading while it makes the next, for each of
            those that it makes at once.
        cpus_per_actor: CPU slots that an actor takes.
        gpus_per_actor: GPUs that an actor takes; None means 1 where there are GPUs, otherwise 0.
        text_gpus: share of a GPU that the text encoder takes, which the actors must leave; 0 keeps it on the CPU.
        lookahead: rows read and encoded ahead of the actors.
        silent_after_s: an actor that has not answered for so long is taken for dead, and replaced.
        stalled_after_s: the same of one that answers, but whose video, or call of the network, gets no further.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    num_actors: Positive | None = None
    max_actors: Positive | None = None
    max_videos: Positive | None = None
    videos_per_actor: VideosPerActor = 1
    share: Share = "windows"
    uploads_ahead: Annotated[int, Field(ge=0, le=16)] = 1
    cpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    text_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    lookahead: Annotated[int, Field(ge=0)] = 2
    silent_after_s: Seconds = 120.0
    stalled_after_s: Seconds = 1800.0


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """How the run deals with its rows.

    Attributes:
        prompts_per_shard: rows of one Parquet file of the manifest.
        max_failed_share: the run stops once more than this share of the rows tried has failed. Rows that the prompt
            file has wrong are not counted: they cost nothing.
        min_finished_rows: rows tried before that share is looked at.
        max_attempts: workers that a row may lose, without a checkpoint of progress between them, before it is given up.
        checkpoint_every_s: how often a video in the making is saved; losing its actor costs no more than that.
        keep_latents: whether finished latents are kept beside the videos, for `miga extend`, or to decode them again.
        lease_ttl_s: a run that has not been heard of for so long is taken for dead by the next one on the same OUT.
        single_coordinator: your word that no two runs ever write in one OUT at once; only then is a server of a bucket
            taken that ignores conditional writes.
        stop_grace_s: on SIGTERM, how long to wait for videos in the making to be saved (`ray job stop` kills after 3).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    prompts_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    min_finished_rows: Positive = 20
    max_attempts: Positive = 3
    checkpoint_every_s: Seconds = 120.0
    keep_latents: bool = False
    lease_ttl_s: Annotated[float, Field(ge=1, le=3600)] = 30.0
    single_coordinator: bool = False
    stop_grace_s: Annotated[float, Field(ge=0, le=3600)] = 2.0


@dataclass(frozen=True, kw_only=True)
class LogsConfig:
    """Where one person watches the run; changes nothing in its videos.

    Attributes:
        tracker: the run writes its figures, the scores of every finished video and a sample of the videos there; its
            package is installed separately. None writes nothing.
        folder: of TensorBoard's files; None is `logs` in OUT, which must then be a local folder.
        project: of trackio or Weights & Biases.
        first_videos: so many of the first finished videos are shown,
        every_videos: and then each so-many-th.
        every_s: how often the figures are written.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    tracker: TrackerName | None = None
    folder: Name | None = None
    project: Name = "miga"
    first_videos: Annotated[int, Field(ge=0, lt=2**31)] = 8
    every_videos: Positive = 100
    every_s: Seconds = 30.0


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Which videos are good enough. Nothing is asked of them as long as `least` and `most` are empty.

    A video is judged by the scores that its row has when it is made: `final_consistency` (the mean),
    `lowest_consistency`, `searches`, `corrections`, `network_calls`, `gpu_s`, and those that the model's family reads
    off its frames (`sprites`: `colour`, `ground`, `shape`, `motion`, `all_right`, `residual`, `right_drift`).

    Attributes:
        least: score → the least that a video may have.
        most: score → the most that it may have.
        retries: how often a row whose video lies beyond that is made again, each time under another seed; the best of
            its videos is kept. 0: it is only marked.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    least: dict[str, float] = field(default_factory=dict)
    most: dict[str, float] = field(default_factory=dict)
    retries: Annotated[int, Field(ge=0, le=100)] = 0

    @property
    def is_asked(self) -> bool:
        """Whether videos are judged at all."""
        return bool(self.least or self.most)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a user can say about a run.

    Attributes:
        model: a built-in name, a folder in diffusers' layout or a hub name.
        revision: of a hub name; None means its default.
        dtype: of the network's arithmetic; "auto" is bfloat16 on a GPU, float32 on a CPU.
        text_dtype: of the text encoder; bfloat16 halves its memory.
        lora: LoRAs that are fused into the model in this order, each `FILE_OR_NAME[:scale]`.
        height, width: pixels of a frame; None means the model's own.
        attention: a backend of diffusers for self-attention, for all models of a worker's process; "auto" leaves it.
        compile: whether the network's blocks are compiled; the first call of every worker is then slow.
        profile: named settings of the sampler.
        num_frames: length of videos whose row names none; None means the model's own.
        seed: from which rows without a seed get theirs.
        limit: rows to make, counted from the first; None means all.
        sampler: settings of the sampler over the profile's; judged where the sampler's config is known.
        workers: where the videos are made.
        video: how they are written.
        run: how rows are dealt with.
        logs: where one person watches it.
        quality: which videos are good enough.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: Name = "sprites"
    revision: Name | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    text_dtype: Literal["float32", "bfloat16"] = "float32"
    lora: tuple[Name, ...] = ()
    height: Positive | None = None
    width: Positive | None = None
    attention: Name = "auto"
    compile: bool = False
    profile: Name = "swift"
    num_frames: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=SEED_LIMIT)] = 0
    limit: Positive | None = None
    sampler: dict[str, SamplerValue] = field(default_factory=dict)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    run: RunSection = field(default_factory=RunSection)
    logs: LogsConfig = field(default_factory=LogsConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain values as JSON knows them: sections as dicts, tuples as lists."""
        return asdict(self) | {"lora": list(self.lora)}

    def to_json(self) -> str:
        """Canonical: equal configs give equal text."""
        return canonical_json(self.to_dict())


_ADAPTER: Final = TypeAdapter(RunConfig)

NONE: Final = "none"
_NO_TOML: Final = "it is no TOML"
_CODECS_WITH_PRESETS: Final = ("libx264", "libx264rgb", "libx265")
"""Those that know the default preset."""
_CODECS_WITH_CRF: Final = (*_CODECS_WITH_PRESETS, "libsvtav1", "libaom-av1", "libvpx-vp9", "libvpx")
"""Those that know `crf`, on the scale of the default or a like one."""


def load_config(path: str | Path | None = None) -> RunConfig:
    """The config in a TOML file, or the defaults.

    Raises:
        ConfigError: if it cannot be read or holds an unknown key, a wrong type or a value out of range; all of these
            are named at once.
    """
    if path is None:
        return RunConfig()
    return parse_config(read_toml(path, "config", "or leave --config out"), str(path))


def read_toml(path: str | Path, what: str, otherwise: str) -> dict[str, Any]:
    """The values of a TOML file that a user wrote.

    Args:
        path: of the file.
        what: it is, for messages.
        otherwise: what else can be done than correct the path.

    Raises:
        ConfigError: if it cannot be read, or is no TOML.
    """
    try:
        return parse_toml(read_file(path, MAX_TOML_BYTES))
    except FileNotFoundError as error:
        raise ConfigError(f"{what} {path} cannot be read: it does not exist", f"check the path, {otherwise}") from error
    except OutsideDataError as error:
        text = str(error)
        is_other = text.startswith(_NO_TOML)
        fault = f"is not TOML{text.removeprefix(_NO_TOML)}" if is_other else f"cannot be read: {text}"
        raise ConfigError(
            f"{what} {path} {fault}", "a TOML file has text in quotes and sections in [brackets], and is UTF-8"
        ) from error


def parse_config(values: Mapping[str, Any], origin: str) -> RunConfig:
    """The config that plain values say.

    Args:
        values: as TOML or JSON give them.
        origin: where they come from, for messages.

    Raises:
        ConfigError: as `load_config`.
    """
    try:
        return _ADAPTER.validate_json(json.dumps(_said(values, origin)), strict=True)
    except ValidationError as error:
        faults: dict[str, tuple[str, str]] = {}
        for fault in error.errors(include_url=False):
            names = [str(name) for name in fault["loc"] if not str(name).startswith(_OF_TYPES)]
            if names and names[0] == "sampler":
                names = names[:2]
            faults.setdefault(".".join(names), _explain(names, fault))
        lines = [text for text, _ in faults.values()]
        hints = dict.fromkeys(hint for _, hint in faults.values() if hint)
        raise ConfigError(f"{origin}: " + "; ".join(lines), "; ".join(hints) or "correct that value") from error


def _said(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The values with None for "none" where a key can be None, and with what a codec's name implies.

    Raises:
        ConfigError: if there are dates among them, which no key takes.
    """
    said = _without_none(values, RunConfig)
    video = said.get("video")
    if isinstance(video, dict) and isinstance(video.get("codec"), str):
        said["video"] = _implied_by_codec(video["codec"]) | video
    refuse_dates(said, origin)
    return said


def _implied_by_codec(codec: str) -> dict[str, Any]:
    known = (("preset", _CODECS_WITH_PRESETS), ("crf", _CODECS_WITH_CRF))
    return {key: None for key, codecs in known if codec not in codecs}


def settings_of_codec(codec: str) -> VideoConfig:
    """The settings that a config has which names a codec and nothing else."""
    return VideoConfig(codec=codec, **_implied_by_codec(codec))


def _without_none(values: Mapping[str, Any], section: Any) -> dict[str, Any]:
    kinds = get_type_hints(section)
    said: dict[str, Any] = {}
    for key, value in values.items():
        kind = kinds.get(key)
        if isinstance(value, Mapping) and is_dataclass(kind):
            said[key] = _without_none(value, kind)
        else:
            said[key] = None if value in (NONE, "") and type(None) in get_args(kind) else value
    return said


def refuse_dates(value: Any, origin: str, name: str = "") -> None:
    """Returns if there are no dates and times of TOML among the values.

    Raises:
        ConfigError: naming the first.
    """
    if isinstance(value, dt.date | dt.time):
        raise ConfigError(f"{origin}: {name} is a date or a time ({value.isoformat()})", "text goes in quotes")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_dates(item, origin, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_dates(item, origin, name)


def override(config: RunConfig, **values: Any) -> RunConfig:
    """`config` with what the command line says over it.

    Args:
        config: the file's.
        **values: by field name; None means not said. A section takes a mapping of its own fields.

    Raises:
        ConfigError: as `load_config`.
    """
    merged = config.to_dict()
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), dict):
            merged[name] |= {key: item for key, item in value.items() if item is not None}
        elif value is not None:
            merged[name] = value
    return parse_config(merged, "command line")


_OF_TYPES: Final = ("constrained", "function-", "literal[")
"""What stands in the place of a fault and is no key."""
_WANTED: Final = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text in quotes",
    "string_too_short": "must not be empty",
    "bool_type": "must be true or false",
    "dataclass_type": "must be a [section]",
    "dict_type": "must be a [section]",
}
_RENAMED: Final = {
    "share_windows": 'it is `share` in [workers] now: true is share = "windows", false is share = "nothing"; '
    'share = "candidates" is new',
}
"""Keys of earlier versions, with what to write instead."""
_BOUNDS: Final = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def _explain(names: list[str], fault: Any) -> tuple[str, str]:
    """What is wrong with one key, and what to do about it."""
    key = ".".join(names)
    if fault["type"] == "unexpected_keyword_argument":
        known = _known_keys(names[:-1])
        section = f"[{names[-2]}]" if len(names) > 1 else "the top level"
        alike = difflib.get_close_matches(names[-1], known, 1)
        hint = _RENAMED.get(names[-1]) or _elsewhere(names[-1]) or (f"did you mean {alike[0]!r}?" if alike else "")
        return f"unknown key {key!r}; {section} takes {', '.join(known)}", hint
    if names[:1] == ["sampler"] and len(names) > 1:
        wanted = "must be a number, text, true, false or a list of whole numbers"
        return f"{key} {wanted} (it is {_shown(fault['input'])})", ""
    wanted = _WANTED.get(fault["type"], "")
    context = fault.get("ctx") or {}
    if fault["type"] == "literal_error":
        wanted = f"must be {context['expected']}"
    for name, words in _BOUNDS.items():
        if name in context:
            wanted = f"must be {words} {context[name]}"
    kinds = get_args(_kind_of(names))
    others = [f'"{word}"' for kind in kinds for word in get_args(kind) if isinstance(word, str)]
    hint = f'{names[-1]} = "none" leaves it out' if type(None) in kinds else ""
    wanted = " or ".join([wanted or fault["msg"], *others])
    return f"{key} {wanted} (it is {_shown(fault['input'])})", hint


def _kind_of(names: list[str]) -> Any:
    """The type of a key; None if there is no such key."""
    kind: Any = RunConfig
    for name in names:
        kind = get_type_hints(kind).get(name) if is_dataclass(kind) else None
    return kind


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


def _known_keys(sections: list[str]) -> list[str]:
    section: Any = RunConfig()
    for name in sections:
        section = getattr(section, name)
    return [item.name for item in fields(section)]


def _elsewhere(key: str) -> str:
    """Where a key belongs that stands in the wrong section."""
    config = RunConfig()
    for item in fields(config):
        section = getattr(config, item.name)
        if is_dataclass(section) and key in _known_keys([item.name]):
            return f"{key!r} belongs into [{item.name}]"
    return f"{key!r} belongs to the top, before the first [section]" if key in _known_keys([]) else ""
