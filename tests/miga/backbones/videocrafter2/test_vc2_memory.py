"""VideoCrafter2 on a card, in a machine, and at other sizes: what is counted is what full-size modules hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from miga import LongVideoPipeline
from miga.backbones.family import ModelOptions
from miga.backbones.memory_plan import card_bytes, check_machine_memory, plan_memory
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import load_spec, require_footprint
from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from miga.backbones.videocrafter2.checkpoint import Architecture
from miga.backbones.videocrafter2.footprint import VideoCrafter2Architecture, load_architecture
from miga.backbones.videocrafter2.spec import PUBLISHED, PUBLISHED_NAME
from miga.backbones.videocrafter2.unet import UNetConfig, VideoCrafter2UNet
from miga.backbones.videocrafter2.vae import VideoCrafter2FrameDecoder
from miga.errors import ModelError
from miga.profiles import resolve_config
from tests.alive_bytes import AliveBytes, shapes_only

SPEC = PUBLISHED[PUBLISHED_NAME]


def count(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.slow
def test_weights_of_the_published_model() -> None:
    published, plan = Architecture(), VideoCrafter2Architecture()
    assert plan.transformer_bytes(itemsize=1) == count(published.build("unet"))
    assert plan.vae_parameters == count(published.build("vae"))
    assert plan.text_parameters == count(published.build("text_encoder"))


def test_weights_of_a_folder(converted: Path) -> None:
    backbone = VideoCrafter2Backbone.from_pretrained(converted, device="cpu")
    plan = load_architecture(converted)
    assert plan.transformer_bytes(itemsize=1) == count(backbone.network)
    assert plan.vae_parameters == count(backbone.vae)
    assert plan.text_parameters == count(backbone.text.encoder)


@pytest.mark.slow
def test_activations_of_a_call() -> None:
    """What a call over a window takes beyond what one over a single cell takes, where weights are all there is."""
    plan, peaks = VideoCrafter2Architecture(), []
    with shapes_only(torch.bfloat16):
        unet = VideoCrafter2UNet(UNetConfig())
        for shape in ((1, 1, 1), (16, 40, 64), (16, 72, 128)):
            with AliveBytes() as alive:
                unet(torch.randn(1, 4, *shape), torch.full((1, shape[0]), 5), torch.randn(1, 77, 1024), torch.ones(1))
            peaks.append(alive.peak)
    for peak, size in zip(peaks[1:], ((320, 512), (576, 1024)), strict=True):
        planned = plan.window_bytes(plan.resized(SPEC, *size), 16, torch.bfloat16)
        assert peak - peaks[0] <= planned <= 1.1 * (peak - peaks[0])


def test_activations_of_a_decode() -> None:
    with shapes_only():
        down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
        vae = AutoencoderKL(**Architecture().vae, latent_channels=4, down_block_types=down, up_block_types=up)
        with AliveBytes() as alive:
            vae.decode(torch.randn(1, 4, 40, 64))
    planned = 4 * 40 * 64 * VideoCrafter2Architecture().vae_peak_per_cell
    assert alive.peak <= planned <= 1.1 * alive.peak


def test_plans() -> None:
    sampler = resolve_config("paper", SPEC)
    chosen = plan_memory(VideoCrafter2Architecture(), SPEC, sampler, card_bytes(8))
    assert (chosen.fp8, chosen.vae_dtype) == (False, torch.float32)
    assert chosen.transformer_bytes == 2 * 1_413_284_420
    # latents in flight: 55 levels of 4 in Stage 1, 9 passes of at most 15 waiting in Stage 2; DDIM keeps nothing
    assert chosen.queue_bytes == (55 * 4 + 76) * 2 * 4 * 40 * 64 * 4
    assert chosen.decodes_beside
    assert "there is room for it too in float32" in chosen.reason
    large = VideoCrafter2Architecture().resized(SPEC, 576, 1024)
    for card_gb, beside in ((12, True), (8, False)):
        chosen = plan_memory(VideoCrafter2Architecture(), large, sampler, card_bytes(card_gb))
        assert (chosen.vae_dtype, chosen.decodes_beside) == (torch.float32, beside)
    with pytest.raises(ModelError, match=r"needs 4.* GB .* the card has 4\.2 GB") as error:
        plan_memory(VideoCrafter2Architecture(), SPEC, sampler, card_bytes(4))
    assert "a card of 8 GB" in error.value.hint


def test_room_in_a_machine_without_a_gpu() -> None:
    sampler, plan = resolve_config("paper", SPEC), VideoCrafter2Architecture()
    check_machine_memory(plan, SPEC, sampler, 2, 24 * 10**9)
    with pytest.raises(ModelError, match=r"2 actors of .* need 20\.4 GB .* this machine has 13\.0 GB left") as error:
        check_machine_memory(plan, SPEC, sampler, 2, 13 * 10**9)
    assert error.value.hint == ('what would fit: num_actors = 1, or dtype = "bfloat16" and text_dtype = "bfloat16"')
    with pytest.raises(ModelError) as error:
        check_machine_memory(plan, SPEC, sampler, 2, 3 * 10**9)
    assert "even one actor in bfloat16 needs" in error.value.hint


def test_a_memory_plan_is_carried_out(converted: Path) -> None:
    backbone = VideoCrafter2Backbone.from_pretrained(converted, device="cpu", components=("denoiser", "vae"))
    z = torch.randn(2, *backbone.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    exact = backbone.frame_decoder().decode(z).float()
    plan = plan_memory(
        require_footprint(backbone.spec.name), backbone.spec, resolve_config("swift", backbone.spec), 10**10
    )
    configure(backbone, ModelOptions(), memory=replace(plan, vae_dtype=torch.bfloat16), device="cpu")
    assert backbone.vae.dtype == torch.bfloat16
    rounded = backbone.frame_decoder().decode(z).float()
    assert 0 < float((rounded - exact).abs().mean()) < 3  # of 255: rounded, and nothing worse


def test_another_size(converted: Path) -> None:
    spec = load_spec(str(converted))
    larger = configured_spec(spec, ModelOptions(height=48, width=80))
    assert (larger.height, larger.width, larger.latent_shape) == (48, 80, (4, 6, 10))
    assert (larger.window, larger.revision) == (spec.window, spec.revision)
    published = configured_spec(SPEC, ModelOptions(width=1024, height=576))
    assert published.latent_shape == (4, 72, 128)
    ratio = (576 * 1024) / (320 * 512)
    assert ratio < published.forward_flops / SPEC.forward_flops < ratio**2, "attention grows faster than the area"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ModelOptions(height=360), "height 360 is no multiple of 64 .* nearest is 320 or 384"),
        (ModelOptions(width=32), "width 32 is no multiple of 64 .* nearest is 64"),
        (ModelOptions(compile=True), "family 'videocrafter2', which takes no "),
        (ModelOptions(lora=("style.safetensors",), height=384), "family 'videocrafter2', which takes no "),
        (ModelOptions(attention="native"), "family 'videocrafter2', which takes no "),
    ],
)
def test_options_that_cannot_be(options: ModelOptions, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error:
        configured_spec(SPEC, options)
    assert error.value.hint


@pytest.mark.slow
def test_a_video_of_another_size_and_a_shorter_window(converted: Path) -> None:
    sampler = {"window": 4, "num_guidance_latents": 1, "num_steps": 4, "num_reflection_guidance_latents": 2}
    pipe = LongVideoPipeline.from_pretrained(
        str(converted), device="cpu", height=48, width=32, profile="no-reflection", sampler=sampler
    )
    video = pipe("a red ball", num_frames=7)
    assert video.frames.shape == (7, 48, 32, 3)
    assert video.pixels.std(axis=(0, 1, 2)).min() > 5, "frames of one colour would tell nothing"


def test_a_call_at_another_size_is_the_networks_own(converted: Path) -> None:
    """Latents of a size and length that it was not trained on go through the network as they are."""
    backbone = VideoCrafter2Backbone.from_pretrained(converted, device="cpu", components=("denoiser", "vae"))
    config = resolve_config("no-reflection", backbone.spec, {"guidance_scale": 1.0})
    denoiser = backbone.denoiser(config)
    x = torch.randn(1, 5, 4, 6, 10, generator=torch.Generator().manual_seed(1))
    text = torch.randn(77, 32, generator=torch.Generator().manual_seed(2))
    level = torch.tensor([[1, 3, 3, 6, 8]])
    with torch.no_grad():
        fps = torch.tensor([backbone.settings.fps_condition])
        eps = backbone.network(x.transpose(1, 2), denoiser.schedule.timestep[level], text[None], fps).transpose(1, 2)
    alpha, sigma = (
        denoiser.schedule.at(table, level, x) for table in (denoiser.schedule.alpha, denoiser.schedule.sigma)
    )
    torch.testing.assert_close(denoiser(x, level, [(text, text)]), (x - sigma * eps) / alpha, rtol=1e-5, atol=1e-5)
    frames = VideoCrafter2FrameDecoder(backbone.vae).decode(x[0])
    assert frames.shape == (5, 48, 80, 3)
    assert not np.array_equal(frames[0].numpy(), frames[1].numpy())
