"""The condition of image-to-video models against recordings of upstream, and against diffusers' pipeline."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanImageToVideoPipeline

from miga.backbones.wan.vae import encode_frames
from miga.image_condition import Fill, condition_of_frames, condition_of_latents, mask_of
from tests.svi_recorded import FIXTURES, HEIGHT, NUM_FRAMES, NUM_LATENTS, WIDTH, pixels, recorded, tiny_vae

CASES = json.loads((FIXTURES / "conditioning.json").read_text())["cases"]


@pytest.fixture(scope="module")
def vae() -> Any:
    return tiny_vae()


def assert_is(y_FCHW: torch.Tensor, recorded_BCFHW: torch.Tensor) -> None:
    expected = recorded_BCFHW[0].transpose(0, 1)
    assert torch.equal(y_FCHW[:, :4], expected[:, :4])  # the mask
    assert float((y_FCHW[:, 4:] - expected[:, 4:]).abs().max()) <= 1e-4


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", [case for case in CASES if "ref_pad_num" in case], ids=lambda case: case["name"])
def test_frames(vae: Any, case: dict[str, Any]) -> None:
    tensors, count, references = recorded("conditioning"), case["conditioning_frames"], case["ref_pad_num"]
    fill: Fill = "reference" if references else "zeros"
    y = condition_of_frames(
        functools.partial(encode_frames, vae),
        pixels(tensors["frames_uint8"])[:count],
        NUM_FRAMES,
        4,
        fill=fill,
        reference_CHW=pixels(tensors["reference_uint8"]),
        num_references=references if references > 0 else None,
        num_marked=count if case["mask_covers_all_conditioning_frames"] else 1,
    )
    assert_is(y, tensors[f"y_{case['name']}"])


@pytest.mark.parametrize(("name", "num_motion"), [("pro_first", 0), ("pro_motion1", 1), ("pro_motion2", 2)])
def test_latents(vae: Any, name: str, num_motion: int) -> None:
    tensors = recorded("conditioning")
    picture = pixels(tensors["reference_uint8"]) if num_motion else pixels(tensors["frames_uint8"])[0]
    before_FCHW = tensors["previous_clip_latents"].transpose(0, 1)
    motion = before_FCHW[len(before_FCHW) - num_motion :]
    y = condition_of_latents(encode_frames(vae, picture[None]), motion, NUM_LATENTS, 4)
    assert_is(y, tensors[f"y_{name}"])


@pytest.mark.parametrize("has_last", [False, True])
def test_as_diffusers_has_it(vae: Any, has_last: bool) -> None:
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    pipeline = WanImageToVideoPipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler)
    first, last = pixels(recorded("conditioning")["frames_uint8"])[[0, 3]]
    latents = torch.zeros(1, 16, NUM_LATENTS, HEIGHT // 8, WIDTH // 8)
    with torch.no_grad():
        _, expected = pipeline.prepare_latents(
            first[None], 1, 16, HEIGHT, WIDTH, NUM_FRAMES, torch.float32, torch.device("cpu"), None, latents,
            last[None] if has_last else None,
        )  # fmt: skip
    encode = functools.partial(encode_frames, vae)
    y = condition_of_frames(encode, first[None], NUM_FRAMES, 4, last_CHW=last if has_last else None)
    assert torch.equal(y[:, :4], expected[0].transpose(0, 1)[:, :4])
    assert float((y - expected[0].transpose(0, 1)).abs().max()) <= 1e-5


def test_masks() -> None:
    is_given = torch.zeros(9)
    is_given[[0, 6]] = 1.0
    assert mask_of(is_given, 4).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match="not 1 \\+ 4k"):
        mask_of(is_given[:8], 4)
