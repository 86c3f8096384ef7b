"""The options of `generate` that say how a model is run: what a dry run tells of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main

LARGE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\na blue ring\n")
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["generate", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_dry_run_says_what_goes_where(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    arguments = (prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--json", "--card-gb")
    status, out, message = run(capsys, *arguments, 24)
    assert status == 0, message
    memory = json.loads(out)["memory"]
    assert memory["transformer"].endswith("in fp8")
    assert "fp8" in memory["reason"]
    status, _, message = run(capsys, *arguments, 16)
    assert status == 2
    assert "what would fit: a card of 24 GB" in message
    assert not (tmp_path / "out").exists()


def test_another_size_costs_more(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    hours = {}
    for height, width in ((480, 832), (720, 1280)):
        size = ("--height", height, "--width", width)
        status, out, _ = run(capsys, prompts, tmp_path / "out", "--model", LARGE, *size, "--dry-run", "--json")
        assert status == 0
        assert json.loads(out)["size"] == f"{height}x{width}"
        hours[height] = json.loads(out)["estimated_hours"]
    assert 2.3 < hours[720] / hours[480] < 2.3**2


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--height", "33"], "height 33 is no multiple of 16"),
        (["--width", "0"], "width must be at least 1"),
        (["--lora", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--lora", "nowhere.safetensors:0.5"], "'nowhere.safetensors' does not exist"),
        (["--attention", "flsh"], "did you mean 'flash'"),
    ],
)
def test_options_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_model: Path,
    prompts: Path,
    options: list[str],
    named: str,
) -> None:
    status, _, message = run(capsys, prompts, tmp_path / "out", "--model", tiny_model, *options)
    assert status == 2
    assert named in message
    assert "hint: " in message
    assert not (tmp_path / "out").exists()


def test_a_half_downloaded_folder_is_refused_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, prompts: Path
) -> None:
    import shutil

    copied = shutil.copytree(tiny_model, tmp_path / "model")
    file = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    status, _, message = run(capsys, prompts, tmp_path / "out", "--model", copied)
    assert status == 2
    assert "cut off" in message
    assert not (tmp_path / "out").exists()
