"""Pictures through the Python API and `miga sample`, from a model's folder to frames."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miga import LongVideoPipeline
from miga.errors import BadRowError, ConfigError
from miga.pictures import read_picture
from tests.tiny_wan import SETTINGS, build_tiny_image_wan

HEIGHT, WIDTH = SETTINGS["height"], SETTINGS["width"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    levels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(levels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file)
    return file


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_image_wan(tmp_path_factory.mktemp("models") / "i2v", "i2v")


@pytest.mark.slow
def test_a_chain_of_an_image_model(image_folder: Path, picture: Path) -> None:
    pipe = LongVideoPipeline.from_pretrained(image_folder, profile="svi-film", sampler={"num_steps": 2})
    video = pipe("a red ball", image=picture, num_frames=37)
    assert video.pixels.shape == (37, HEIGHT, WIDTH, 3)
    assert np.array_equal(pipe("a red ball", image=Image.open(picture), num_frames=37).pixels, video.pixels)
    other = Image.open(picture).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert not np.array_equal(pipe("a red ball", image=other, num_frames=37).pixels, video.pixels)
    with pytest.raises(BadRowError, match="begins with a picture"):
        pipe("a red ball")
    with pytest.raises(BadRowError, match="trained with a first picture alone"):
        pipe("a red ball", image=picture, last_image=picture, num_frames=37)
    with pytest.raises(ConfigError, match="never shown a window"):
        LongVideoPipeline.from_pretrained(image_folder, profile="stage-2-only")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["i2v", "i2v-a14b"])
def test_windows_of_an_image_model(tmp_path: Path, picture: Path, kind: str) -> None:
    """Windows that do not begin with the picture are shown it too, and what is read of it; without it there is none."""
    folder = build_tiny_image_wan(tmp_path / kind, kind)
    settings = {"num_steps": 8, "zigzag_width": 2, "handoff_level": 3, "judged_group": 1, "stride": 2}
    settings |= {"num_guidance_latents": 2, "unified_stride": 2}
    pipe = LongVideoPipeline.from_pretrained(folder, profile="swift", sampler=settings)
    made = {flipped: pipe("a red ball", image=_flipped(picture, flipped), num_frames=57).pixels for flipped in (0, 1)}
    assert made[0].shape == (57, HEIGHT, WIDTH, 3)
    assert not np.array_equal(made[0][-4:], made[1][-4:]), "the last latents know of the picture"
    assert np.array_equal(pipe("a red ball", image=picture, num_frames=57).pixels, made[0])
    with pytest.raises(BadRowError, match="begins with a picture"):
        pipe("a red ball", num_frames=57)
    with pytest.raises(BadRowError, match="takes a first picture alone"):
        pipe("a red ball", image=picture, last_image=picture, num_frames=57)


def _flipped(picture: Path, is_flipped: int) -> Image.Image:
    found = Image.open(picture)
    return found.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_flipped else found


@pytest.mark.slow
def test_the_first_frame_is_the_picture(tmp_path: Path, picture: Path) -> None:
    """In the queue of `swift`, and in the sample's file: the first latent is the picture's, encoded and decoded."""
    folder = build_tiny_image_wan(tmp_path / "ti2v", "ti2v")
    pipe = LongVideoPipeline.from_pretrained(folder, profile="swift")
    video = pipe("a red ball", image=np.asarray(Image.open(picture)), num_frames=29)
    backbone = pipe.backbone
    with torch.inference_mode():
        frame = read_picture(picture).fitted(HEIGHT, WIDTH)
        expected = backbone.frame_decoder().decode(backbone.encode_frames(frame[None]))  # type: ignore[attr-defined]
    assert np.abs(video.pixels[:1].astype(int) - expected.numpy().astype(int)).max() <= 1
    without = pipe("a red ball", num_frames=29).pixels
    assert not np.array_equal(without[1:5], video.pixels[1:5]), "the frames behind it know of it"

    from jobs.sampling.make import make_sample, plan_sample
    from pipeline.config import RunConfig

    config = RunConfig(model=str(folder), profile="swift", num_frames=29)
    plan = plan_sample("a red ball", str(tmp_path / "a.mp4"), config, image=str(picture), device="cpu")
    made = make_sample(plan)
    assert made["image_sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert made["num_frames"] == 29
    with pytest.raises(BadRowError, match=r"does not exist"):
        plan_sample("a red ball", str(tmp_path / "b.mp4"), config, image=str(tmp_path / "none.png"), device="cpu")
