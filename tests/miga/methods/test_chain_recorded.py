"""Chains of clips against recordings of upstream's pipeline (tests/fixtures/svi)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from miga.backbones.wan.backbone import WanBackbone
from miga.decoding import ClipDecoder
from miga.generate import Sampler
from miga.image_condition import Pictures
from miga.methods.chain.chain import handed_over
from miga.profiles import resolve_config
from miga.prompts import PromptTrack
from tests.svi_recorded import FIXTURES, NUM_LATENTS, pixels, recorded, tiny_backbone

FACTS = json.loads((FIXTURES / "chain.json").read_text())


class GivenTokens:
    """What is read of pictures is a stand-in in the recordings: given, clip by clip."""

    def __init__(self, tokens: Sequence[torch.Tensor]) -> None:
        self.left = iter(tokens)

    def tokens(self, frames_FCHW: torch.Tensor) -> torch.Tensor:
        return next(self.left)


class HandsOver:
    """A backbone that hands the recorded frames over, once its own are found to be those.

    A value that lies on the border between two levels is cut down to either, by the last bits of float32: of the 23,040
    values that "film" hands over, five. What the VAE makes of such a one is no longer within 1e-4.
    """

    def __init__(self, backbone: WanBackbone, frames_uint8: torch.Tensor) -> None:
        self._backbone, self._frames_uint8 = backbone, frames_uint8

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def decode_frames(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        ours, recorded_frames = self._backbone.decode_frames(x_FCHW), pixels(self._frames_uint8)
        levels_off = ((handed_over(ours, "truncate") - recorded_frames) * 127.5).abs().round()
        assert levels_off.max() <= 1
        assert (levels_off > 0).float().mean() <= 1e-3
        return recorded_frames + 0.5 / 127.5  # the middle of a level: cut down, it is that level


@pytest.mark.sampled(2)
@pytest.mark.parametrize("variant", FACTS["variants"], ids=lambda variant: variant["variant"])
def test_two_clips(variant: dict[str, Any]) -> None:
    tensors = recorded("chain")
    name, count = variant["variant"], variant["num_motion_frames"]
    clips = [
        {
            part: tensors[f"{name}.clip{number}.{part}"]
            for part in ("noise", "y", "clip_tokens", "latents", "frames_uint8")
        }
        for number in range(2)
    ]
    backbone = tiny_backbone()
    backbone.image_reader = GivenTokens([clip["clip_tokens"][0] for clip in clips])  # type: ignore[assignment]
    config = resolve_config(
        "svi-paper",
        backbone.spec,
        {"num_steps": 4, "num_motion_frames": count, "fill": "reference" if variant["ref_pad_num"] else "zeros"},
    )
    conditions = [
        backbone.condition(tensors[f"context_clip{number}"][0], tensors["context_negative"][0]) for number in range(2)
    ]

    def noise(purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        number, place = divmod(latents[0], NUM_LATENTS)
        assert (place, len(latents)) == (0, NUM_LATENTS)
        return clips[number]["noise"][0].transpose(0, 1)

    num_latents = 2 * NUM_LATENTS
    sampler = Sampler(
        backbone.denoiser(config),
        config,
        PromptTrack.spread(conditions, num_latents),
        noise,
        num_latents,
        pictures=Pictures(HandsOver(backbone, clips[0]["frames_uint8"]), pixels(tensors["reference_uint8"])),
    )
    finished, conditions_y = [], [sampler.start().method.y_FCHW]
    backbone.image_reader = GivenTokens([clip["clip_tokens"][0] for clip in clips])  # type: ignore[assignment]
    with torch.no_grad():
        for state, latents in sampler.run():
            if latents is not None:
                finished.append(latents)
                conditions_y.append(state.method.y_FCHW)
    for clip, latents, y in zip(clips, finished, conditions_y, strict=False):
        assert float((y - clip["y"][0].transpose(0, 1)).abs().max()) <= 1e-4
        assert float((latents - clip["latents"][0].transpose(0, 1)).abs().max()) <= 1e-4
    assert config.clips is not None
    decoder = ClipDecoder(backbone.frame_decoder, config.clips, backbone.spec, num_latents)
    frames = decoder.decode(torch.cat(finished)).numpy().astype(np.int64)
    expected = tensors[f"{name}.stitched_uint8"].numpy().astype(np.int64)
    assert frames.shape == expected.shape
    assert len(frames) == variant["stitched_frames"]
    assert np.abs(frames - expected).max() <= 1
    assert (frames != expected).mean() <= 1e-3
    assert backbone.spec.of_clips(config.clips).num_latents(len(frames)) == num_latents
