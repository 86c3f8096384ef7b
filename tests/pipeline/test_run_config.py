from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from miga.errors import ConfigError
from pipeline.config import RunConfig, RunSection, VideoConfig, WorkersConfig, load_config, override, parse_config

FULL = """
model = "some/model"
revision = "main"
profile = "fifo"
num_frames = 161
seed = 18446744073709551615
limit = 10
[sampler]
num_candidates = 2
reflection_threshold = 0.5
self_reflection = false
[workers]
num_actors = 8
cpus_per_actor = 2
gpus_per_actor = 0.5
share = "candidates"
[video]
codec = "libx265"
crf = 20
preset = "slow"
pixel_format = "yuv444p"
[run]
prompts_per_shard = 10
max_failed_share = 1
max_attempts = 5
"""


def load(tmp_path: Path, text: str | bytes) -> RunConfig:
    path = tmp_path / "run.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def test_no_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load_config() == load(tmp_path, "") == RunConfig()
    assert (RunConfig().model, RunConfig().profile) == ("sprites", "swift")


def test_every_key(tmp_path: Path) -> None:
    config = load(tmp_path, b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert config.seed == 2**64 - 1
    assert config.sampler == {"num_candidates": 2, "reflection_threshold": 0.5, "self_reflection": False}
    assert type(config.sampler["num_candidates"]) is int
    assert config.workers.num_actors == 8
    assert (config.workers.share, RunConfig().workers.share) == ("candidates", "windows")
    assert config.video.codec == "libx265"
    assert config.run.max_failed_share == 1
    assert parse_config(config.to_dict(), "again") == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("seed = 54.7", ["seed must be a whole number (it is 54.7)"]),
        ("seed = 54.0", ["seed must be a whole number"]),
        ('seed = "3"', ['seed must be a whole number (it is "3")']),
        ("seed = true", ["seed must be a whole number (it is true)"]),
        ("seed = -1", ["seed must be at least 0"]),
        ("seed = 18446744073709551616", ["seed is a whole number of more than 64 bits"]),
        ("limit = 0", ["limit must be at least 1 (it is 0)"]),
        ("num_frames = 0", ["num_frames must be at least 1"]),
        ("model = 3", ["model must be text in quotes"]),
        ('model = ""', ["model must not be empty"]),
        ("sede = 3", ["unknown key 'sede'", "did you mean 'seed'?"]),
        ("[worker]\nnum_actors = 2", ["unknown key 'worker'", "did you mean 'workers'?"]),
        ("[workers]\nactors = 2", ["unknown key 'workers.actors'; [workers] takes num_actors"]),
        ("num_actors = 2", ["'num_actors' belongs into [workers]"]),
        ("[video]\nseed = 2", ["'seed' belongs to the top"]),
        ("workers = 3", ["workers must be a [section]"]),
        ("[workers]\nnum_actors = 2.5", ["workers.num_actors must be a whole number (it is 2.5)"]),
        ("[workers]\ncpus_per_actor = 0", ["workers.cpus_per_actor must be more than 0"]),
        (
            '[workers]\nshare = "window"',
            ["workers.share must be 'windows', 'candidates' or 'nothing' (it is \"window\")"],
        ),
        ("[workers]\nshare = true", ["workers.share must be 'windows', 'candidates' or 'nothing' (it is true)"]),
        ('[workers]\nshares = "windows"', ["unknown key 'workers.shares'", "did you mean 'share'?"]),
        (
            "[workers]\nshare_windows = true",
            ["unknown key 'workers.share_windows'", "`share` in [workers]", 'true is share = "windows"'],
        ),
        (
            "share_windows = false",
            ["unknown key 'share_windows'", "`share` in [workers]", 'false is share = "nothing"'],
        ),
        ('dtype = "fp16"', ["dtype must be 'auto', 'float32', 'bfloat16' or 'float16' (it is \"fp16\")"]),
        ("[video]\ncrf = 99", ["video.crf must be at most 63"]),
        ("[run]\nmax_failed_share = 1.5", ["run.max_failed_share must be at most 1"]),
        ("[run]\nmax_failed_share = nan", ["run.max_failed_share must be a finite number"]),
        ("[sampler]\na = [1.5]", ["sampler.a must be a number, text, true, false or a list of whole numbers"]),
        ("[sampler.deep]\na = 1", ["sampler.deep must be a number, text"]),
        ("sampler = 3", ["sampler must be a [section]"]),
        ("seed = 1.5\nlimit = 0\nmodle = 'x'", ["seed must be", "limit must be", "did you mean 'model'?"]),
        ("seed = \n", ["is not TOML", "line 1"]),
        ("seed = 1\nseed = 2", ["is not TOML"]),
        (b"model = '\xff'", ["not UTF-8"]),
        ("seed = 1".encode("utf-16"), ["it is UTF-16, not UTF-8"]),
        ("seed = " + "9" * 5000, ["it holds a value that cannot be read"]),
        ("seed = 1e999", ["seed must be a"]),
        ("[sampler]\nflow_shift = nan", ["sampler.flow_shift must be a number"]),
        ("lora = " + "[" * 3000, ["nested deeper"]),
        ("lora = " + "[" * 70 + "]" * 70, ["nested deeper than 64 levels"]),
        ("a." * 3000 + "b = 1", ["nested deeper than 64 levels"]),
        ("video.codec.name = 'x'", ["video.codec must be text in quotes"]),
        ("model = 2026-11-21", ["model is a date or a time (2026-11-21)"]),
        ("[sampler]\na = [2026-11-21T00:00:00Z]", ["sampler.a is a date or a time"]),
        ("[video]\npreset = false", ["video.preset must be text in quotes", 'preset = "none" leaves it out']),
        ("[video]\ncrf = 'auto'", ["video.crf must be a whole number", 'crf = "none" leaves it out']),
        ("[video]\ncodec = 'none'\n[run]\nmax_attempts = 'none'", ["run.max_attempts must be a whole number"]),
        ("x" * (1 << 20) + " = 1", ["at most 1,048,576 are read"]),
    ],
)
def test_faults_are_named_with_file_key_and_what_is_allowed(
    tmp_path: Path, text: str | bytes, messages: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for message in [*messages, "run.toml"]:
        assert message in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read: it is a folder"):
        load_config(tmp_path)


def test_command_line_wins_where_it_says_something() -> None:
    config = parse_config({"seed": 3, "profile": "fifo", "workers": {"num_actors": 2}}, "x")
    changed = override(config, seed=4, profile=None, limit=1, workers={"num_actors": None, "lookahead": 0})
    assert (changed.seed, changed.profile, changed.limit) == (4, "fifo", 1)
    assert (changed.workers.num_actors, changed.workers.lookahead) == (2, 0)
    with pytest.raises(ConfigError, match="command line: limit must be at least 1"):
        override(config, limit=0)
    with pytest.raises(ConfigError, match="seed"):
        override(config, seed=2**64)


def test_json_is_canonical() -> None:
    assert override(RunConfig(), seed=0).to_json() == RunConfig().to_json()
    assert RunConfig().to_json().startswith('{"attention":"auto","compile":false,"dtype":"auto"')


NONE_EVERYWHERE = """
revision = "none"
height = "none"
width = "none"
num_frames = "none"
limit = "none"
[workers]
num_actors = "none"
max_actors = "none"
max_videos = "none"
gpus_per_actor = "none"
[video]
crf = "none"
preset = "none"
"""


def test_none_can_be_said_of_every_key_that_may_be_none(tmp_path: Path) -> None:
    config = load(tmp_path, NONE_EVERYWHERE)
    assert load(tmp_path, NONE_EVERYWHERE.replace("none", "")) == config
    kinds = {(section, item.name): item.type for section in (RunConfig, WorkersConfig, VideoConfig, RunSection)
             for item in dataclasses.fields(section)}  # fmt: skip
    may_be_none = {name for (_, name), kind in kinds.items() if "None" in str(kind)}
    assert may_be_none == {line.split(" = ")[0] for line in NONE_EVERYWHERE.splitlines() if " = " in line}
    said = {**config.to_dict(), **config.to_dict()["workers"], **config.to_dict()["video"]}
    assert {name: said[name] for name in may_be_none} == dict.fromkeys(may_be_none)


@pytest.mark.parametrize(
    ("video", "crf", "preset"),
    [
        ("", 17, "veryfast"),
        ("codec = 'libx264'", 17, "veryfast"),
        ("codec = 'libx265'", 17, "veryfast"),
        ("codec = 'libsvtav1'", 17, None),
        ("codec = 'libsvtav1'\npreset = '8'", 17, "8"),
        ("codec = 'libaom-av1'", 17, None),
        ("codec = 'libvpx-vp9'\ncrf = 30", 30, None),
        ("codec = 'h264_nvenc'", None, None),
        ("codec = 'h264_nvenc'\npreset = 'p4'", None, "p4"),
        ("codec = 'mpeg4'", None, None),
        ("codec = 'libx264'\npreset = 'none'\ncrf = 'none'", None, None),
    ],
)
def test_what_a_codec_s_name_implies(tmp_path: Path, video: str, crf: int | None, preset: str | None) -> None:
    config = load(tmp_path, f"[video]\n{video}")
    assert (config.video.crf, config.video.preset) == (crf, preset)
    assert parse_config(config.to_dict(), "run.json") == config


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "gone.toml").symlink_to(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="is a link to"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        load_config("/dev/zero")
