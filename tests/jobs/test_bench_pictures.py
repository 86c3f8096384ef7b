"""`miga bench pictures`: what is measured of frames that the world drew, what tables say, and the command itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.benches.chains import world_of
from jobs.benches.pictures import figures_of, jump_of, plan, tables
from jobs.cli import main
from jobs.train_sprites_i2v import main as train_i2v
from miga.backbones.registry import load_spec
from miga.errors import ConfigError, UsageError


@pytest.mark.slow
def test_of_the_worlds_own_frames() -> None:
    """A video that is the world's shows all that the picture does; one that loses it half-way shows it by half."""
    spec = load_spec("sprites")
    scene, world = world_of(0, 45)
    other_scene, other = next(
        (each, frames)
        for each, frames in (world_of(number, 45) for number in range(1, 9))
        if each.ground != scene.ground
    )
    same: dict[str, Any] = figures_of(world, world, scene, spec)
    assert same["ground"] == same["colour"] == [1.0, 1.0]
    assert (same["first frame"], same["shape"], same["motion"]) == (0.0, 1.0, 1.0)
    assert max(same["identity"]) < 0.1
    lost: dict[str, Any] = figures_of(np.concatenate([world[:22], other[22:]]), world, scene, spec)
    assert lost["ground"] == [1.0, 0.0]
    assert lost["identity"][1] > lost["identity"][0] + 0.1
    elsewhere: dict[str, Any] = figures_of(np.concatenate([other[:1], world[1:]]), world, scene, spec)
    assert elsewhere["first frame"] == pytest.approx(float(np.abs(other[0] - world[0]).mean()), abs=1e-6)
    assert elsewhere["jump"] > 5 * same["jump"]
    assert other_scene.held_out


def test_a_jump_by_hand() -> None:
    levels = np.array([0.0, 0.5, 0.6, 0.7, 0.8])
    frames = np.broadcast_to(levels[:, None, None, None], (5, 2, 2, 3))
    assert jump_of(frames, 1) == pytest.approx(5.0)
    assert np.isnan(jump_of(frames[:1].repeat(3, 0), 1)), "nothing moves"


def row(profile: str, prompt: int, value: float) -> dict[str, Any]:
    halves = {name: [value, value / 2] for name in ("identity", "residual", "colour", "ground")}
    return {"profile": profile, "prompt": prompt, "calls": 7, **halves} | {
        "first frame": value, "jump": value if prompt else None, "shape": value, "motion": value,
    }  # fmt: skip


def test_tables() -> None:
    """Paired: what all scenes share falls out, and lower is better of distances, higher of shares."""
    rows = [row("a", prompt, 0.1 * prompt) for prompt in range(8)]
    rows += [row("b", prompt, 0.1 * prompt + 0.2) for prompt in range(8)]
    means, differences = tables(rows, ["a", "b"], 3).values()
    assert list(tables(rows, ["a", "b"], 3)) == [
        "from pictures, 95 % intervals over scenes; 3 videos are not made yet", "less a, the same scenes",
    ]  # fmt: skip
    assert [each["calls"] for each in means] == [7, 7]
    assert means[0]["identity, second half"].startswith("0.1750")
    (only,) = differences
    assert only["identity, first half"].startswith("+0.2000")
    assert only["identity, first half"].endswith("worse")
    assert only["ground, second half"].startswith("+0.1000")
    assert only["ground, second half"].endswith("better")
    assert len(tables(rows, ["a"])) == 1


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="swift"):
        plan("sprites", ["swift"], 1, 10)
    with pytest.raises(ConfigError, match=r"does nothing: .* takes no condition"):
        plan("sprites", ["swift:image_condition=reference"], 1, 45)
    with pytest.raises(UsageError, match="takes pictures"):
        plan("Wan-AI/Wan2.2-I2V-A14B-Diffusers", ["swift"], 1, 45)


@pytest.mark.slow
def test_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "i2v", tmp_path / "pictures.jsonl"
    assert train_i2v(["--out", str(model), "--steps", "0", "--threads", "1"]) == 0
    profiles = ["fifo:num_steps=12,guidance_scale=1.0", "svi-shot:num_steps=2"]
    command = ["bench", "pictures", "--model", str(model), "--prompts", "1", "--frames", "45", "--out", str(out)]
    command += ["--profiles", *profiles, "--processes", "1", "--json"]
    capsys.readouterr()
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [each["profile"] for each in made] == profiles
    assert made[1]["calls"] == 2
    assert len(found) == 2
    assert main([*command, "--read-only"]) == 0
    assert out.read_text().count("\n") == 2
