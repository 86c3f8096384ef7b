"""Causal presets on a real Ray: kill, resume, the same frames; pictures, and prompts that begin where a row says."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from tests.actors.test_generate_run import ROOT, check_complete, command, descendants, run
from tests.pace import paced
from tests.processes import is_running, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_causal_run_that_is_killed_goes_on_to_the_same_frames(tmp_path: Path, tiny_model: Path) -> None:
    """Everything is killed once a checkpoint is there; the same command again gives the bytes of an undisturbed run."""
    Image.new("RGB", (60, 40), (200, 30, 90)).save(tmp_path / "a.png")
    rows = [
        {"prompt": ["a red circle", "a blue circle"], "prompt_frames": [0, 97], "num_frames": 301},
        {"prompt": "a red circle", "image": "a.png", "num_frames": 37},
        {"prompt": ["a red circle", "a blue circle"], "prompt_times": [0, 99]},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"seed": 1, **row}) + "\n" for row in rows))
    options = ["--profile", "longlive-infinity", "--set", "sampler.first_block=1", "--num-frames", "37"]
    options += ["--num-actors", "1", "--set", "run.checkpoint_every_s=0.01"]
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    status, summary = run(prompts, alone, tiny_model, *options)
    assert status == 3, summary
    expected = check_complete(alone, 3, failed={2})
    assert "too late in a video of 37 frames" in expected[2]["error"]
    assert [row["network_calls"] for row in expected[:2]] == [5 * 26 + 1, 1 + 5 * 3]
    assert [row["prompt_frames"] for row in expected[:2]] == [[0, 97], []]

    driver = subprocess.Popen(
        command(prompts, killed, tiny_model, *options), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    wait_for(lambda: [file for file in (killed / "checkpoint").rglob("*") if file.is_file()], what="a checkpoint")
    started = descendants(driver.pid)
    driver.send_signal(signal.SIGKILL)
    driver.communicate(timeout=paced(120))
    for pid in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(is_running(pid) for pid in started))
    assert len(list((killed / "done").rglob("*.json"))) < 2, "it was killed at work"
    status, summary = run(prompts, killed, tiny_model, *options)
    assert status == 3, summary
    assert summary["resumed"]
    rows_now = check_complete(killed, 3, failed={2})
    assert [row["sha256"] for row in rows_now] == [row["sha256"] for row in expected]
