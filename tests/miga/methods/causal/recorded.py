"""Recordings of the systems' own programs on a tiny random model, and what plays them through ours.

`data/` holds numbers alone: of each recording the block noise, the draws, the prompts, what came out, and for some the
cache at the end. They were made on one CPU thread in float32; the draws of noise are recorded, since no generator is
shared.

Legend: F latents, C channels, H, W cells, N tokens, L text tokens, D channels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file

from miga.backbones.base import BackboneSpec
from miga.backbones.wan.causal.convert import diffusers_weights
from miga.backbones.wan.denoiser import WanDenoiser
from miga.generate import Sampler, VideoState
from miga.methods.causal.course import Causal
from miga.methods.causal.settings import CausalSettings
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from miga.schedule import few_step_schedule

DATA = Path(os.environ.get("MIGA_CAUSAL_RECORDINGS", Path(__file__).parent / "data"))
SHAPE = (4, 8, 6)


SPEC = BackboneSpec(
    family="wan", name="recorded", revision="", window=21, latent_channels=4, latent_height=8, latent_width=6,
    height=64, width=48, fps=16, noise_schedule="flow",
)  # fmt: skip


def settings(profile: str, **changes: Any) -> CausalSettings:
    """A preset's settings for the recordings' model, and changes."""
    config = resolve_config(profile, SPEC, changes)
    assert isinstance(config, CausalSettings)
    return config


@cache
def tiny_transformer() -> WanTransformer3DModel:
    """The recordings' model, its weights under diffusers' names."""
    config = json.loads((DATA / "tiny_model.json").read_text())["diffusers_config"]
    transformer = WanTransformer3DModel(**config)
    weights = diffusers_weights(load_file(DATA / "tiny_weights.safetensors"), transformer)
    transformer.load_state_dict(weights)
    return transformer.eval().requires_grad_(False)


class RecordedNoise:
    """A `NoiseSource` that hands out what was drawn then.

    Args:
        arrays: of a recording.
        config: by which draws are counted.
        num_given: latents that the video began with: they have no noise.
    """

    device = torch.device("cpu")
    latent_shape = SHAPE

    def __init__(self, arrays: Mapping[str, torch.Tensor], config: CausalSettings, num_given: int = 0) -> None:
        self.arrays, self.config, self.num_given = arrays, config, num_given
        self.num_drawn = 0

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        if purpose == "push":
            return self.arrays["noise"][0, [latent - self.num_given for latent in latents]]
        drawn = self.arrays[f"draw_{self.num_drawn:03d}"]
        self.num_drawn += 1
        if len(drawn) == len(latents):  # of a whole window's, what is used is in `data/`
            return drawn
        level = int(purpose.removeprefix("step@"))
        start = min(latents[0], (level - 1) * self.config.block)  # in its window
        return drawn[start : start + len(latents)]


class Spy:
    """A denoiser that keeps what it predicted, call by call, and the cache it was given."""

    def __init__(self, denoiser: WanDenoiser) -> None:
        self.denoiser = denoiser
        self.schedule, self.window = denoiser.schedule, denoiser.window
        self.predicted: list[torch.Tensor] = []
        self.timesteps: list[tuple[float, ...]] = []
        self.seen: list[int] = []
        self.cache: Any = None

    def __call__(self, *args: Any) -> torch.Tensor:
        raise AssertionError("a causal method calls with a cache")

    def open_cache(self, *args: Any, **kwargs: Any) -> Any:
        self.cache = self.denoiser.open_cache(*args, **kwargs)
        return self.cache

    def call_cached(self, x_BFCHW: torch.Tensor, call: Any, conditions: Sequence[Any]) -> torch.Tensor:
        out = self.denoiser.call_cached(x_BFCHW, call, conditions)
        self.predicted.append(out)
        self.timesteps.append(call.timesteps)
        self.seen.append(x_BFCHW.shape[1] * (x_BFCHW.shape[1] + len(call.slots) - call.num_unseen))
        return out


class PaddedText(WanDenoiser):
    """A denoiser whose texts are padded to the recordings' 8 tokens."""

    def call_cached(self, x_BFCHW: torch.Tensor, call: Any, conditions: Sequence[Any]) -> torch.Tensor:
        velocity = self._causal(x_BFCHW, call, [condition[0] for condition in conditions], 8)
        sigma = torch.tensor(call.sigmas, dtype=torch.float64)[:, None, None, None]
        return (x_BFCHW.double() - sigma * velocity.double()).float()


@dataclass
class Played:
    """A recording played.

    Attributes:
        output: clean latents.
        spy: what the network was asked.
        course: the method, as it stands at the end.
        arrays: of the recording.
    """

    output: torch.Tensor
    spy: Spy
    course: Causal
    arrays: Mapping[str, torch.Tensor]

    @property
    def error(self) -> float:
        """The largest difference to what came out then."""
        return float((self.output - self.arrays["output"][0]).abs().max())


def spied(config: CausalSettings) -> Spy:
    schedule = few_step_schedule(config.timesteps, config.flow_shift)
    return Spy(PaddedText(tiny_transformer(), schedule, config.window, 1.0))


def play(
    name: str,
    config: CausalSettings,
    *,
    switches: Sequence[int] = (),
    actions: Mapping[int, Any] | None = None,
    num_given: int = 0,
    policy: Any = None,
) -> Played:
    """Plays a recording.

    Args:
        name: of the recording.
        config: the settings.
        switches: latents from which on the next prompt stands.
        actions: what happens then, by prompt, where that is not the config's.
        num_given: latents that it begins with.
        policy: who leaves the cache, where the config does not say it.
    """
    arrays = load_file(DATA / f"{name}.safetensors")
    prompts = [(arrays[key], arrays[key]) for key in sorted(arrays) if key.startswith("prompt_")]
    spy = spied(config)
    total = arrays["output"].shape[1]
    noise = RecordedNoise(arrays, config, num_given)
    sampler = Sampler(spy, config, track(prompts, switches), noise, total)
    course = sampler.method
    course.actions = actions or {}
    course.policy = policy or course.policy
    state = VideoState(method=course.start(arrays["output"][0, :num_given] if num_given else None))
    parts = []
    while not sampler.is_done(state):
        state, finished = sampler.advance(state)
        if finished is not None:
            parts.append(finished)
    return Played(torch.cat(parts), spy, course, arrays)


def track(prompts: Sequence[Any], switches: Sequence[int]) -> PromptTrack:
    return PromptTrack(prompts[: len(switches) + 1], starts=(0, *switches) if switches else ())
