"""`miga bench chains`: what is accepted, from lines whose drift is known; and a chain through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.benches import chains
from jobs.benches.chains import acceptance, clips_of, parse_models, tables, world_of
from jobs.cli import main
from jobs.train_sprites_i2v import main as train_i2v
from miga.backbones.sprites.scorer import read_frames
from miga.errors import UsageError

CLIPS = 20


def lines(slopes: dict[str, float], shape: dict[str, float] | None = None) -> list[dict[str, Any]]:
    """Chains whose errors grow by so much a clip, with noise that all models share."""
    rng, found = np.random.default_rng(0), []
    for prompt in range(16):
        start, jitter = rng.uniform(0.1, 0.2), rng.normal(0.0, 0.01, CLIPS)
        for label, slope in slopes.items():
            errors = [round(float(start + slope * clip + jitter[clip]), 6) for clip in range(CLIPS)]
            right = [(shape or {}).get(label, 1.0) - 0.1 * (prompt % 2)] * CLIPS
            found.append(
                {"label": label, "prompt": prompt, "clips": CLIPS, "identity": errors, "residual": errors}
                | {"shape": right, "motion": [1.0] * CLIPS}
            )
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("slopes", "verdict"),
    [
        ({"control": 0.01, "recycled": 0.002}, "accepted"),
        ({"control": 0.01, "recycled": 0.009}, "refuted"),
        ({"control": 0.0, "recycled": 0.0}, "no drift"),
    ],
)
def test_what_is_accepted(slopes: dict[str, float], verdict: str) -> None:
    rows = lines(slopes, {"recycled": 0.8})
    judged = {row["measure"]: row["verdict"] for row in acceptance(rows)}
    assert judged["growth of identity"] == judged["growth of residual"] == verdict
    assert judged["shape at clip 1"].endswith("] worse")
    assert judged["motion at clip 1"].endswith("] not worse")
    found = tables(rows, list(slopes), 3)
    assert list(found)[-1] == "recycled against control, the same chains"
    first = next(iter(found.values()))
    assert [*first[0]] == ["model", "clip 1", "clip 2", "clip 5", "clip 10", "clip 20", "growth"]
    growth = float(first[0]["growth"].split()[0])
    assert growth == pytest.approx(17 * slopes["control"], abs=0.015)  # clips 16 to 20 on average, less clip 1
    missing = [{**row, "identity": [None] * CLIPS} for row in rows]
    assert acceptance(missing)[0]["verdict"] == "undecided"


def test_what_it_is_given() -> None:
    assert parse_models(["base=a", "x=b=c"]) == {"base": "a", "x": "b=c"}
    for wrong in (["a"], ["=a"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(UsageError, match="LABEL=FOLDER"):
            parse_models(wrong)
    with pytest.raises(UsageError, match="no model of the sprite world that takes pictures"):
        chains.plan({"base": "sprites"}, "svi-shot", 1, 2, "float32")
    scene, frames = world_of(0, 12)
    assert scene.held_out
    assert np.array_equal(world_of(0, 5)[1], frames[:5]), "the picture is the world's first frame"
    parts = clips_of(read_frames(frames), 3, 3)
    assert [len(part) for part in parts] == [3, 3, 6]


@pytest.mark.slow
def test_a_chain_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, plot = tmp_path / "i2v", tmp_path / "chains.jsonl", tmp_path / "plot.png"
    assert train_i2v(["--out", str(model), "--steps", "0", "--threads", "1"]) == 0
    command = ["bench", "chains", "--models", f"control={model}", f"recycled={model}", "--prompts", "1", "--clips", "2"]
    command += [
        "--profile",
        "svi-shot:num_steps=1",
        "--out",
        str(out),
        "--plot",
        str(plot),
        "--processes",
        "1",
        "--json",
    ]
    capsys.readouterr()
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["label"] for row in made] == ["control", "recycled"]
    assert made[0]["identity"] == made[1]["identity"]
    assert all(len(made[0][name]) == 2 for name in chains.MEASURES)
    assert plot.stat().st_size > 1000
    assert len(found) == 5
    assert main([*command, "--read-only"]) == 0
    assert out.read_text().count("\n") == 2
