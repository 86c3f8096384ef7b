"""What is measured of two prompts in turn, on frames that are drawn."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from jobs.benches.turns import measure_turns, next_scene
from jobs.benches.video_score import LOOKS
from jobs.cli import main
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
