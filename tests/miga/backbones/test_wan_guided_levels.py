"""Classifier-free guidance on an interval of levels: latent by latent, and one forward where no latent is in it."""

from __future__ import annotations

import torch

from miga.backbones.wan.denoiser import WanDenoiser
from miga.schedule import flow_unipc_schedule
from tests.tiny_wan import build_transformer

SCHEDULE = flow_unipc_schedule(12, 5.0)


def denoise(level_F: torch.Tensor, guidance_scale: float, levels: tuple[int, int] | None = None) -> tuple:
    torch.manual_seed(0)
    transformer = build_transformer().eval()
    calls: list[int] = []
    transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    generator = torch.Generator().manual_seed(1)
    config = transformer.config
    x = torch.randn(1, len(level_F), config.in_channels, 4, 4, generator=generator)
    texts = tuple(torch.randn(n, config.text_dim, generator=generator) for n in (5, 3))
    denoiser = WanDenoiser(transformer, SCHEDULE, 6, guidance_scale, levels)
    return denoiser(x, level_F[None], [texts])[0], len(calls)


def test_each_latent_by_its_own_level() -> None:
    level_F = torch.tensor([2, 4, 5, 7, 8, 11])
    guided, both = denoise(level_F, 5.0)
    plain, one = denoise(level_F, 1.0)
    mixed, calls = denoise(level_F, 5.0, (4, 7))
    inside = (level_F >= 4) & (level_F <= 7)
    assert (both, one, calls) == (2, 1, 2)
    torch.testing.assert_close(mixed[inside], guided[inside], rtol=0, atol=0)
    torch.testing.assert_close(mixed[~inside], plain[~inside], rtol=1e-5, atol=1e-5)
    assert (guided - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3, "guidance must show, or this tests nothing"


def test_a_call_without_a_latent_in_it_takes_one_forward() -> None:
    level_F = torch.tensor([1, 2, 3, 3])
    mixed, calls = denoise(level_F, 5.0, (4, 12))
    plain, _ = denoise(level_F, 1.0)
    assert calls == 1
    torch.testing.assert_close(mixed, plain, rtol=0, atol=0)
