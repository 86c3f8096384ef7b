"""A picture as the first frame of causal presets: a first block of one latent, given clean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.cli import main
from miga.backbones.registry import load_backbone, load_spec
from miga.checkpoint import load_checkpoints, save_checkpoint
from miga.cost import count_calls
from miga.generate import Sampler, rules_of_pictures
from miga.image_condition import pictures_of
from miga.noise import NamedNoise
from miga.pictures import read_picture
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.video import VideoRun

STEPS = {"timesteps": [1000, 500], "num_steps": 2, "first_block": 1}


def picture_of(folder: Path) -> Path:
    levels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    file = folder / "a.png"
    Image.fromarray(levels).resize((48, 32), Image.Resampling.BICUBIC).save(file)
    return file


def test_which_presets_take_a_picture() -> None:
    spec = load_spec("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    for profile, changes, why in (
        ("longlive", {"first_block": 1}, ""),
        ("self-forcing", {"block": 1}, ""),
        ("longlive", {}, "begins with a block of 3 latents, and a picture is one: set first_block = 1"),
        ("rolling-forcing", {}, "rolls blocks over the video, and begins with noise"),
    ):
        rules = rules_of_pictures(spec, resolve_config(profile, spec, changes))
        assert why in rules.why_no_first
        assert bool(rules.why_no_first) == bool(why)
        assert rules.why_no_last


@pytest.mark.slow
def test_a_video_begins_with_the_picture_and_goes_on_when_killed(tmp_path: Path) -> None:
    sprites: Any = load_backbone("sprites", device="cpu")
    config = resolve_config("longlive-infinity", sprites.spec, STEPS)
    embedding, negative = sprites.encode_prompts(["a red circle", ""])
    frame = read_picture(picture_of(tmp_path)).fitted(sprites.spec.height, sprites.spec.width)
    how: Any = (sprites, config, [embedding], negative, 7, 0)
    pictures = pictures_of(sprites, frame)
    assert pictures is not None

    def frames_of(run: VideoRun) -> np.ndarray:
        with run:
            return np.concatenate([step.frames for step in run.steps() if step.frames is not None])

    run = VideoRun(*how, pictures=pictures)
    whole = frames_of(run)
    assert run.sampler.num_calls == 1 + 2 * 3 == count_calls(config, 7).total - config.num_calls_for_picture
    with torch.inference_mode():
        shown = sprites.frame_decoder().decode(pictures.anchor())
    assert np.abs(whole[:1].astype(int) - shown.numpy().astype(int)).max() <= 1

    denoiser, noise = sprites.denoiser(config), NamedNoise(0, sprites.spec.latent_shape)
    track = PromptTrack([sprites.condition(embedding, negative)])
    given = Sampler(denoiser, config, track, noise, 7)
    with torch.inference_mode():
        latents = [each for _, each in given.run(given.start(pictures.anchor())) if each is not None]
        decoded = sprites.frame_decoder().decode(torch.cat(latents))
    assert np.abs(whole.astype(int) - decoded.numpy().astype(int)).max() <= 1

    for num_advances in (0, 2):  # before the picture was shown, and behind a block
        with VideoRun(*how, pictures=pictures) as stopped:
            steps = stopped.steps()
            for _ in range(num_advances):
                next(steps)
            save_checkpoint(stopped.checkpoint(), tmp_path / "part", config=config, seed=0)
        resume = load_checkpoints([tmp_path / "part"], config=config, num_latents=7, seed=0)
        assert np.array_equal(frames_of(VideoRun(*how, pictures=pictures, resume=resume)), whole)


def test_rows_with_pictures_are_judged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture_of(tmp_path)
    rows = [{"prompt": "a ring"}, {"prompt": "a ring", "image": "a.png"}, {"prompt": "a ring", "image": "none.png"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "generate",
        str(tmp_path / "p.jsonl"),
        str(tmp_path / "out"),
        "--model",
        "sprites",
        "--dry-run",
        "--json",
    ]
    command += ["--profile", "longlive", "--num-frames", "49"]
    assert main([*command, "--set", "sampler.first_block=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["bad"]] == [2]
    assert found["network_calls"] == 2 * 5 * 5 - 4  # blocks of 1 and 4 x 3 latents; a picture needs no steps
    assert main([*[each if each != "49" else "45" for each in command]]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in found["bad"]] == [1, 2]
    assert "set first_block = 1" in found["bad"][0]["error"]
