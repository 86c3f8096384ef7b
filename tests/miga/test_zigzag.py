"""Stage 1: the levels of the queue through Alg. 4 and 5, and what leaves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from tests.miga.closed_form import LabelDenoiser, LabelledNoise, make_config, make_sampler

SETTINGS = [
    {},
    {"zigzag_width": 1, "num_steps": 9, "handoff_level": 3},
    {"zigzag_width": 3, "handoff_level": 1},
    {"zigzag_width": 6, "num_steps": 8, "handoff_level": 7},  # the base clip enters at level e already
    {"num_steps": 8, "handoff_level": 5},
    {"window": 21, "zigzag_width": 7, "num_steps": 15, "num_guidance_latents": 4, "handoff_level": 10},
]


def base_clip(window: int) -> torch.Tensor:
    """Clean latents labelled with their index."""
    clean = torch.zeros(window, 4, 2, 3)
    clean[:, 0] = torch.arange(window, dtype=torch.float32)[:, None, None]
    return clean


def labels(queue: FrameQueue) -> list[int]:
    return [int(number) for number in queue.x_FCHW[:, 0].mean((1, 2)).round()]


@pytest.mark.parametrize("settings", SETTINGS)
def test_levels_through_initialisation_and_stage_1(settings: dict[str, Any]) -> None:
    config = make_config(**settings)
    denoiser = LabelDenoiser(config)
    zigzag = make_sampler(denoiser, config, None, noise=LabelledNoise()).method.zigzag
    wide, top, handoff = config.zigzag_width, config.num_steps, config.handoff_level
    num_groups = config.window // wide

    queue = zigzag.start(base_clip(config.window))
    assert queue.level_F.tolist() == [top - num_groups + group for group in range(num_groups) for _ in range(wide)]

    for number in range(top - num_groups - handoff):
        popped, queue, _ = zigzag.advance(queue, ReflectionTrace())
        assert popped is None
        first = top - num_groups - number - 1
        assert queue.level_F.tolist() == [level for level in range(first, top) for _ in range(wide)]

    seen_by_a_pass = [level for level in range(handoff, top + 1) for _ in range(wide)]
    assert [*queue.level_F.tolist(), *[top] * wide] == seen_by_a_pass
    assert len(seen_by_a_pass) == config.queue_length
    assert queue.first == 0

    for number in range(5):
        num_before = len(denoiser.calls)
        popped, queue, _ = zigzag.advance(queue, ReflectionTrace())
        assert popped is not None
        assert popped.level_F.tolist() == [handoff - 1] * wide
        assert labels(popped) == list(popped.indices) == list(range(number * wide, (number + 1) * wide))
        assert labels(queue) == list(queue.indices)
        assert queue.level_F.tolist() == seen_by_a_pass[:-wide]
        calls = denoiser.calls[num_before:]
        level_of = {latent: level for call in calls for latent, level in zip(call.latents, call.levels, strict=True)}
        assert level_of == dict(
            zip(range(popped.first, popped.first + config.queue_length), seen_by_a_pass, strict=True)
        )


def test_pushed_latents_have_no_history_and_the_others_keep_theirs() -> None:
    config = make_config()
    zigzag = make_sampler(LabelDenoiser(config), config, None, noise=LabelledNoise()).method.zigzag
    queue = zigzag.start(base_clip(config.window))
    assert queue.history["num_taken"].tolist() == [0] * 6
    _, queue, _ = zigzag.advance(queue, ReflectionTrace())
    assert queue.history["num_taken"].tolist() == [1] * 8
    _, queue, _ = zigzag.advance(queue, ReflectionTrace())
    assert queue.history["num_taken"].tolist() == [2] * 8 + [1] * 2


def test_no_window_is_longer_than_the_networks() -> None:
    config = make_config(num_guidance_latents=3)
    denoiser = LabelDenoiser(config)
    for state, _ in make_sampler(denoiser, config, 20, noise=LabelledNoise()).run():
        assert state.method is None or len(state.method.queue) <= config.queue_length
    assert max(len(call.latents) for call in denoiser.calls) == config.window


def test_what_leaves_can_be_freed() -> None:
    config = make_config()
    zigzag = make_sampler(LabelDenoiser(config), config, None, noise=LabelledNoise()).method.zigzag
    queue, popped = zigzag.start(base_clip(config.window)), None
    while popped is None:
        popped, queue, _ = zigzag.advance(queue, ReflectionTrace())
    for part in (popped, queue):
        for tensor in (part.x_FCHW, part.level_F, *part.history.values()):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
