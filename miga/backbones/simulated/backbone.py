"""The simulated model: latents that depend on all that a model's depend on, in the time that its name says.

Legend: B windows in a batch, F latents, C channels, H, W cells.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.simulated.faults import Fault
from miga.backbones.simulated.gpu import SimulatedGpu, speed_of_process
from miga.backbones.simulated.spec import NUM_CHANNELS, PIXELS_PER_CELL, SimulatedOptions
from miga.cached_call import CachedCall
from miga.config import SamplerConfig
from miga.errors import BadRowError, NonFiniteError
from miga.frame_texts import SeveralConditions
from miga.schedule import NoiseSchedule

MAX_PROMPT_BYTES: Final = 4096


class SimulatedCondition:
    """A prompt and a negative prompt, as numbers; and the fault that the prompt asks for, with its count of calls."""

    def __init__(self, prompt: str, negative: str, fault: Fault | None) -> None:
        self.prompt_C, self.negative_C = _numbers_of(prompt), _numbers_of(negative)
        self.fault = fault
        self.num_calls = 0


def _numbers_of(text: str) -> torch.Tensor:
    """A number per channel in [-1, 1], other ones for every text."""
    digest = hashlib.sha256(text.encode()).digest()
    return torch.tensor([byte / 127.5 - 1.0 for byte in digest[:NUM_CHANNELS]], dtype=torch.float32)


@dataclass
class SimulatedCache:
    """What a simulated network keeps of latents, by slot."""

    means: list[torch.Tensor]

    def blend(self, into: Sequence[int], evicted: Sequence[int], keep: float) -> None:
        """See `KvCache.blend`."""
        for slot, gone in zip(into, evicted, strict=True):
            self.means[slot] = keep * self.means[slot] + (1.0 - keep) * self.means[gone]


class SimulatedDenoiser:
    """See `miga.backbones.base.BranchedDenoiser`. Sums of neighbours only: no result depends on how it is computed.

    Where latents have positions, neighbours count the less, the further off they are.
    """

    takes_positions = True

    def __init__(
        self,
        gpu: SimulatedGpu,
        options: SimulatedOptions,
        full_window: int,
        config: SamplerConfig,
        schedule: NoiseSchedule,
    ) -> None:
        self.window, self.schedule = config.window, schedule
        self._gpu, self._options, self._full_window = gpu, options, full_window
        self._guidance_scale = config.guidance_scale
        self._guided_levels = (config.guidance_low_level, config.guidance_high_level)
        self.frame_attention, self.time_rotation = config.frame_attention, config.time_rotation  # which change nothing

    def __call__(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[SimulatedCondition],
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted clean latents, float32, after their time.

        Raises:
            NonFiniteError: if a prompt asks for NaN.
        """
        branches = range(self.num_branches(level_BF))
        predictions = [self.predict_branch(x_BFCHW, level_BF, conditions, branch, position_BF) for branch in branches]
        return self.combine(x_BFCHW, level_BF, predictions)

    def num_branches(self, level_BF: torch.Tensor) -> int:
        """See `BranchedDenoiser`."""
        return 2 if self._guidance_scale != 1.0 and bool(self._is_guided(level_BF).any()) else 1

    @torch.no_grad()
    def predict_branch(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        conditions: Sequence[SimulatedCondition],
        branch: int,
        position_BF: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted clean latents under the prompt (branch 0) or the negative prompt (1)."""
        batch, length = level_BF.shape
        with self._gpu.taken(batch * self._options.call_s / 2 * length / self._full_window):
            parts = [_parts(condition) for condition in conditions]
            struck = [] if branch else [fault for each in parts for part in each if (fault := self._struck(part))]
            texts_C = [
                each[0].negative_C if branch else torch.stack([part.prompt_C for part in each]).mean(0)
                for each in parts
            ]
            clean_BFCHW = self._forward(x_BFCHW, level_BF, texts_C, position_BF)
            return clean_BFCHW * math.nan if any(fault.kind == "nan" for fault in struck) else clean_BFCHW

    @torch.no_grad()
    def combine(
        self, x_BFCHW: torch.Tensor, level_BF: torch.Tensor, predictions: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """See `BranchedDenoiser`."""
        clean_BFCHW = predictions[0]
        if len(predictions) > 1:
            scale_BF = 1.0 + (self._guidance_scale - 1.0) * self._is_guided(level_BF).float()
            clean_BFCHW = predictions[1] + scale_BF[..., None, None, None] * (clean_BFCHW - predictions[1])
        if not torch.isfinite(clean_BFCHW).all():
            raise NonFiniteError("the network returned NaN or infinity", hint="the prompt asked for it")
        return clean_BFCHW

    def open_cache(self, num_slots: int, latent_size: tuple[int, int], **others: Any) -> Any:
        """See `CachedDenoiser.open_cache`; the mean of what is shown is all that is kept, by slot."""
        return SimulatedCache([torch.zeros(())] * num_slots)

    @torch.no_grad()
    def call_cached(
        self, x_BFCHW: torch.Tensor, call: CachedCall, conditions: Sequence[SimulatedCondition]
    ) -> torch.Tensor:
        """See `CachedDenoiser.call_cached`: the time of a window as long as the call."""
        level_BF = torch.full(x_BFCHW.shape[:2], self.schedule.num_steps)
        seen = torch.stack([*(call.cache.means[slot] for slot in call.slots), torch.zeros(())]).mean()
        for mean, slot in zip(x_BFCHW.float().mean((0, 2, 3, 4)), call.writes, strict=True):
            if slot >= 0:
                call.cache.means[slot] = mean
        return self.predict_branch(x_BFCHW + 0.1 * seen, level_BF, conditions, 0)

    def _is_guided(self, level_BF: torch.Tensor) -> torch.Tensor:
        return (self._guided_levels[0] <= level_BF) & (level_BF <= self._guided_levels[1])

    def _struck(self, condition: SimulatedCondition) -> Fault | None:
        condition.num_calls += 1
        fault = condition.fault
        if fault is None or not fault.happens(condition.num_calls, self._options.marks):
            return None
        fault.strike()
        return fault

    def _forward(
        self,
        x_BFCHW: torch.Tensor,
        level_BF: torch.Tensor,
        texts_C: Sequence[torch.Tensor],
        position_BF: torch.Tensor | None,
    ) -> torch.Tensor:
        x_BFCHW = x_BFCHW.float()
        before = torch.cat([x_BFCHW[:, :1], x_BFCHW[:, :-1]], 1)
        behind = torch.cat([x_BFCHW[:, 1:], x_BFCHW[:, -1:]], 1)
        if position_BF is not None:
            gap = position_BF.diff(dim=1).to(x_BFCHW)[..., None, None, None]
            before[:, 1:] /= gap
            behind[:, :-1] /= gap
        sigma = self.schedule.at(self.schedule.sigma, level_BF, x_BFCHW)
        text_BCHW = torch.stack(list(texts_C))[:, None, :, None, None]
        mixed = 0.6 * x_BFCHW + 0.25 * before + 0.15 * behind + 0.3 * text_BCHW
        return mixed / (1.0 + mixed.abs()) * (1.0 - 0.3 * sigma)


def _parts(condition: SimulatedCondition | SeveralConditions) -> tuple[SimulatedCondition, ...]:
    """The conditions of the prompts that a window stands under."""
    return condition.conditions if isinstance(condition, SeveralConditions) else (condition,)


class SimulatedFrameDecoder:
    """See `miga.backbones.base.FrameDecoder`. Frames pass over from the latent before, evenly."""

    def __init__(self, gpu: SimulatedGpu, decode_s: float, spec: BackboneSpec) -> None:
        self._gpu, self._decode_s, self._spec = gpu, decode_s, spec
        self._last_CHW: torch.Tensor | None = None

    @torch.no_grad()
    def decode(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """Frames uint8 on the CPU."""
        spec = self._spec
        frames = [torch.zeros(0, spec.height, spec.width, 3, dtype=torch.uint8)]
        for x_CHW in x_FCHW.float():
            with self._gpu.taken(self._decode_s):
                count = spec.frames_first_latent if self._last_CHW is None else spec.frames_per_latent
                before_CHW = x_CHW if self._last_CHW is None else self._last_CHW
                frames += [
                    _picture(before_CHW + (x_CHW - before_CHW) * ((number + 1) / count))[None]
                    for number in range(count)
                ]
                self._last_CHW = x_CHW.clone()
        return torch.cat(frames)


def _picture(x_CHW: torch.Tensor) -> torch.Tensor:
    """The first three channels as colours `[height, width, 3]`."""
    colour_3HW = (x_CHW[:3].clamp(-1.0, 1.0) * 127.5 + 127.5).round().to(torch.uint8)
    large = colour_3HW.repeat_interleave(PIXELS_PER_CELL, 1).repeat_interleave(PIXELS_PER_CELL, 2)
    return large.permute(1, 2, 0)


class SimulatedBackbone:
    """See `miga.backbones.base.Backbone`.

    Args:
        spec: of the model.
        options: what stands behind its name.
        schedule_of: its noise schedule under settings of the sampler.
        components: parts to load, as for a model.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        options: SimulatedOptions,
        schedule_of: Callable[[SamplerConfig], NoiseSchedule],
        components: Sequence[str] = ("text", "denoiser", "vae"),
    ) -> None:
        self.spec, self.options, self._schedule_of = spec, options, schedule_of
        self.device = torch.device("cpu")
        self.gpu = SimulatedGpu(speed_of_process())
        if "denoiser" in components:
            time.sleep(self.options.load_s)

    def check_prompt(self, prompt: str) -> None:
        """Finds a bad prompt.

        Raises:
            BadRowError: if it is blank, longer than 4,096 bytes, or asks for a fault that there is not.
        """
        if not prompt.strip():
            raise BadRowError("the prompt is blank", hint="describe the video, or remove the row")
        self._check_length(prompt)
        self._fault(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """The bytes of each prompt, float32 `[bytes, 1]`.

        Raises:
            BadRowError: if a prompt is longer than 4,096 bytes.
        """
        embeddings = []
        for prompt in prompts:
            self._check_length(prompt)
            time.sleep(self.options.text_s)
            embeddings.append(torch.tensor(list(prompt.encode()), dtype=torch.float32)[:, None])
        return embeddings

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> SimulatedCondition:
        """What the denoiser takes for the two prompts."""
        prompt, negative = (
            bytes(embedding[:, 0].to(torch.uint8).tolist()).decode()
            for embedding in (prompt_embedding, negative_embedding)
        )
        return SimulatedCondition(prompt, negative, self._fault(prompt))

    def denoiser(self, config: SamplerConfig) -> SimulatedDenoiser:
        """The network under the schedule and guidance scale of `config`."""
        schedule = self._schedule_of(config)
        return SimulatedDenoiser(self.gpu, self.options, self.spec.window, config, schedule)

    def frame_decoder(self) -> SimulatedFrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        return SimulatedFrameDecoder(self.gpu, self.options.decode_s, self.spec)

    def _fault(self, prompt: str) -> Fault | None:
        return Fault.of(prompt, self.options.marks) if self.options.faults else None

    @staticmethod
    def _check_length(prompt: str) -> None:
        if len(prompt.encode()) > MAX_PROMPT_BYTES:
            raise BadRowError(
                f"the prompt has {len(prompt.encode())} bytes, the simulated model reads {MAX_PROMPT_BYTES}",
                hint="shorten it, or give it as several prompts",
            )
