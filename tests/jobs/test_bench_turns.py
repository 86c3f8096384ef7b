"""What is measured of two prompts in turn, on frames that are drawn."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from jobs.benches.quality import VideoJob
from jobs.benches.turns import TurnsMaker, measure_turns, next_scene
from jobs.benches.video_score import LOOKS, omitted
from jobs.cli import main
from miga.backbones.registry import load_spec
from miga.backbones.sprites.world import Placement, Scene, held_out_scenes, render

FIRST = Scene("red", "circle", "grey", "horizontal")
TURN, NUM_FRAMES = 40, 100


def video(*parts: tuple[Scene, int]) -> np.ndarray:
    """So many frames of one scene after the other."""
    return np.concatenate([render(scene, Placement(), count) for scene, count in parts])


@pytest.mark.parametrize("late", [0, 13])
def test_a_change_that_takes(late: int) -> None:
    second = next_scene(FIRST, ("ground",))
    values = measure_turns(video((FIRST, TURN + late), (second, 60 - late)), (FIRST, second), ("ground",), TURN)
    assert (values["first named"], values["then named"], values["open stays"]) == (1.0, 1.0, 1.0)
    assert values["frames to change"] == max(0, late - 4), "when 12 of the next 16 frames show it"
    assert values["residual"] < 0.02
    shares = [values[f"{name}, {ordinal} block"] for ordinal in ("2nd", "4th") for name in ("colour", "ground")]
    assert shares[0] == pytest.approx(1.0 if late == 0 else 11 / 12)
    assert shares[2] == 1.0
    assert math.isnan(shares[1])
    assert math.isnan(shares[3]), "the ground is left open"


def test_a_change_that_does_not() -> None:
    second = next_scene(FIRST, ())
    values = measure_turns(video((FIRST, NUM_FRAMES)), (FIRST, second), (), TURN)
    assert (values["first named"], values["then named"]) == (1.0, 0.0)
    assert values["frames to change"] == NUM_FRAMES - TURN
    assert math.isnan(values["open stays"]), "nothing is left open"


def test_what_is_open_and_does_not_stay() -> None:
    second = next_scene(FIRST, ("ground",))
    drifted = replace(second, ground="teal")
    assert measure_turns(video((FIRST, TURN), (second, 35), (drifted, 25)), (FIRST, second), ("ground",), TURN)[
        "open stays"
    ] == pytest.approx(0.75)


@pytest.mark.parametrize("open_names", [(), ("ground",), ("colour", "ground")])
def test_the_second_prompt_names_others_of_what_is_named(open_names: tuple[str, ...]) -> None:
    for scene in held_out_scenes(20, seed=1):
        other = next_scene(scene, open_names)
        for name in LOOKS:
            assert (getattr(other, name) == getattr(scene, name)) == (name in open_names)
        assert other.motion == scene.motion


def test_captions_that_name_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "turns", "--captions", "empty", "--profiles", "swift", "--against", "swift"]) != 0
    assert "names nothing that could change" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["full", "partial"])
def test_captions_name_what_is_judged(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leave open what is held against the beginning."""
    step = SimpleNamespace(frames=np.zeros((4, 64, 64, 3), np.uint8), num_calls=1)
    monkeypatch.setattr("jobs.benches.turns.make_video", lambda *arguments, **options: [step])
    monkeypatch.setattr("jobs.benches.turns.measure_turns", lambda *arguments: {})
    backbone = SimpleNamespace(spec=load_spec("sprites"), encode_prompts=lambda captions: None)
    for prompt in range(8):
        job = VideoJob("swift", "", "", "float32", mode, 12, prompt, 0)
        captions = TurnsMaker.make(SimpleNamespace(backbone=backbone, negative=None), job)["captions in turn"]  # type: ignore[arg-type]
        scene = held_out_scenes(prompt + 1, seed=1)[prompt]
        for name in ("colour", "ground"):
            is_named = name not in omitted(mode, prompt)
            assert (getattr(scene, name) in captions[0].split()) == is_named, (captions, name)
