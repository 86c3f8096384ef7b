"""FreeNoise from noise to clean on the recorded UNet, through the sampler: the trajectories of its program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.videocrafter2.spec import PUBLISHED, PUBLISHED_NAME, Settings
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.errors import ConfigError
from miga.frame_attention import FrameAttention
from miga.generate import Sampler
from miga.methods.freenoise.attention import WindowedAttention
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from tests.tiny_videocrafter2 import architecture, recorded_unet, weight_names

FIXTURES = Path(__file__).parents[3] / "fixtures"
RECORDED = load_file(FIXTURES / "extended_attention.safetensors")
SOURCES = load_file(FIXTURES / "extended_methods.safetensors")["noise.source_frames"].long()
SPEC = PUBLISHED[PUBLISHED_NAME]
FPS = 16


class RecordedNoise:
    """The frames that the program began with, and numbers whose order is that in which it shuffled them."""

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        if purpose == "base":
            assert max(latents) < 16, "no frame behind the first window has noise of its own"
            return RECORDED["freenoise.noise.initial"].transpose(0, 1)[list(latents)]
        assert purpose == "shuffle"
        order = SOURCES[(latents[0] - 16) // 4] - (latents[0] - 16)
        return order.argsort().float()[:, None, None, None].expand(-1, 4, 8, 12)


@pytest.fixture(scope="module")
def unet() -> VideoCrafter2UNet:
    recorded, prefix = recorded_unet(), "weight."
    network = architecture().build("unet")
    weights = {name: recorded[prefix + name].float() for name in weight_names(recorded, prefix)}
    network.load_state_dict(weights, assign=True)
    assert isinstance(network, VideoCrafter2UNet)
    return network.eval()


def trajectory(
    unet: VideoCrafter2UNet,
    num_frames: int,
    num_steps: int,
    num_prompts: int,
    attention: FrameAttention | None = None,
) -> torch.Tensor:
    """The finished latents `[C, F, H, W]`."""
    config = resolve_config("freenoise", SPEC, {"num_steps": num_steps})
    denoiser = VideoCrafter2Denoiser(
        unet, schedule_of(config, Settings()), config.window, config.guidance_scale, FPS,
        frame_attention=attention or config.frame_attention, frame_texts=config.frame_texts,
    )  # fmt: skip
    texts, negative = RECORDED["freenoise.unet.context"][:num_prompts], RECORDED["freenoise.unet.negative"][0]
    track = PromptTrack([(text, negative) for text in texts])
    sampler = Sampler(denoiser, config, track, RecordedNoise(), num_frames)
    with torch.no_grad():
        return torch.cat([done for _, done in sampler.run() if done is not None]).transpose(0, 1)


def relative_rms(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def test_settings_are_the_programs() -> None:
    config = resolve_config("freenoise", SPEC)
    assert (config.num_steps, config.guidance_scale, config.solver, config.eta) == (50, 12.0, "ddim", 0.0)
    assert schedule_of(config, Settings()).timestep.tolist() == [1, *range(1, 1000, 20)]
    assert resolve_config("freelong", SPEC).eta == resolve_config("freepca", SPEC).eta == 1.0
    with pytest.raises(ConfigError, match="rotary positions"):
        resolve_config("riflex", SPEC)


@pytest.mark.slow
def test_freenoise_goes_the_way_of_its_program(unet: VideoCrafter2UNet) -> None:
    wanted = RECORDED["freenoise.ddim.x"][-1]
    assert relative_rms(trajectory(unet, 64, 5, 1), wanted) < 1e-4
    assert relative_rms(trajectory(unet, 64, 5, 1, WindowedAttention(16, 8)), wanted) > 1e-2


@pytest.mark.slow
def test_two_prompts_go_the_way_of_its_program(unet: VideoCrafter2UNet) -> None:
    wanted = RECORDED["freenoise.mp.ddim_x"][-1]
    assert relative_rms(trajectory(unet, 24, 20, 2), wanted) < 1e-4
    assert relative_rms(trajectory(unet, 24, 20, 1), wanted) > 1e-2
