"""A first latent that is given: in every method's windows it is shown clean, at level 0, and it stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miga.generate import Sampler
from miga.image_condition import Pictures
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from tests.miga.closed_form import SHAPE, MixingDenoiser, profile_config
from tests.miga.test_video_run import stepped

NUM_LATENTS, SEED = 14, 3
PROFILES = ["swift", "paper", "released", "fifo", "fifo-literal", "stage-2-only"]
GIVEN = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))


class Watching(MixingDenoiser):
    """Counts the windows that show the given latent; it is clean and at level 0 in all of them."""

    num_seen = 0

    def __call__(self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, conditions: Sequence[float]) -> torch.Tensor:
        for x_FCHW, level_F in zip(x_BFCHW, level_BF, strict=True):
            is_given_F = (x_FCHW == GIVEN[0]).flatten(1).all(1)
            self.num_seen += int(is_given_F.any())
            assert bool((level_F[is_given_F] == 0).all())
        return super().__call__(x_BFCHW, level_BF, conditions)


def latents_of(config: Any, *, has_picture: bool = True, **more: Any) -> tuple[torch.Tensor, int]:
    spec = SimpleNamespace(image_input="first_latent", name="test", takes_last_image=False)
    backbone: Any = SimpleNamespace(spec=spec, encode_frames=lambda frames_FCHW: GIVEN)
    pictures = Pictures(backbone, torch.zeros(3, 8, 8)) if has_picture else None
    denoiser = Watching(config)
    noise = NamedNoise(SEED, SHAPE)
    sampler = Sampler(denoiser, config, PromptTrack([0.5]), noise, NUM_LATENTS, pictures=pictures, **more)
    finished = [latents for _, latents in sampler.run() if latents is not None]
    return torch.cat(finished), denoiser.num_seen


@pytest.mark.parametrize("profile", PROFILES)
def test_it_is_kept(profile: str) -> None:
    config = profile_config(profile)
    latents, num_seen = latents_of(config)
    assert num_seen >= config.num_steps
    assert torch.allclose(latents[:1], GIVEN, atol=1e-5)
    without, _ = latents_of(config, has_picture=False)
    assert float((latents[1:4] - without[1:4]).abs().max()) > 1e-3, "the latents behind it know of it"


@pytest.mark.parametrize("profile", ["paper", "fifo"])
def test_windows_elsewhere_show_the_same(profile: str) -> None:
    config = profile_config(profile)
    assert torch.equal(latents_of(config)[0], latents_of(config, executor=stepped(config))[0])
