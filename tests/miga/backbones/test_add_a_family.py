"""A family from outside: the page's example, registered as a package would, goes all the ways that ours go."""

from __future__ import annotations

import importlib
import json
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
from miga.backbones.families import GROUP, families
from miga.backbones.family import ModelOptions
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import (
    check_schedule,
    check_weights,
    family_named,
    footprint_of,
    is_on_hub,
    load_backbone,
    load_spec,
    simulates_gpus,
)
from miga.errors import ConfigError, ModelError
from miga.long_video import LongVideoPipeline
from miga.profiles import resolve_config
from pipeline.config import RunConfig
from pipeline.upkeep.trust import check_model
from tests import ten_line_family
from tests.installed import code_on, install, searched_folder
from tests.test_imports import import_graph

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "add-a-family.md"
COLOURS = {"": [0.0, 0.0, 0.0], "blue": [-0.3, -0.3, 0.4]}
GUIDANCE = 2.0
"""Of the profile `paper`: the colour comes out so many times as strong."""


@pytest.fixture(scope="module")
def example() -> str:
    """The code on the page."""
    return code_on(PAGE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python searches."""
    with searched_folder(tmp_path, monkeypatch, families.cache_clear) as site:
        yield site


@pytest.fixture
def package(folder: Path, example: str) -> Any:
    """The page's family, installed."""
    install(folder, GROUP, "page_family", example, "FAMILY")
    return importlib.import_module("page_family")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that only the page's family knows what to do with."""
    place = tmp_path / "palette"
    place.mkdir()
    (place / "colours.json").write_text(json.dumps(COLOURS))
    return str(place)


def test_the_page_quotes_the_example_whole(example: str) -> None:
    assert example == Path(ten_line_family.__file__).read_text()


def test_nothing_but_its_folder_asks_for_a_family() -> None:
    """No branch anywhere on which family a model is of."""
    naming = re.compile(r"(?:family|FAMILY|model)\)? (?:==|!=|in|not in) [\"'({\[]?[\"'](?:wan|videocrafter2|sprites)")
    asking = re.compile(r"isinstance\([^)]*(?:WanBackbone|VideoCrafter2Backbone|WanArchitecture)")
    files = [file for package in ("miga", "pipeline", "actors", "jobs") for file in (ROOT / package).rglob("*.py")]
    found = [file.relative_to(ROOT) for file in files if naming.search(text := file.read_text()) or asking.search(text)]
    assert [str(file) for file in found if file.parts[:3] != ("miga", "backbones", "wan")] == []


def test_only_the_table_imports_a_family() -> None:
    """All else reaches it by its object, but for what is made for one model: converting, training and judging it."""
    rooms = {"wan", "videocrafter2", "sprites", "simulated"}
    found = {
        (module, room)
        for module, imported in import_graph(ROOT).items()
        for name in imported
        for room in rooms & {*name.split(".")[2:3]}
        if name.startswith("miga.backbones.") and not module.startswith(f"miga.backbones.{room}.")
    }
    of_one_model = {
        ("jobs.commands.convert", "videocrafter2"),
        ("jobs.commands.convert", "wan"),
        ("actors.training.encoder", "wan"),
        ("actors.training.process", "wan"),
        ("jobs.training.plan", "wan"),
        ("jobs.train_sprites", "sprites"),
        ("jobs.train_sprites_i2v", "sprites"),
        ("jobs.train_sprites_causal", "sprites"),
        ("jobs.held_out_prompts", "sprites"),
        ("jobs.ablation.score", "sprites"),
        ("jobs.benches.chains", "sprites"),
        ("jobs.benches.pictures", "sprites"),
        ("jobs.benches.model", "sprites"),
        ("jobs.benches.drift", "sprites"),
        ("jobs.benches.quality", "sprites"),
        ("jobs.benches.turns", "sprites"),
        ("jobs.benches.video_score", "sprites"),
        ("miga.metrics.features", "sprites"),
        ("miga.metrics.sprites", "sprites"),
        *(
            (f"miga.backbones.sprites.{file}", "wan")
            for file in (
                "evaluate",
                "family",
                "image_to_video",
                "self_forcing",
                "train_causal",
                "train_transformer",
                "train_vae",
            )
        ),
    }
    assert found == of_one_model | {("miga.backbones.families", room) for room in rooms}


@pytest.mark.usefixtures("package")
def test_it_is_asked_before_ours(model: str) -> None:
    assert next(iter(families())) == "colours"
    assert family_named("colours-small") is families()["colours"]
    assert load_spec(model).revision == "2 colours"
    assert load_spec("colours-small").name == "colours-small"
    assert not is_on_hub("colours-small")
    assert not simulates_gpus(model)


@pytest.mark.parametrize("name", ["folder", "colours-small", "page_family:FAMILY"])
@pytest.mark.usefixtures("package")
@pytest.mark.sampled(3)
def test_videos_are_of_the_colour(name: str, model: str) -> None:
    name, prompt = (model, "blue") if name == "folder" else (name, "sea green")
    backbone = load_backbone(name, device="cpu")
    assert backbone.spec.name == name
    assert backbone.spec.family == "colours"
    config = resolve_config("paper", backbone.spec)
    check_weights(name)
    check_schedule(name, config)
    video = LongVideoPipeline(backbone, config)(prompt, num_frames=12, seed=0).pixels
    colour = backbone.colours[prompt]  # type: ignore[attr-defined]
    mean = torch.as_tensor(video).float().mean((0, 1, 2)) / 127.5 - 1
    assert torch.allclose(mean, GUIDANCE * torch.tensor(colour), atol=0.06)


@pytest.mark.usefixtures("package")
def test_an_import_path_is_code_and_the_rest_is_not(model: str) -> None:
    for name in (model, "colours-small"):
        check_model(RunConfig(model=name), "out")
    with pytest.raises(Exception, match="it is code, which would be run here"):
        check_model(RunConfig(model="page_family:FAMILY"), "out")


@pytest.mark.usefixtures("package")
def test_its_weights_and_settings_are_looked_over(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'unipc' cannot step through"):
        resolve_config("paper", load_spec(model), {"solver": "unipc"})
    Path(model, "colours.json").write_text('{"": [0, 0, 0], "blue": [3, 0, 0]}')
    with pytest.raises(ModelError, match=r"'blue' of .* is \[3, 0, 0\], no colour"):
        check_weights(model)
    (tmp_path / "prompts.txt").write_text("blue\n")
    command = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", model, "--dry-run"]
    assert main(command) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("package")
def test_other_sizes_and_what_it_does_not_take(model: str) -> None:
    spec = load_spec(model)
    larger = configured_spec(spec, ModelOptions(height=64))
    assert (larger.height, larger.width, larger.latent_height) == (64, 48, 8)
    backbone = load_backbone(model, device="cpu")
    configure(backbone, ModelOptions(height=64))
    assert backbone.spec == larger
    with pytest.raises(ModelError, match="height 60 is no multiple of 8"):
        configured_spec(spec, ModelOptions(height=60))
    for options, what in ((ModelOptions(lora=("a",)), "lora"), (ModelOptions(compile=True), "compile")):
        with pytest.raises(ModelError, match=f"is of the family 'colours', which takes no {what}") as caught:
            configured_spec(spec, options)
        assert caught.value.hint == "leave that out; models of these families take it: sprites, sprites-causal, wan"
    assert footprint_of(model) == families()["colours"].footprint(model, None)


@pytest.mark.usefixtures("package")
def test_the_commands_know_it(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("blue\n")
    run = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", model, "--height", "64"]
    assert main([*run, "--num-frames", "20", "--dry-run", "--json", "--card-gb", "8"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["videos"] == 1
    assert main(["profiles", "--model", model]) == 0
    assert "swift" in capsys.readouterr().out
    plan = ["plan", "--model", model, "--profile", "swift", "--num-frames", "20", "--out", str(tmp_path / "plan.svg")]
    assert main(plan) == 0
    assert (tmp_path / "plan.svg").exists()


@pytest.mark.usefixtures("package")
def test_simulated_gpus_take_after_it() -> None:
    simulated = load_spec("simulated:colours")
    assert (simulated.family, simulated.window, simulated.latent_channels) == ("colours", 6, 4)
    check_schedule("simulated:colours", resolve_config("swift", simulated))
    with pytest.raises(ModelError) as caught:
        load_spec("simulated:flowers")
    assert caught.value.hint == (
        "write simulated:wan or simulated:colours or simulated:videocrafter2, options behind a '?'"
    )


BROKEN: list[tuple[str, str]] = [
    ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("", "AttributeError"),
    ("FAMILY = 3\n", "it is a int, not a miga.backbones.family.Family"),
    ("from miga.backbones.wan.family import WanFamily\nFAMILY = WanFamily()\n", "there is a family 'wan' already"),
    (
        "from miga.backbones.wan.family import WanFamily\nclass Own(WanFamily):\n    name = ''\nFAMILY = Own()\n",
        "it has no name",
    ),
]


@pytest.mark.parametrize(("code", "why"), BROKEN)
def test_a_broken_one_is_refused(code: str, why: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(folder, GROUP, "page_broken", code, "FAMILY")
    with pytest.raises(ModelError, match="the family of models 'page_broken' of package 'page_broken'") as caught:
        load_spec("sprites")
    assert why in caught.value.message
    assert caught.value.hint == "mend that package, or uninstall it"
    assert main(["profiles", "--model", "sprites"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow  # all that leads there is tested above
@pytest.mark.ray
def test_a_run_from_end_to_end(folder: Path, tmp_path: Path, example: str, model: str) -> None:
    """In processes of their own."""
    install(folder, GROUP, "page_family", example, "FAMILY")
    (tmp_path / "prompts.txt").write_text("blue\ngreen\n")
    command = [sys.executable, "-m", "jobs.cli", "generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--model", model, "--height", "64", "--num-frames", "20", "--quiet", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr  # a colour that it does not know is set aside
    (shard,) = (tmp_path / "out" / "manifest").glob("*.parquet")
    rows = pq.read_table(shard).to_pylist()
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert (rows[0]["height"], rows[0]["width"], rows[0]["num_frames"]) == (64, 48, 20)
    assert rows[0]["model_revision"] == "2 colours"
