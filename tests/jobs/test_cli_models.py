"""The options of `generate` that say how a model is run: what a dry run tells of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from miga.backbones.registry import load_spec

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
    assert memory["decoding"] == "takes turns with the network"
    _, out, _ = run(capsys, *arguments, 48)
    assert json.loads(out)["memory"]["decoding"] == "beside the network"
    status, _, message = run(capsys, *arguments, 16)
    assert status == 2
    assert "what would fit: a card of 24 GB" in message
    assert not (tmp_path / "out").exists()


def test_where_the_text_encoder_goes(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    config = tmp_path / "text.toml"
    arguments = (prompts, tmp_path / "out", "--model", LARGE, "--dry-run", "--json", "--config", config, "--card-gb")
    config.write_text('text_dtype = "bfloat16"\n')
    _, out, _ = run(capsys, *arguments, 80)
    assert json.loads(out)["memory"]["text encoder"] == "11.4 GB in bfloat16, of the machine's memory"
    config.write_text('text_dtype = "bfloat16"\n[workers]\ntext_gpus = 0.2\ngpus_per_actor = 0.8\n')
    _, out, _ = run(capsys, *arguments, 80)
    assert json.loads(out)["memory"]["text encoder"] == "11.4 GB in bfloat16, of the card"
    status, _, message = run(capsys, *arguments, 24)
    assert status == 2
    assert "text_gpus = 0 in [workers]" in message


def test_videocrafter2_on_a_card(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    arguments = ("--model", "VideoCrafter/VideoCrafter2", "--width", 1024, "--height", 576, "--dry-run", "--json")
    status, out, message = run(capsys, prompts, tmp_path / "out", *arguments, "--card-gb", 24)
    assert status == 0, message
    costs = json.loads(out)
    assert costs["size"] == "576x1024"
    assert costs["memory"]["transformer"] == "2.8 GB in bfloat16"


def test_another_size_costs_more(capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path) -> None:
    hours = {}
    for height, width in ((480, 832), (720, 1280)):
        size = ("--height", height, "--width", width)
        status, out, _ = run(capsys, prompts, tmp_path / "out", "--model", LARGE, *size, "--dry-run", "--json")
        assert status == 0
        assert json.loads(out)["size"] == f"{height}x{width}"
        hours[height] = json.loads(out)["estimated_hours"]
    assert 2.3 < hours[720] / hours[480] < 2.3**2


def test_hours_follow_forwards_and_the_length_of_a_call(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path
) -> None:
    """`swift` guides no call of Stage 2: those take one forward. A window of 14 latents takes 2/3 of one of 21."""
    config = tmp_path / "short.toml"
    config.write_text("[sampler]\nwindow = 14\nguidance_scale = 1.0\n")
    costs = {}
    for name, options in {"swift": (), "short": ("--config", config)}.items():
        run_options = ("--model", LARGE, "--num-frames", 161, "--dry-run", "--json", *options)
        status, out, message = run(capsys, prompts, tmp_path / "out", *run_options)
        assert status == 0, message
        costs[name] = json.loads(out)
    swift, short = costs["swift"], costs["short"]
    assert (swift["network_calls"], swift["network_forwards"]) == (2 * 255, 2 * (2 * 255 - 27 - 9))
    flops = load_spec(LARGE).forward_flops
    assert swift["estimated_hours"] * 3600 == pytest.approx(swift["network_forwards"] * flops / 400e12)
    assert short["network_forwards"] == short["network_calls"]
    assert short["estimated_hours"] * 3600 == pytest.approx(short["network_calls"] * flops * 14 / 21 / 400e12)


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
