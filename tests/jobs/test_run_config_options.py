"""`--config` by path and by name, and `--set KEY=VALUE` over it."""

from __future__ import annotations

import json
import shlex
import shutil
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import build_parser
from jobs.shared.run_config import GRIDS, find_config, parse_settings, read_config, shipped_configs
from jobs.shared.toml import to_toml
from miga.backbones.registry import load_spec
from miga.errors import ConfigError, UsageError
from miga.profiles import resolve_config
from pipeline.config import RunConfig, load_config
from tests.cli import refused, run
from tests.jobs.test_help import parsers

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue ring\n")
    return file


# ---- --config ----


def test_every_config_that_is_shipped_has_its_name() -> None:
    there = {path.stem for path in CONFIGS.glob("*.toml")}
    assert set(shipped_configs()) == there - set(GRIDS)
    for name in shipped_configs():
        assert read_config(name) == load_config(CONFIGS / f"{name}.toml")


def test_a_file_that_is_there_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert Path(find_config("demo")) == CONFIGS / "demo.toml"
    (tmp_path / "demo").rmdir()
    shutil.copy(CONFIGS / "wan.toml", tmp_path / "demo")
    assert find_config("demo") == "demo"
    assert read_config("demo") == load_config(CONFIGS / "wan.toml")


def test_a_name_that_is_none_is_refused_with_those_that_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path
) -> None:
    message = refused(capsys, tmp_path / "out", prompts, tmp_path / "out", "--config", "wann")
    assert "config wann cannot be read" in message
    assert "ablate-run, demo, wan-consistent, wan-distilled, wan-one-window, wan" in message
    (generate,) = [parser for name, parser in parsers(build_parser()) if name == "generate"]
    shown = " ".join(generate.format_help().split()).replace("- ", "-")  # help breaks lines behind hyphens
    assert "ablate-run, demo, wan-consistent, wan-distilled, wan-one-window, wan" in shown


def test_every_command_that_takes_a_config_takes_settings() -> None:
    taking: dict[str, set[str]] = {"--config": set(), "--set": set()}
    for name, parser in parsers(build_parser()):
        for action in parser._actions:
            for option in taking.keys() & set(action.option_strings):
                taking[option].add(name)
    assert taking["--config"] == taking["--set"] == {"generate", "sample", "ablate", "config show", "bench demo"}


# ---- --set ----


def test_every_key_can_be_set() -> None:
    """Each to another value than its default, which then is what the config has."""
    others: dict[str, Any] = {
        "model": "m", "revision": "r", "dtype": "float16", "text_dtype": "bfloat16", "lora": ["a", "b:0.5"],
        "height": 64, "width": 32, "attention": "flash", "compile": True, "profile": "fifo", "num_frames": 9,
        "seed": 2**64 - 1, "limit": 3, "workers.num_actors": 4, "workers.max_actors": 5, "workers.max_videos": 6,
        "workers.share": "nothing", "workers.uploads_ahead": 0, "workers.cpus_per_actor": 0.5,
        "workers.gpus_per_actor": 0.25, "workers.videos_per_actor": 3, "workers.text_gpus": 0.1, "workers.lookahead": 9,
        "workers.silent_after_s": 1.5, "workers.stalled_after_s": 2.5, "video.codec": "libx265", "video.crf": 30,
        "video.preset": "slow", "video.pixel_format": "yuv444p", "run.prompts_per_shard": 7,
        "run.max_failed_share": 0.75, "run.min_finished_rows": 8, "run.max_attempts": 9,
        "run.checkpoint_every_s": 3.5, "run.keep_latents": True, "run.lease_ttl_s": 45.0,
        "run.single_coordinator": True, "run.stop_grace_s": 4.5, "logs.tracker": "wandb", "logs.folder": "logs",
        "logs.project": "mine", "logs.first_videos": 0, "logs.every_videos": 5, "logs.every_s": 6.5,
        "quality.least": {"motion": 0.5}, "quality.most": {"searches": 3.0, "gpu_s": 9.5}, "quality.retries": 2,
    }  # fmt: skip
    keys = set()
    for field in fields(RunConfig):
        value = getattr(RunConfig(), field.name)
        keys |= {f"{field.name}.{inner.name}" for inner in fields(value)} if is_dataclass(value) else {field.name}
    assert others.keys() == keys - {"sampler"}
    for key, other in others.items():
        said = json.dumps(other).replace(": ", " = ") if isinstance(other, dict) else json.dumps(other)
        config = read_config(None, [f"{key}={said}"])
        found: Any = config
        for name in key.split("."):
            found = getattr(found, name)
        assert found == (tuple(other) if isinstance(other, list) else other)
        back, defaults = config.to_dict(), RunConfig().to_dict()  # no other key has changed
        section, _, name = key.rpartition(".")
        if section:
            back[section][name] = defaults[section][name]
        else:
            back[name] = defaults[name]
        assert back == defaults


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["sampler.num_steps=20"], {"sampler": {"num_steps": 20}}),
        (["sampler.num_steps=20", "sampler.eta = 0.5"], {"sampler": {"num_steps": 20, "eta": 0.5}}),
        (["seed=1", "seed=2"], {"seed": 2}),
        (["profile=fifo"], {"profile": "fifo"}),
        (["model=Wan-AI/Wan2.1-T2V-1.3B-Diffusers"], {"model": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"}),
        (["model='my model'"], {"model": "my model"}),
        (["model=my model=3"], {"model": "my model=3"}),
        (["lora=['a', 'b']"], {"lora": ["a", "b"]}),
        (["sampler={num_steps=4, timesteps=[1000, 750, 500, 250]}"],
         {"sampler": {"num_steps": 4, "timesteps": [1000, 750, 500, 250]}}),
        (["video.preset=none"], {"video": {"preset": "none"}}),
        (["video.preset="], {"video": {"preset": ""}}),
        (["seed=0x10"], {"seed": 16}),
        (["compile=true"], {"compile": True}),
    ],
)  # fmt: skip
def test_values_are_toml_and_plain_text(texts: list[str], said: dict[str, Any]) -> None:
    assert parse_settings(texts) == said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("seed", "not KEY=VALUE"),
        ("=3", "not KEY=VALUE"),
        ("a b=3", "not KEY=VALUE"),
        ("sampler.=3", "not KEY=VALUE"),
        ("lora=[1", "no TOML"),
        ("lora='a", "no TOML"),
        ("seed=1\nlimit=2", "more than one value"),
        ("seed=99999999999999999999999", "more than 64 bits"),
        ("profile=a\x1bb", "no TOML"),
    ],
)
def test_texts_of_another_form_are_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse_settings([text])


@pytest.mark.parametrize(
    ("toml", "setting"),
    [
        ("num_frames = 54.7", "num_frames=54.7"),
        ("seed = true", "seed=true"),
        ("profil = 'paper'", "profil=paper"),
        ("[workers]\nnum_actor = 3", "workers.num_actor=3"),
        ("[workers]\nseed = 3", "workers.seed=3"),
        ("[sampler]\nnum_candidates = {a = 1}", "sampler.num_candidates={a = 1}"),
        ("workers = 3", "workers=3"),
        ("[run]\nlease_ttl_s = inf", "run.lease_ttl_s=inf"),
        ("seed = 2024-01-01", "seed=2024-01-01"),
    ],
)
def test_its_errors_are_those_of_a_file(tmp_path: Path, toml: str, setting: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as of_file:
        read_config(str(file))
    with pytest.raises(ConfigError) as of_setting:
        read_config(None, [setting])
    assert of_setting.value.message == of_file.value.message.replace(str(file), "--set")
    assert of_setting.value.hint == of_file.value.hint


def test_of_file_settings_and_options_the_later_wins() -> None:
    config = read_config("wan", ["num_frames=81", "video.crf=25", "seed=3"], limit=5, workers={"num_actors": None})
    assert (config.num_frames, config.video.crf, config.video.preset, config.seed, config.limit) == (
        81,
        25,
        "medium",
        3,
        5,
    )
    assert config.model == load_config(CONFIGS / "wan.toml").model


def test_a_codec_implies_what_it_does_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[video]\ncodec = 'mpeg4'")
    assert read_config(None, ["video.codec=mpeg4"]) == load_config(file)
    assert load_config(file).video.crf is None


def test_a_key_that_is_said_twice_is_refused() -> None:
    with pytest.raises(UsageError, match=r"seed is said twice: by --set and by --seed"):
        read_config(None, ["seed=3"], seed=3)
    with pytest.raises(UsageError, match=r"workers.num_actors is said twice: by --set and by --num-actors"):
        read_config(None, ["workers.num_actors=3"], workers={"num_actors": 3})


def test_a_faulty_file_is_named_before_settings(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("seeed = 3")
    with pytest.raises(ConfigError, match=str(file)):
        read_config(str(file), ["num_frames=x"])


def test_settings_reach_the_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    from miga.cost import count_calls

    status, out, message = run(
        capsys, "generate", prompts, tmp_path / "out", "--set", f"model={tiny_model}", "--set", "num_frames=61",
        "--set", "sampler.num_steps=6", "--dry-run", "--json",
    )  # fmt: skip
    assert status == 0, message
    config = resolve_config("swift", load_spec(str(tiny_model)), {"num_steps": 6})
    assert json.loads(out)["network_calls"] == 2 * count_calls(config, 16).total


# ---- miga config ----


def test_config_show_is_a_config_that_comes_to_the_same(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path
) -> None:
    said = ("--set", "sampler.num_candidates=2", "--profile", "paper", "--model", tiny_model)
    status, text, message = run(capsys, "config", "show", *said)
    assert status == 0, message
    file = tmp_path / "shown.toml"
    file.write_text(text)
    config, spec = load_config(file), load_spec(str(tiny_model))
    expected = resolve_config("paper", spec, {"num_candidates": 2})
    assert resolve_config(config.profile, spec, config.sampler) == expected
    assert config.num_frames == spec.default_num_frames
    assert tomllib.loads(text)["sampler"]["num_candidates"] == 2
    status, as_json, _ = run(capsys, "config", "show", *said, "--json")
    assert json.loads(as_json)["sampler"] == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in expected.to_dict().items()
        if name != "profile"
    }


def test_config_list_names_files_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    status, text, _ = run(capsys, "config", "list")
    assert status == 0
    assert {line.split()[0]: Path(line.split()[1]) for line in text.splitlines()} == shipped_configs()
    assert json.loads(run(capsys, "config", "list", "--json")[1]) == {k: str(v) for k, v in shipped_configs().items()}


def test_values_are_written_as_toml_reads_them() -> None:
    values = {
        "text": 'a "b" \\ é 🐈 \x7f \u2028', "whole": -3, "number": 1e-9, "yes": True, "list": [1, 2], "texts": ["a"],
        "section": {"empty": "", "none": None},
    }  # fmt: skip
    assert tomllib.loads(to_toml(values)) == values | {"section": {"empty": "", "none": "none"}}


# ---- a prompt where a file belongs ----


@pytest.mark.parametrize("command", ["generate", "ablate"])
@pytest.mark.parametrize(
    ("prompt", "out", "meant"),
    [
        ("a cat", "out", "miga sample 'a cat' out.mp4;"),
        ("a cat", "cat.mp4", "miga sample 'a cat' cat.mp4;"),
        ("cat", "s3://bucket/x", "miga sample cat out.mp4;"),
        ("it's 1/2 of a.cat", "my out/", "miga sample 'it'\"'\"'s 1/2 of a.cat' out.mp4;"),
    ],
)
def test_a_prompt_for_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, prompt: str, out: str, meant: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, _, message = run(capsys, command, prompt, out)
    assert status == 2
    assert "if it is a prompt" in message
    assert meant in message
    assert "miga generate prompts.txt" in message
    assert not list(tmp_path.iterdir())
    suggested = message.partition("one video of one prompt: miga ")[2].partition("; a dataset")[0]
    options = build_parser().parse_args(shlex.split(suggested))
    assert options.prompt == prompt
    assert options.out.endswith(".mp4")


def test_a_file_that_is_missing_is_no_prompt(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, message = run(capsys, "generate", "nowhere.txt", tmp_path / "out")
    assert status == 2
    assert "nowhere.txt does not exist" in message
    assert "miga sample" not in message
