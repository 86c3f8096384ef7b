"""VideoCrafter2 as a backbone: what is known of a folder, and whole videos from it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from jobs.cli import main
from miga.backbones.registry import check_schedule, load_backbone, load_spec
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.spec import PUBLISHED_NAME, Settings, forward_flops, settings_of_folder
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet
from miga.cost import count_calls
from miga.errors import ConfigError, ModelError
from miga.long_video import LongVideoPipeline
from miga.profiles import resolve_config
from tests.faulty_folder import edit
from tests.tiny_videocrafter2 import SAMPLER, SETTINGS, architecture

NUM_FRAMES = 9


def test_spec_of_a_folder(converted: Path) -> None:
    spec = load_spec(str(converted))
    assert (spec.family, spec.name, spec.window, spec.fps) == ("videocrafter2", str(converted), 8, 6)
    assert spec.latent_shape == (4, 4, 6)
    assert (spec.height, spec.width, spec.default_num_frames, spec.negative_prompt) == (32, 48, 9, "")
    assert (spec.frames_per_latent, spec.frames_first_latent) == (1, 1)
    assert [spec.num_latents(count) for count in (1, 2, 128)] == [1, 2, 128]
    assert spec.num_frames(128) == 128
    assert spec.sampler == SAMPLER
    assert spec.revision.startswith("sha256:")
    assert load_backbone(str(converted), device="cpu", components=()).spec == spec


def test_no_frames_cannot_be_made(converted: Path) -> None:
    with pytest.raises(ValueError, match="num_frames 0 cannot be made"):
        load_spec(str(converted)).num_latents(0)


def test_published_model_is_known_without_network() -> None:
    spec = load_spec(PUBLISHED_NAME)
    assert (spec.window, spec.latent_shape, spec.height, spec.width) == (16, (4, 40, 64), 320, 512)
    assert (spec.fps, spec.default_num_frames, spec.num_latents(128), spec.negative_prompt) == (10, 128, 128, "")
    config = resolve_config("paper", spec)
    assert (config.num_steps, config.zigzag_width, config.guidance_scale, config.eta) == (64, 4, 12.0, 1.0)
    with pytest.raises(ModelError, match=r"published as a pickle, model\.ckpt") as error:
        load_backbone(PUBLISHED_NAME, device="cpu", components=("tokenizer",))
    assert "miga convert model.ckpt" in error.value.hint


def test_a_folder_without_settings_has_the_published_ones(copied: Path) -> None:
    (copied / "miga.json").unlink()
    assert settings_of_folder(copied) == Settings()
    spec = load_spec(str(copied))
    assert (spec.window, spec.latent_shape, spec.fps) == (16, (4, 40, 64), 10)


def test_settings_of_the_folder(copied: Path) -> None:
    edit(
        copied / "miga.json",
        spacing="strided",
        use_scale=False,
        fps_condition=24,
        sampler={"num_guidance_latents": 2},
        height=48,
    )
    backbone = VideoCrafter2Backbone.from_pretrained(copied, device="cpu", components=("denoiser",))
    assert backbone.spec.sampler == {"num_steps": 67, "num_guidance_latents": 2}
    denoiser = backbone.denoiser(resolve_config("no-reflection", backbone.spec))
    assert (denoiser.schedule.num_steps, int(denoiser.schedule.timestep[-1])) == (67, 991)
    assert denoiser.schedule.base_clip_scale is None
    assert denoiser.fps_condition == 24
    assert backbone.spec.latent_shape == (4, 6, 6)


def counted_flops(config: UNetConfig, num_latents: int, height: int, width: int) -> int:
    """By torch, operation by operation, without memory."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, 4, num_latents, height, width)
        text, one = torch.empty(1, 77, config.context_dim), torch.ones(1, dtype=torch.int64)
        VideoCrafter2UNet(config)(x, one, text, one)
    return counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "tolerance"), [((8, 4, 6), 0), ((16, 5, 7), 0.05)])
def test_flops_of_a_small_forward(size: tuple[int, int, int], tolerance: float) -> None:
    """Odd sides are rounded up on the way, which is not counted."""
    config = architecture().unet
    assert forward_flops(config, *size) == pytest.approx(counted_flops(config, *size), rel=tolerance)


@pytest.mark.slow
def test_flops_of_a_published_forward() -> None:
    assert load_spec(PUBLISHED_NAME).forward_flops == pytest.approx(counted_flops(UNetConfig(), 16, 40, 64), rel=0)


def test_a_schedule_that_cannot_be_is_found_before_a_run(copied: Path) -> None:
    edit(copied / "miga.json", spacing="strided", sampler=SAMPLER | {"num_steps": 64})
    with pytest.raises(ConfigError, match=r"num_steps = 64 cannot be with spacing 'strided'") as error:
        check_schedule(str(copied), resolve_config("swift", load_spec(str(copied))))
    assert "67" in error.value.hint


@pytest.mark.parametrize("load", [load_spec, load_backbone])
def test_a_checkpoint_has_to_be_converted(converted: Path, tmp_path: Path, load: Callable[[str], Any]) -> None:
    checkpoint = converted.with_suffix(".ckpt")
    with pytest.raises(ModelError, match="is a pickle") as error:
        load(str(checkpoint))
    assert f"miga convert {checkpoint} FOLDER" in error.value.hint
    (tmp_path / "model.ckpt").symlink_to(checkpoint)
    with pytest.raises(ModelError, match=r"holds model\.ckpt, a pickle") as error:
        load(str(tmp_path))
    assert f"miga convert {tmp_path / 'model.ckpt'} FOLDER" in error.value.hint


PROFILES = ["paper", "fifo", "swift", "released"]


@pytest.fixture(scope="module")
def backbone(converted: Path) -> VideoCrafter2Backbone:
    return VideoCrafter2Backbone.from_pretrained(converted, device="cpu")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.sampled(4)
def test_whole_videos(backbone: VideoCrafter2Backbone, profile: str) -> None:
    config = resolve_config(profile, backbone.spec)
    pipeline = LongVideoPipeline(backbone, config)
    prompts = ["a red ball", "a blue boat"]
    video = pipeline(prompts_in_turn=prompts, num_frames=NUM_FRAMES, seed=1)
    assert video.frames.shape == (NUM_FRAMES, 32, 48, 3)
    assert video.fps == 6
    count = count_calls(config, NUM_FRAMES)
    assert video.num_calls == count.total + count.per_search * sum(video.trace.searched)
    assert video.pixels.std(axis=(0, 1, 2)).min() > 5, "frames of one colour would tell nothing"


@pytest.mark.slow
def test_what_a_video_depends_on(backbone: VideoCrafter2Backbone) -> None:
    """On seed, prompt and `use_scale`, and on nothing else."""
    config = resolve_config("swift", backbone.spec)
    plain = VideoCrafter2Backbone(backbone.spec, backbone.device, replace(SETTINGS, use_scale=False))
    plain.text, plain.network, plain.vae = backbone.text, backbone.network, backbone.vae
    pipeline = LongVideoPipeline(backbone, config)
    frames = pipeline("a red ball", num_frames=1).pixels
    assert np.array_equal(np.stack(list(pipeline.stream("a red ball", num_frames=1))), frames)
    for other in (
        pipeline("a red ball", num_frames=1, seed=2),
        pipeline("zzz", num_frames=1),
        LongVideoPipeline(plain, config)("a red ball", num_frames=1),
    ):
        assert not np.array_equal(other.pixels, frames)


@pytest.mark.ray
@pytest.mark.slow  # the model's own parts are tested above, runs with other models elsewhere
def test_a_run_from_end_to_end(converted: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red ball\nzzz\n")
    command = [sys.executable, "-m", "jobs.cli", "generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out")]
    size = ["--height", "48", "--width", "32", "--num-frames", "3"]
    done = subprocess.run(
        [*command, "--model", str(converted), *size, "--num-actors", "1", "--quiet", "--json"],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["ok"] == 2
    for file in (tmp_path / "out" / "video").rglob("*.mp4"):
        frames = imageio_ffmpeg.read_frames(str(file))
        assert next(frames)["size"] == (32, 48)
        assert len(list(frames)) == 3


def test_the_settings_written_are_all_there_are(converted: Path) -> None:
    assert json.loads((converted / "miga.json").read_text()) == asdict(SETTINGS)


def test_a_dry_run_of_the_published_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without network; the run itself says what to do, before it makes anything."""
    (tmp_path / "prompts.txt").write_text("a red ball\n")
    run = ["generate", str(tmp_path / "prompts.txt"), str(tmp_path / "out"), "--model", PUBLISHED_NAME]
    assert main([*run, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == PUBLISHED_NAME
    assert main(run) == 2
    assert "miga convert model.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
