"""Streaming decode equals decoding everything at once, exactly."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan

from miga.backbones.sprites.train_vae import decode_unclamped
from miga.backbones.wan.vae import WanFrameDecoder
from tests.tiny_wan import NUM_CHANNELS, build_vae


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    return build_vae(residual=request.param)


def latents(num_latents: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_latents, NUM_CHANNELS, 4, 6, generator=torch.Generator().manual_seed(seed)) * 2.0


@torch.no_grad()
def decode_all(vae: AutoencoderKLWan, x_FCHW: torch.Tensor) -> torch.Tensor:
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    z = x_FCHW.transpose(0, 1)[None] / (1.0 / std) + mean
    return (vae.decode(z).sample[0].permute(1, 2, 3, 0) * 0.5 + 0.5).clamp(0.0, 1.0)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [1, 3, 3], [2, 5]])
def test_chunks_equal_the_whole(vae: AutoencoderKLWan, chunks: list[int]) -> None:
    x = latents(7)
    decoder = WanFrameDecoder(vae)
    frames = torch.cat([decoder.decode_float(chunk) for chunk in x.split(chunks)])
    assert frames.shape == (25, 32, 48, 3)
    assert torch.equal(frames, decode_all(vae, x))


def test_interleaved_decoders_do_not_disturb_each_other(vae: AutoencoderKLWan) -> None:
    xs = [latents(4, seed=1), latents(4, seed=2)]
    decoders = [WanFrameDecoder(vae), WanFrameDecoder(vae)]
    frames: list[list[torch.Tensor]] = [[], []]
    for index in range(4):
        for which in (0, 1):
            frames[which].append(decoders[which].decode_float(xs[which][index : index + 1]))
    for which in (0, 1):
        assert torch.equal(torch.cat(frames[which]), decode_all(vae, xs[which]))


def test_bytes_are_rounded(vae: AutoencoderKLWan) -> None:
    x = latents(3)
    frames = WanFrameDecoder(vae).decode(x)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, (decode_all(vae, x) * 255.0).round().to(torch.uint8))


def test_no_latents_are_no_frames(vae: AutoencoderKLWan) -> None:
    decoder = WanFrameDecoder(vae)
    assert decoder.decode(latents(0)).shape == (0, 32, 48, 3)
    assert decoder.decode(latents(1)).shape == (1, 32, 48, 3)


def test_memory_does_not_grow(vae: AutoencoderKLWan) -> None:
    decoder = WanFrameDecoder(vae)

    def held() -> int:
        assert decoder._features is not None
        return sum(feature.numel() for feature in decoder._features if isinstance(feature, torch.Tensor))

    decoder.decode(latents(4))
    after_four = held()
    decoder.decode(latents(6))
    assert held() == after_four


def test_training_decodes_by_the_same_loop(vae: AutoencoderKLWan) -> None:
    """Where nothing is clamped it is diffusers' own decode; where something is, it goes on and has a gradient."""
    z = torch.randn(2, NUM_CHANNELS, 3, 4, 6, generator=torch.Generator().manual_seed(3)) * 4.0
    z.requires_grad_()
    free = decode_unclamped(vae, z)
    torch.testing.assert_close(free.clamp(-1.0, 1.0), vae.decode(z).sample, rtol=0, atol=1e-5)
    free.sum().backward()
    assert z.grad is not None
    assert bool((z.grad != 0).any(dim=1).all()), "every latent cell of every latent counts"
