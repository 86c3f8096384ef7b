"""Clip after clip: each is one window, denoised from noise under a condition that is made of the clip before.

Source: Stable Video Infinity, streaming inference; 2.0 Pro hands latents over.

Legend: F frames or latents, C channels, H, W pixels or cells; L tokens of a picture, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from miga.denoise_pass import Stepper
from miga.image_condition import Channels, Pictures, condition_of_frames, condition_of_latents
from miga.methods.base import Begin
from miga.methods.chain.settings import ChainSettings
from miga.queue import FrameQueue
from miga.windows import Window


@dataclass(frozen=True)
class ChainState:
    """A chain in the making.

    Attributes:
        queue: the clip in the making; empty behind the last one.
        y_FCHW: its condition. Of a plan, nothing.
        tokens_LD: what the network reads of its first given frame; empty where it reads nothing.
    """

    queue: FrameQueue
    y_FCHW: torch.Tensor
    tokens_LD: torch.Tensor


@dataclass(frozen=True)
class Chain:
    """Clip after clip. The latents of all clips follow one another; which frames are left out, `clips` says.

    Noise is named by a latent's place in the video, so every clip has noise of its own.
    """

    config: ChainSettings
    begin: Begin

    def start(self, clean_FCHW: object = None) -> ChainState:
        """The first clip, of noise, under the picture alone."""
        return self._clip(0, None)

    def advance(self, state: ChainState) -> tuple[ChainState, FrameQueue | None]:
        """The clip one level down; once it is clean it is finished, and the next one begins."""
        length = len(state.queue)
        clip = self._stepper(state).pass_over(state.queue, [Window((), 0, length, 0, length)])
        if int(clip.level_F[0]) > 0:
            return replace(state, queue=clip), None
        following, num_latents = clip.first + length, self.begin.num_latents
        finished = clip if num_latents is None else clip[: num_latents - clip.first]
        if num_latents is not None and following >= num_latents:
            return ChainState(clip[length:].compact(), state.y_FCHW[:0], state.tokens_LD[:0]), finished
        return self._clip(following, clip), finished

    def is_open(self, state: ChainState) -> bool:
        """Until the last clip is done; before its first pass where a last picture is its end."""
        pictures, num_latents = self.begin.pictures, self.begin.num_latents
        if pictures is None or pictures.last_CHW is None or num_latents is None:
            return len(state.queue) > 0
        return state.queue.first + self.config.window < num_latents

    def _clip(self, first: int, before: FrameQueue | None) -> ChainState:
        """A clip of noise from that latent on, behind the clip before (None: under the picture alone)."""
        noise = self.begin.stepper.noise_queue(first, self.config.window, self.config.num_steps, "push")
        pictures = self.begin.pictures
        if pictures is None:  # a plan looks at no latents
            return ChainState(noise, torch.empty(0), torch.empty(0))
        before_FCHW = None if before is None else before.x_FCHW
        num_latents = self.begin.num_latents
        is_last = num_latents is not None and first + self.config.window >= num_latents
        last_CHW = pictures.last_CHW if is_last else None
        if self.config.num_motion_frames:
            y_FCHW, shown_CHW = self._after_frames(pictures, before_FCHW, last_CHW)
        else:
            y_FCHW, shown_CHW = self._after_latents(pictures, before_FCHW)
        shown = [shown_CHW] if pictures.last_CHW is None else [shown_CHW, pictures.last_CHW]
        tokens_LD = pictures.backbone.image_tokens(torch.stack(shown))
        return ChainState(noise, y_FCHW, torch.empty(0, device=y_FCHW.device) if tokens_LD is None else tokens_LD)

    def _after_frames(
        self, pictures: Pictures, before_FCHW: torch.Tensor | None, last_CHW: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition behind the last frames of a clip, and the first one of them."""
        backbone, config = pictures.backbone, self.config
        given_FCHW = pictures.first_CHW[None]
        if before_FCHW is not None:
            given_FCHW = handed_over(backbone.decode_frames(before_FCHW)[-config.num_motion_frames :], config.hand_over)
        spec = backbone.spec
        num_frames = spec.frames_first_latent + (config.window - 1) * spec.frames_per_latent
        y_FCHW = condition_of_frames(
            backbone.encode_frames,
            given_FCHW,
            num_frames,
            spec.frames_per_latent,
            fill=config.fill,
            reference_CHW=pictures.first_CHW,
            last_CHW=last_CHW,
        )
        return y_FCHW, given_FCHW[0]

    def _after_latents(self, pictures: Pictures, before_FCHW: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The condition behind the last latents of a clip, and the picture."""
        anchor_1CHW = pictures.anchor()
        motion_FCHW = anchor_1CHW[:0] if before_FCHW is None else before_FCHW[-self.config.num_motion_latents :]
        per_latent = pictures.backbone.spec.frames_per_latent
        return condition_of_latents(anchor_1CHW, motion_FCHW, self.config.window, per_latent), pictures.first_CHW

    def _stepper(self, state: ChainState) -> Stepper:
        """The stepper of a clip: under its condition, its prompts with what is read of its first given frame."""
        stepper, pictures = self.begin.stepper, self.begin.pictures
        if pictures is None:
            return stepper
        prompts = stepper.prompts
        if len(state.tokens_LD):
            read = pictures.backbone.with_image
            prompts = replace(prompts, conditions=[read(each, state.tokens_LD) for each in prompts.conditions])
        return replace(stepper, prompts=prompts, pictures=Channels(state.y_FCHW, state.queue.first))


def handed_over(frames_FCHW: torch.Tensor, how: str) -> torch.Tensor:
    """Frames of -1 ... 1 as they reach the next clip: as they are, or in 8 bits, rounded or cut down."""
    if how == "float":
        return frames_FCHW
    levels_FCHW = (frames_FCHW + 1.0) * 127.5
    whole_FCHW = levels_FCHW.round() if how == "round" else levels_FCHW.floor()
    return whole_FCHW / 127.5 - 1.0
