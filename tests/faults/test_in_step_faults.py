"""An actor that makes two videos in step is killed: both rows come back, and all are made."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.actors.test_generate_run import ROOT, check_complete, command, descendants
from tests.pace import paced
from tests.processes import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FRAMES = (597, 597, 33)
"""Fifty blocks of three latents, twice, and three."""


def test_an_actor_with_two_rows_in_step_is_killed(tmp_path: Path) -> None:
    """The embedded model; the third row's prompt changes, and a fourth cannot be made at all."""
    rows = [
        {"prompt": "a red circle circling clockwise on a teal ground", "num_frames": FRAMES[0]},
        {"prompt": "a blue square standing still on a grey ground", "num_frames": FRAMES[1]},
        {"prompt": ["a yellow ring on a teal ground", "a green ring on a teal ground"], "num_frames": FRAMES[2]},
        {"prompt": " ", "num_frames": FRAMES[2]},
    ]
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps({"seed": 1, **row}) + "\n" for row in rows))
    options = ["--profile", "longlive-infinity", "--num-actors", "1", "--set", "workers.videos_per_actor=2"]
    options += ["--set", "run.checkpoint_every_s=0.01"]
    driver = subprocess.Popen(
        command(prompts, out, Path("sprites"), *options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip

    def saved(row: int) -> list[Path]:
        return list((out / "checkpoint/00000").glob(f"*{row:08d}*/*.safetensors"))

    try:
        wait_for(lambda: (saved(0) and saved(1)) or driver.poll() is not None, what="a checkpoint of both")
        assert driver.poll() is None, driver.communicate()
        (actor,) = [pid for pid, name in descendants(driver.pid).items() if name.startswith("ray::BackboneWorker")]
        os.kill(actor, signal.SIGKILL)
        shown, said = driver.communicate(timeout=paced(300))
    finally:
        driver.kill()
    assert driver.returncode == 3, said
    assert json.loads(shown.splitlines()[-1])["ok"] == 3
    made = check_complete(out, 4, failed={3})
    assert [row["attempt"] for row in made[:2]] == [2, 2], said
    assert [row["num_frames"] for row in made[:3]] == list(FRAMES)
    assert said.count("goes back to the queue") == 2, said
    assert not list((out / "checkpoint").rglob("*.safetensors"))
