"""The VAE against outputs recorded from latent diffusion's; one latent, one frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miga.backbones.videocrafter2.backbone import VideoCrafter2Backbone
from tests.tiny_videocrafter2 import recorded_text_vae

SCALE = 0.18215


@pytest.fixture(scope="module")
def backbone(converted: Path) -> VideoCrafter2Backbone:
    return VideoCrafter2Backbone.from_pretrained(converted, device="cpu", components=("vae",))


@torch.no_grad()
def test_recorded_encode_and_decode(backbone: VideoCrafter2Backbone) -> None:
    recorded = recorded_text_vae()
    posterior = backbone.vae.encode(recorded["vae.in.x"]).latent_dist
    torch.testing.assert_close(posterior.mean, recorded["vae.out.mean"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(posterior.logvar, recorded["vae.out.logvar"], rtol=1e-4, atol=2e-5)
    decoded = backbone.vae.decode(recorded["vae.out.mean"]).sample
    torch.testing.assert_close(decoded, recorded["vae.out.decode_of_mean"], rtol=1e-4, atol=2e-5)


def test_frames_are_the_recorded_ones(backbone: VideoCrafter2Backbone) -> None:
    recorded = recorded_text_vae()
    frames = backbone.frame_decoder().decode(recorded["vae.out.mean"] * SCALE)
    pixels = (recorded["vae.out.decode_of_mean"].clamp(-1, 1) + 1) * 127.5
    assert (frames.dtype, frames.device.type) == (torch.uint8, "cpu")
    assert frames.shape == (2, 32, 48, 3)
    assert (frames.permute(0, 3, 1, 2).float() - pixels).abs().max() < 0.501
    assert frames.float().std() > 5, "a picture of one colour would tell nothing"


def test_one_latent_at_a_time(backbone: VideoCrafter2Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of latents, and no frame depends on another."""
    x = torch.randn(5, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    single = torch.cat([backbone.frame_decoder().decode(x[number : number + 1]) for number in range(5)])
    sizes, decode = [], backbone.vae.decode
    monkeypatch.setattr(backbone.vae, "decode", lambda z, **kw: sizes.append(len(z)) or decode(z, **kw))
    assert torch.equal(backbone.frame_decoder().decode(x), single)
    assert sizes == [1] * 5


def test_no_latents_are_no_frames(backbone: VideoCrafter2Backbone) -> None:
    frames = backbone.frame_decoder().decode(torch.zeros(0, 4, 4, 6))
    assert (frames.shape, frames.dtype) == ((0, 32, 48, 3), torch.uint8)
