"""One's own model: the page's example is a backbone, makes what it must, and what is no backbone is refused."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from jobs.cli import main
from miga import LongVideoPipeline
from miga.backbones.base import Backbone, Denoiser, FrameDecoder
from miga.backbones.own import is_import_path
from miga.backbones.registry import load_backbone, load_spec
from miga.cost import count_calls
from miga.errors import ConfigError, ModelError
from miga.profiles import resolve_config
from tests import ten_line_backbone
from tests.miga.closed_form import PROFILES

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "bring-your-own-model.md"
COLOURS = {"red": (0.4, -0.4, -0.4), "sea green": (-0.3, 0.4, 0.2)}
GUIDANCE = 2.0
"""Guided twofold away from black, the mean of the latents is twice the colour, whatever their spread."""


@pytest.fixture(scope="module")
def example() -> str:
    """The code on the page."""
    _, _, rest = PAGE.read_text().partition("```python\n")
    return rest.partition("```\n")[0]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: str) -> ModuleType:
    """The page's code as a module of a folder that Python searches."""
    (tmp_path / "page_model.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("page_model", None)
    return importlib.import_module("page_model")


def test_the_page_quotes_the_example_whole(example: str) -> None:
    assert example == Path(ten_line_backbone.__file__).read_text()


@pytest.mark.parametrize(
    ("protocol", "implementation"),
    [(Backbone, "TenLineBackbone"), (Denoiser, "TenLineDenoiser"), (FrameDecoder, "TenLineBackbone")],
)
def test_same_parameters_as_the_protocol(own: ModuleType, protocol: Any, implementation: str) -> None:
    for name in [name for name in vars(protocol) if name == "__call__" or not name.startswith("_")]:
        kinds = (protocol, getattr(own, implementation))
        wanted, given = (inspect.signature(getattr(kind, name)).parameters for kind in kinds)
        assert list(wanted) == list(given)


def test_the_page_names_every_method() -> None:
    text = PAGE.read_text()
    for name in [name for name in vars(Backbone) if not name.startswith("_")]:
        assert f"`{name}(" in text


@pytest.mark.parametrize("profile", ["paper", "fifo", "no-reflection", "scalingnoise", "stage-2-only"])
@pytest.mark.usefixtures("own")
@pytest.mark.slow
def test_videos_are_of_the_colour(profile: str) -> None:
    pipeline = LongVideoPipeline.from_pretrained("page_model:load", device="cpu", profile=profile)
    video = pipeline("sea green", num_frames=20, seed=1)
    assert (video.frames.shape, video.fps) == ((20, 32, 48, 3), 8)
    mean = video.pixels.mean(axis=(0, 1, 2)) / 127.5 - 1
    assert np.abs(mean - GUIDANCE * np.array(COLOURS["sea green"])).max() < 0.06
    count = count_calls(pipeline.config, 20)
    assert video.num_calls == count.total + count.per_search * sum(video.trace.searched)


@pytest.mark.usefixtures("own")
def test_swift_guides_stage_1_alone() -> None:
    """So the colour comes out between that without guidance and that under it."""
    pipeline = LongVideoPipeline.from_pretrained("page_model:load", device="cpu")
    video = pipeline(prompts_in_turn=["red", "sea green"], num_frames=24)
    for frames, prompt in ((video.pixels[:10], "red"), (video.pixels[-10:], "sea green")):
        mean = frames.mean(axis=(0, 1, 2)) / 127.5 - 1
        assert (mean / COLOURS[prompt] > 0.9).all()
        assert (mean / COLOURS[prompt] < GUIDANCE).all()


@pytest.mark.usefixtures("own")
def test_settings_in_proportion_to_the_window() -> None:
    """Of a family that nothing was published for; its own settings and the user's win."""
    spec = load_spec("page_model:load")
    assert (spec.name, spec.revision, spec.family) == ("page_model:load", "1", "ten-line")
    for profile in set(PROFILES) - {"released"}:
        config = resolve_config(profile, spec)
        assert (config.num_steps, config.window, config.guidance_scale) == (20, 6, 2.0)
        assert config.solver == "euler"
    assert resolve_config("paper", spec).zigzag_width == 2
    assert resolve_config("paper", spec, {"num_steps": 27, "solver": "ddim", "eta": 1.0}).handoff_level == 5
    with pytest.raises(ConfigError, match="released_branch"):
        resolve_config("released", spec)


@pytest.mark.usefixtures("own")
def test_the_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("red\nmauve\n")
    run = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", "page_model:load"]
    assert main([*run, "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["model"], shown["videos"], shown["bad_rows"]) == ("page_model:load", 1, 1)
    assert main(["profiles", "--model", "page_model:load"]) == 0
    assert "model page_model:load" in capsys.readouterr().out
    assert main([*run, "--height", "64", "--dry-run"]) == 2
    assert "nothing is known of the parts of 'page_model:load'" in capsys.readouterr().err
    assert main([*run, "--revision", "v1", "--dry-run"]) == 2
    assert "which is imported, not downloaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_from_end_to_end(tmp_path: Path, example: str) -> None:
    """In processes of their own, which find the module as the driver does."""
    import imageio_ffmpeg
    import pyarrow.parquet as pq

    (tmp_path / "page_model.py").write_text(example)
    (tmp_path / "prompts.txt").write_text("red\nmauve\nsea green\n")
    command = [sys.executable, "-m", "jobs.cli", "generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--model", "page_model:load", "--profile", "paper", "--num-actors", "1", "--quiet", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    (shard,) = (tmp_path / "out" / "manifest").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed", "ok"]
    assert "no colour that is known" in rows[1]["error"]
    frames = imageio_ffmpeg.read_frames(str(sorted((tmp_path / "out" / "video").rglob("*.mp4"))[0]))
    next(frames)
    mean = np.mean([np.frombuffer(frame, np.uint8).reshape(-1, 3).mean(axis=0) for frame in frames], axis=0)
    closest = min(COLOURS, key=lambda name: np.abs(mean / 127.5 - 1 - GUIDANCE * np.array(COLOURS[name])).max())
    assert np.abs(mean / 127.5 - 1 - GUIDANCE * np.array(COLOURS[closest])).max() < 0.1


def test_what_is_an_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_import_path("a.b:load")
    assert is_import_path("model:Kind.from_disk")
    for name in ("sprites", "owner/name", "C:/models/wan", "a.b", "a b:c", ":load", "a:", "1a:b", "a:b:c", "./a:b"):
        assert not is_import_path(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model:load").mkdir()
    assert not is_import_path("model:load"), "a folder of that name is meant"


MODULE = """
import torch
from miga.backbones.base import BackboneSpec
from tests.ten_line_backbone import TenLineBackbone
number = 3
class Half:
    spec, device = TenLineBackbone.spec, torch.device("cpu")
def load(**_): return TenLineBackbone(torch.device("cpu"))
def none(**_): return None
def half(**_): return Half()
def positional(components): return None
def failing(**_): raise RuntimeError("weights are on the other machine\\nsecond line")
def spoilt(**_):
    from dataclasses import replace
    backbone = TenLineBackbone(torch.device("cpu"))
    backbone.spec = replace(backbone.spec, window=0)
    return backbone
def changed(**changes):
    from dataclasses import replace
    backbone = TenLineBackbone(torch.device("cpu"))
    backbone.spec = replace(backbone.spec, **changes)
    return backbone
def nameless(**_): return changed(revision="")
def numbered(**_): return changed(revision=7)
def unsettled(**_): return changed(sampler=None)
def infinite(**_): return changed(forward_flops=float("inf"))
def odd(**_): return changed(frames_per_latent=4, default_num_frames=20)
def leaving(**_): raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("no_such_package.models:load", "there is no module 'no_such_package'", "PYTHONPATH"),
        ("faulty_model.sub:load", "there is no module 'faulty_model.sub'", "PYTHONPATH"),
        ("broken_model:load", "importing 'broken_model' failed: ZeroDivisionError: division by zero", "PYTHONPATH"),
        ("needy_model:load", "importing 'needy_model' failed: .*No module named 'no_such_dependency'", "install"),
        ("faulty_model:lod", "has no 'lod'", "did you mean faulty_model:load"),
        ("faulty_model:number", "is a int, not a function", "bring-your-own-model"),
        ("faulty_model:none", "returned a NoneType whose `spec` is no BackboneSpec", "bring-your-own-model"),
        ("faulty_model:half", "without check_prompt, encode_prompts, condition, denoiser, frame_decoder", "says what"),
        ("faulty_model:positional", "failed to load text, denoiser, vae: TypeError", "call it in Python"),
        ("faulty_model:failing", "RuntimeError: weights are on the other machine\n", "call it in Python"),
        ("faulty_model:spoilt", "spec.window of .* is 0", "bring-your-own-model"),
        ("faulty_model:nameless", "names no revision", "resumed"),
        ("faulty_model:numbered", "spec.revision of .* is no str", "bring-your-own-model"),
        ("faulty_model:unsettled", "spec.sampler of .* is no dict", "bring-your-own-model"),
        ("faulty_model:infinite", "spec.forward_flops of .* is inf", "bring-your-own-model"),
        ("faulty_model:odd", "spec.default_num_frames of .*nearest is 17 or 21", "bring-your-own-model"),
        ("faulty_model:leaving", "failed to load text, denoiser, vae: SystemExit: 3", "call it in Python"),
        ("leaving_model:load", "importing 'leaving_model' failed: SystemExit: 3", "PYTHONPATH"),
    ],
)
def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, hint: str) -> None:
    (tmp_path / "faulty_model.py").write_text(MODULE)
    (tmp_path / "broken_model.py").write_text("1 / 0\n")
    (tmp_path / "leaving_model.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "needy_model.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("faulty_model", "broken_model", "needy_model", "leaving_model"):
        sys.modules.pop(module, None)
    with pytest.raises(ModelError, match=message) as error:
        load_backbone(name, device="cpu")
    assert hint in error.value.hint


def test_parts_that_are_not_asked_for_may_be_missing() -> None:
    """A process that denoises needs no text encoder."""
    backbone = load_backbone("tests.ten_line_backbone:load", device="cpu", components=("denoiser",))
    assert backbone.spec.name == "tests.ten_line_backbone:load"
    assert backbone.device == torch.device("cpu")
