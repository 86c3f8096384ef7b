"""A method from outside: the page's example, registered as a package would, goes all the ways that ours go."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.cli import main
from miga.backbones.registry import load_spec
from miga.checkpoint import load_state, save_state
from miga.cost import count_calls
from miga.errors import CheckpointError, ConfigError
from miga.generate import Sampler
from miga.methods import GROUP, methods
from miga.noise import NamedNoise
from miga.plan import plan_video
from miga.profiles import field_names, profiles, resolve_config
from miga.prompts import PromptTrack
from miga.virtual_time import make_virtual_video, useful_slots
from tests import ten_line_method
from tests.installed import code_on, install, searched_folder
from tests.miga.closed_form import SHAPE, SHIFT, MixingDenoiser, in_order, make_sampler

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "add-a-method.md"
WINDOW, STEPS = 6, 5


@pytest.fixture(scope="module")
def example() -> str:
    """The code on the page."""
    return code_on(PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python searches."""
    with searched_folder(tmp_path, monkeypatch, methods.cache_clear) as site:
        yield site


@pytest.fixture
def package(folder: Path, example: str) -> Any:
    """The page's method, installed."""
    install(folder, GROUP, "page_method", example, "METHOD")
    return importlib.import_module("page_method")


def make_config(**settings: Any) -> Any:
    small = {"profile": "plain", "method": "plain", "num_steps": STEPS, "window": WINDOW, "guidance_scale": 3.0,
             "guidance_low_level": 2, "guidance_high_level": 4, "solver": "unipc", "eta": 0.0, "flow_shift": SHIFT,
             "timesteps": (), "windows_per_batch": 1, "num_kept": 2}  # fmt: skip
    return methods()["plain"].settings(**{**small, **settings})


def new_sampler(config: Any, num_latents: int | None, **more: Any) -> Sampler:
    return make_sampler(MixingDenoiser(config), config, num_latents, prompts=PromptTrack([0.5, -1.0], 3), **more)


def whole(sampler: Sampler) -> torch.Tensor:
    return torch.cat([finished for _, finished in sampler.run() if finished is not None])


def test_the_page_quotes_the_example_whole(example: str) -> None:
    assert example == Path(ten_line_method.__file__).read_text()


def test_nothing_but_its_folder_names_a_method() -> None:
    """Only `checkpoint.py` does, of files of version 1, which made one method's videos otherwise."""
    naming = re.compile(r"\.method (?:==|!=|in) |\[.method.\] (?:==|!=|in) ")
    files = [file for package in ("miga", "pipeline", "actors", "jobs") for file in (ROOT / package).rglob("*.py")]
    found = [file.relative_to(ROOT) for file in files if naming.search(file.read_text())]
    assert [file for file in found if file.parts[:2] != ("miga", "methods")] == [Path("miga/checkpoint.py")]


@pytest.mark.usefixtures("package")
def test_it_stands_in_the_table() -> None:
    assert "plain" in methods()
    assert profiles()["plain"].settings == {"method": "plain"}
    assert "num_kept" in field_names()


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("num_latents", [1, 5, 6, 7, 10, 23])
def test_videos_are_those_written_out(num_latents: int) -> None:
    """Window by window, in plain code."""
    config = make_config()
    sampler = new_sampler(config, num_latents)
    found = whole(sampler)
    denoiser, noise, prompts = MixingDenoiser(config), NamedNoise(0, SHAPE), PromptTrack([0.5, -1.0], 3)
    video = torch.zeros(0, *SHAPE)
    while len(video) < num_latents:
        context, first = video[len(video) - 2 :] if len(video) else video, len(video)
        count = WINDOW - len(context)
        x = noise("push", range(first, first + count))
        level_F, history = torch.full((count,), STEPS), sampler.stepper.solver.fresh_history(x)
        for _ in range(STEPS):
            levels = torch.cat([torch.zeros(len(context), dtype=torch.int64), level_F])
            clean = denoiser(torch.cat([context, x])[None], levels[None], [prompts.at(first)])[0, len(context) :]
            x, history = sampler.stepper.solver.step(x, level_F, clean, history, None)
            level_F = level_F - 1
        video = torch.cat([video, x])
    assert torch.equal(found, video[:num_latents])


@pytest.mark.usefixtures("package")
def test_stopped_at_any_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miga.checkpoint.os.fsync", lambda _: None)
    config, file = make_config(), tmp_path / "state"
    straight = list(new_sampler(config, 9).run())
    state = new_sampler(config, 9).start()
    for expected_state, expected in straight:
        save_state(state, file, config=config, num_latents=9, seed=0)
        state = load_state(file, config=config, num_latents=9, seed=0)
        state, finished = new_sampler(config, 9).advance(state)
        assert (finished is None) == (expected is None)
        assert finished is None or torch.equal(finished, expected)
        assert state.num_finished == expected_state.num_finished
    with pytest.raises(CheckpointError, match=r"sampler\.num_kept 2 there, 3 here"):
        load_state(file, config=make_config(num_kept=3), num_latents=9, seed=0)


@pytest.mark.usefixtures("package")
def test_a_longer_video_goes_on_from_an_open_state() -> None:
    config = make_config()
    short, long = new_sampler(config, 9), new_sampler(config, 17)
    expected = whole(new_sampler(config, 17))
    state, parts, num_open = short.start(), [torch.zeros(0, *SHAPE)], 0
    while not short.is_done(state):
        if short.is_open(state):
            num_open += 1
            rest = [finished for _, finished in long.run(state) if finished is not None]
            assert torch.equal(torch.cat([*parts, *rest]), expected)
        state, finished = short.advance(state)
        parts += [] if finished is None else [finished]
    assert num_open == 2 * STEPS
    assert not short.is_open(state), "of its last window a longer video has more"


@pytest.mark.usefixtures("package")
def test_its_calls_are_counted() -> None:
    """Nothing of the method is said again for it; every video takes `T` calls a window, three of them guided."""
    config = make_config()
    for num_latents in (1, 6, 7, 10, 11, 23, 1003):
        num_windows = 1 + math.ceil(max(0, num_latents - WINDOW) / (WINDOW - 2))
        counted = count_calls(config, num_latents)
        assert (counted.total, counted.num_guided, counted.per_search) == (STEPS * num_windows, 3 * num_windows, 0)
        if num_latents < 100:
            sampler = new_sampler(config, num_latents)
            whole(sampler)
            assert sampler.num_calls == counted.total
    assert count_calls(config, 2**31).total == STEPS * (1 + math.ceil((2**31 - WINDOW) / 4))


@pytest.mark.usefixtures("package")
def test_its_plan_can_be_seen() -> None:
    passes = [planned for advance in plan_video(make_config(), 7) for planned in advance.passes]
    assert [planned.levels for planned in passes[:2]] == [(5,) * 6, (4,) * 6]
    assert {planned.first for planned in passes[5:]} == {4}
    assert [planned.levels for planned in passes[5:7]] == [(0, 0, 5, 5, 5, 5), (0, 0, 4, 4, 4, 4)]
    assert [advance.finished for advance in plan_video(make_config(), 7) if advance.finished] == [range(6), range(6, 7)]


@pytest.mark.usefixtures("package")
def test_windows_in_any_order_and_in_virtual_time() -> None:
    config = make_config(guidance_scale=1.0)
    reversed_order = in_order(MixingDenoiser(config), lambda count: range(count)[::-1])
    assert torch.equal(whole(new_sampler(config, 11, run_windows=reversed_order)), whole(new_sampler(config, 11)))
    video = make_virtual_video(config, 11, 3, forward_s=1.0)
    assert (video.num_calls, video.seconds) == (15, 15.0), "each call waits for the one before"
    assert useful_slots(config, 8, "windows") == 1


@pytest.mark.usefixtures("package")
def test_settings_as_good_as_ours() -> None:
    spec = load_spec("simulated:wan")
    config = resolve_config("plain", spec)
    assert (config.num_steps, config.guidance_scale, config.solver) == (54, 5.0, "unipc"), "what is published for Wan"
    with pytest.raises(ConfigError, match=r"sampler\.num_kept = 11 is out of range \(profile 'plain'\)"):
        resolve_config("plain", spec, {"num_kept": 11})
    with pytest.raises(ConfigError, match="wrong type"):
        resolve_config("plain", spec, {"num_kept": "2"})
    with pytest.raises(ConfigError, match=r"sampler\.zigzag_width does nothing in profile 'plain'"):
        resolve_config("plain", spec, {"zigzag_width": 3})
    with pytest.raises(ConfigError, match=r"sampler\.num_kept does nothing in profile 'paper'"):
        resolve_config("paper", spec, {"num_kept": 3})
    with pytest.raises(ConfigError) as caught:
        resolve_config("plian", spec)
    assert caught.value.hint.startswith("did you mean 'plain'?")


@pytest.mark.usefixtures("package")
def test_the_commands_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    run = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", "simulated:wan"]
    assert main([*run, "--profile", "plain", "--num-frames", "161", "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["profile"], shown["videos"]) == ("plain", 1)
    assert main(["profiles", "--model", "simulated:wan"]) == 0
    table = capsys.readouterr().out
    assert "plain: plain windows" in table
    assert [line.split()[-1] for line in table.splitlines() if line.startswith("num_kept")] == ["2"]
    plan = ["plan", "--model", "simulated:wan", "--profile", "plain", "--num-frames", "161"]
    assert main([*plan, "--out", str(tmp_path / "plan.svg")]) == 0
    assert "plain: 41 latents, 162 calls" in capsys.readouterr().out
    assert 'data-profile="plain"' in (tmp_path / "plan.svg").read_text()


BROKEN: list[tuple[str, str]] = [
    ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("", "AttributeError"),
    ("METHOD = 3\n", "it is a int, not a miga.methods.base.Method"),
    (
        "from dataclasses import replace\nfrom miga.methods import fifo\nMETHOD = replace(fifo.METHOD, profiles={})\n",
        "there is a method 'fifo' already",
    ),
    (
        "from dataclasses import replace\nfrom miga.methods import fifo\nMETHOD = replace(fifo.METHOD, name='mine')\n",
        "there is a profile 'fifo' already",
    ),
    (
        "from dataclasses import replace\nfrom miga.methods import fifo\n"
        "METHOD = replace(fifo.METHOD, name='mine', profiles={}, settings=dict)\n",
        "its settings are no dataclass",
    ),
]


@pytest.mark.parametrize(("code", "why"), BROKEN)
def test_a_broken_one_is_refused(code: str, why: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(folder, GROUP, "page_broken", code, "METHOD")
    with pytest.raises(ConfigError, match="the method 'page_broken' of package 'page_broken'") as caught:
        profiles()
    assert why in caught.value.message
    assert caught.value.hint == "mend that package, or uninstall it"
    assert main(["profiles", "--model", "simulated:wan"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow  # all that leads there is tested above
@pytest.mark.ray
def test_a_run_from_end_to_end(folder: Path, tmp_path: Path, example: str) -> None:
    """In processes of their own: of two workers one makes the video, and the other its guided calls' second forward."""
    install(folder, GROUP, "page_method", example, "METHOD")
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    (tmp_path / "run.toml").write_text('[workers]\nshare = "windows"\n')
    command = [sys.executable, "-m", "jobs.cli", "generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out")]
    model = "simulated:wan?call_s=0.02&decode_s=0&load_s=0"
    options = ["--config", str(tmp_path / "run.toml"), "--model", model, "--profile", "plain", "--num-actors", "2"]
    done = subprocess.run(
        [*command, *options, "--num-frames", "161", "--quiet", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (shard,) = (tmp_path / "out" / "manifest").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert [(row["status"], row["profile"]) for row in rows] == [("ok", "plain")]
    assert json.loads(rows[0]["config"])["num_kept"] == 2
    num_windows = 1 + math.ceil((41 - 21) / 19)
    assert rows[0]["network_calls"] == 54 * num_windows
    assert rows[0]["helper_calls"] > 0
