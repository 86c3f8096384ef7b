"""`videos_per_actor` as a user says it: what it comes to, and what is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli import run

WAN = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"


def dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path, videos: object, *options: Any) -> tuple[int, str, str]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "a corgi", "num_frames": 957}) + "\n")
    profile = () if "--profile" in options else ("--profile", "longlive-infinity")
    setting = ("--set", f"workers.videos_per_actor={videos}")
    return run(capsys, "generate", prompts, tmp_path / "out", "--dry-run", *profile, *setting, *options)


def test_a_dry_run_says_how_many_and_what_memory_they_take(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("--model", WAN, "--card-gb", 80)
    shown = dry_run(capsys, tmp_path, "auto", *options)[1]
    figures = json.loads(dry_run(capsys, tmp_path, "auto", *options, "--json")[1])
    assert figures["videos_per_actor"] == 8
    assert figures["memory"]["bytes"]["cache"] == 8 * 12 * 2 * 30 * 1560 * 1536 * 2
    assert "at once 8 videos an actor, in step" in shown
    assert "Keys and values of 8 videos take 27.6 GB, however long the videos are." in shown
    assert json.loads(dry_run(capsys, tmp_path, 3, *options, "--json")[1])["videos_per_actor"] == 3
    assert "videos_per_actor" not in json.loads(dry_run(capsys, tmp_path, 1, *options, "--json")[1])


def test_without_a_card_auto_is_left_open(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = dry_run(capsys, tmp_path, "auto", "--model", WAN)[1]
    assert "at once as many videos an actor, in step, as its GPU has memory for" in shown


def test_what_does_not_fit_is_refused_with_what_would(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, _, error = dry_run(capsys, tmp_path, 9, "--model", WAN, "--card-gb", 24)
    assert status == 2
    assert "making 9 videos at once" in error
    assert "what would fit: videos_per_actor = 3" in error


@pytest.mark.parametrize("videos", [2, "auto"])
def test_profiles_that_make_one_at_a_time_refuse_it_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, videos: object
) -> None:
    status, _, error = dry_run(capsys, tmp_path, videos, "--profile", "swift")
    assert status == 2
    assert "videos_per_actor" in error
    assert "profile 'swift' makes one video at a time" in error
    assert "longlive-infinity" in error
    assert dry_run(capsys, tmp_path, 1, "--profile", "swift", "--num-frames", 93)[0] == 0


@pytest.mark.parametrize(("videos", "said"), [(0, "at least 1"), (65, "at most 64"), ("many", 'or "auto"')])
def test_numbers_out_of_range_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, videos: object, said: str
) -> None:
    status, _, error = dry_run(capsys, tmp_path, videos)
    assert status == 2
    assert "workers.videos_per_actor must be" in error
    assert said in error
