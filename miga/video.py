"""A prompt in, frames out as they are finished: what the Python API and the cluster's actors both run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from miga.backbones.base import Backbone
from miga.beam_search import Features
from miga.config import SamplerConfig
from miga.consistency import ConsistencyMeter
from miga.denoise_pass import RunWindows
from miga.generate import Sampler
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.reflection import ReflectionTrace


@dataclass(frozen=True)
class Progress:
    """One pass further, or one latent of those that a pass has finished.

    Attributes:
        frames: finished frames that follow those of the step before, uint8 `[F, H, W, 3]`, of one latent; None where a
            pass has finished none.
        num_latents_done: latents whose frames have been handed out.
        num_calls: network calls so far.
        decode_s: seconds spent on decoding so far.
        trace: what self-reflection has done so far.
        final_consistency: scores of the finished latents so far, chunk by chunk.
    """

    frames: np.ndarray | None
    num_latents_done: int
    num_calls: int
    decode_s: float
    trace: ReflectionTrace
    final_consistency: Sequence[float]


def make_video(
    backbone: Backbone,
    config: SamplerConfig,
    prompt_embeddings: Sequence[torch.Tensor],
    negative_embedding: torch.Tensor,
    num_latents: int | None,
    seed: int,
    *,
    latents_per_prompt: int | None = None,
    run_windows: RunWindows | None = None,
    features: Features | None = None,
) -> Iterator[Progress]:
    """Makes one video, a pass at a time, in memory that does not grow with its length.

    Frames leave latent by latent: the last pass of a video finishes all that Stage 2 still held, on Wan2.1 up to 180
    latents, whose frames together would be 0.8 GiB.

    Args:
        backbone: the loaded model.
        config: the sampler's settings.
        prompt_embeddings: one per prompt, in turn (`Backbone.encode_prompts`).
        negative_embedding: what guidance steers away from.
        num_latents: length of the video; None for one without end.
        seed: of all its noise.
        latents_per_prompt: latents that stand under each prompt; by default an even share (of a video without end:
            one window).
        run_windows: who runs the windows of a pass; by default the backbone, `config.windows_per_batch` at a time.
        features: what ScalingNoise's search compares latents by; None: the latents themselves.
    """
    conditions = [backbone.condition(embedding, negative_embedding) for embedding in prompt_embeddings]
    if latents_per_prompt is not None:
        track = PromptTrack(conditions, latents_per_prompt)
    elif num_latents is not None:
        track = PromptTrack.spread(conditions, num_latents)
    else:
        track = PromptTrack(conditions, config.window)
    noise = NamedNoise(seed, backbone.spec.latent_shape, backbone.device)
    sampler = Sampler(backbone.denoiser(config), config, track, noise, num_latents, run_windows, features=features)
    decoder, meter, decode_s = backbone.frame_decoder(), ConsistencyMeter(), 0.0
    state, num_done = sampler.start(), 0
    while not sampler.is_done(state):
        with torch.inference_mode():  # not around a yield: the caller's code must not run in it
            state, finished = sampler.advance(state)
            if finished is not None:
                meter.add(finished)
        if num_latents is None:
            meter.scores.clear()
        if finished is None:
            yield Progress(None, num_done, sampler.num_calls, decode_s, state.trace, meter.scores)
            continue
        for number in range(len(finished)):
            started_s = time.monotonic()
            with torch.inference_mode():
                frames = decoder.decode(finished[number : number + 1]).cpu().numpy()
            decode_s += time.monotonic() - started_s
            num_done += 1
            yield Progress(frames, num_done, sampler.num_calls, decode_s, state.trace, meter.scores)
