"""Stage 2 as a stream: bit for bit what passes over all latents of the video give, in bounded memory."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from miga.denoise_pass import Stepper, run_in_batches
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from miga.queue import FrameQueue
from miga.solvers import UniPCSolver
from miga.unified import StreamedPass, Unified, UnifiedState
from miga.windows import plan_pass
from tests.miga.closed_form import SHAPE, GaussianDenoiser, make_config


def make_unified(
    num_latents: int | None,
    window: int,
    stride: int,
    num_passes: int,
    *,
    lead: bool = False,
    offsets: Sequence[int] = (),
) -> Unified:
    config = make_config(
        method="unified", position_0_context=lead, window=window, stride=stride, num_steps=num_passes + 2
    )
    denoiser = GaussianDenoiser(config, correlation=0.9)
    prompts = PromptTrack([0.5, -1.0, 0.2], latents_per_prompt=3)
    stepper = Stepper(
        denoiser.schedule, UniPCSolver(denoiser.schedule), prompts, NamedNoise(0, SHAPE), run_in_batches(denoiser)
    )
    passes = [StreamedPass(offset) for offset in offsets] or [StreamedPass()] * num_passes
    return Unified(window, stride, int(lead), stepper, num_latents, passes)


def handed_over(unified: Unified, count: int) -> FrameQueue:
    """Latents as Stage 1 leaves them: at level R, with two steps in their history."""
    stepper, level = unified.stepper, len(unified.passes) + 2
    queue = stepper.fresh(stepper.noise("push", range(count)), torch.full((count,), level), 0)
    for _ in range(2):
        queue = stepper.step(queue, 0.3 * queue.x_FCHW)
    return queue


def in_whole_passes(unified: Unified, queue: FrameQueue) -> torch.Tensor:
    room = unified.window - unified.lead
    for streamed in unified.passes:
        stepper = unified.stepper.named(streamed.purpose)
        if streamed.renoise_to is not None:
            queue = stepper.renoised(queue.x_FCHW, streamed.renoise_to, 0)
        offset = streamed.offset if len(queue) - streamed.offset >= room else 0
        plan = plan_pass(len(queue), unified.window, unified.stride, offset=offset, lead=unified.lead)
        queue = stepper.pass_over(queue, plan)
    return queue.x_FCHW


def in_chunks(unified: Unified, queue: FrameQueue, sizes: list[int]) -> tuple[list[FrameQueue], list[int]]:
    state, out, alive = unified.start(), [], []
    for size in sizes:
        chunk, queue = queue.pop(size)
        state, finished = unified.advance(state, chunk)
        alive.append(state.num_alive)
        if finished is not None:
            out.append(finished)
    return out, alive


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (4, 1), (4, 2), (4, 4), (5, 2), (5, 3)])
@pytest.mark.parametrize("num_passes", [1, 3])
def test_equals_whole_passes_bit_for_bit(window: int, stride: int, num_passes: int) -> None:
    chance = random.Random(window * stride)
    for num_latents in range(1, 4 * window + 2):
        unified = make_unified(num_latents, window, stride, num_passes)
        queue = handed_over(unified, num_latents)
        expected = in_whole_passes(unified, queue)
        step = chance.randint(1, window)
        sizes = [min(step, num_latents - done) for done in range(0, num_latents, step)]
        out, alive = in_chunks(unified, queue, sizes)
        assert torch.equal(torch.cat([part.x_FCHW for part in out]), expected)
        assert [index for part in out for index in part.indices] == list(range(num_latents))
        assert all(set(part.level_F.tolist()) == {0} for part in out)
        assert max(alive) <= num_passes * (window - 1)
        assert alive[-1] == 0


@pytest.mark.sampled(7)
@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "offsets"),
    [(4, 2, (0, 1, 0)), (4, 3, (1, 2, 0)), (5, 3, (2, 2, 1)), (5, 4, (3, 0, 1)), (7, 3, (1, 1, 1)), (2, 1, (0, 0, 0))],
)
def test_with_border_offsets_and_context_before_every_window(
    window: int, stride: int, offsets: tuple[int, ...], lead: bool
) -> None:
    for num_latents in range(1, 4 * window + 2):
        unified = make_unified(num_latents, window, stride, len(offsets), lead=lead, offsets=offsets)
        queue = handed_over(unified, num_latents)
        expected = in_whole_passes(unified, queue)
        step = 1 + num_latents % 3
        out, alive = in_chunks(unified, queue, [min(step, num_latents - at) for at in range(0, num_latents, step)])
        assert torch.equal(torch.cat([part.x_FCHW for part in out]), expected)
        assert [index for part in out for index in part.indices] == list(range(num_latents))
        assert max(alive) <= len(offsets) * (window - 1)


def test_passes_that_noise_their_latents_again() -> None:
    """Three down to clean, up to level 2 again, two down: the second noise is another, and so are the second steps'."""
    for num_latents in (1, 4, 5, 9, 17):
        unified = make_unified(num_latents, 4, 2, num_passes=3)
        again = [StreamedPass(1, 2, "second/"), StreamedPass(0, None, "second/")]
        unified = replace(unified, passes=[*unified.passes, *again])
        queue = handed_over(replace(unified, passes=unified.passes[:3]), num_latents)
        out, alive = in_chunks(unified, queue, [1] * num_latents)
        assert torch.equal(torch.cat([part.x_FCHW for part in out]), in_whole_passes(unified, queue))
        assert all(set(part.level_F.tolist()) == {0} for part in out)
        assert max(alive) <= 5 * 3


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 2), (4, 3), (5, 3), (21, 10)])
@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.sampled(48)
def test_number_of_latents_alive_is_bounded(window: int, stride: int, chunk: int, lead: bool) -> None:
    num_passes, total = 4, 200
    unified = make_unified(None, window, stride, num_passes, lead=lead, offsets=[0, stride - 1, 0, stride // 2])
    out, alive = in_chunks(unified, handed_over(unified, total), [chunk] * (total // chunk))
    assert max(alive) <= num_passes * (window - 1)
    assert sum(map(len, out)) >= total - chunk - num_passes * (window - 1)


def test_the_bound_is_reached() -> None:
    unified = make_unified(None, window=4, stride=1, num_passes=3)
    _, alive = in_chunks(unified, handed_over(unified, 40), [1] * 40)
    assert max(alive) == 3 * 3


def test_finished_latents_are_handed_out_at_once() -> None:
    """With a stride of one, every latent that arrives lets one go."""
    unified = make_unified(None, window=4, stride=1, num_passes=3)
    out, _ = in_chunks(unified, handed_over(unified, 30), [1] * 30)
    assert [len(part) for part in out] == [1] * 21
    assert out[0].first == 0


def test_no_pass_left_hands_latents_through() -> None:
    unified = make_unified(6, window=4, stride=2, num_passes=0)
    queue = handed_over(unified, 6)
    state, finished = unified.advance(unified.start(), queue)
    assert state == UnifiedState((), ())
    assert finished is queue


def test_the_stream_holds_no_storage_but_its_own() -> None:
    unified = make_unified(None, window=4, stride=2, num_passes=2)
    queue = handed_over(unified, 40)
    state, _ = unified.advance(unified.start(), queue)
    for waiting in state.waiting:
        assert waiting is not None
        for tensor in (waiting.x_FCHW, waiting.level_F, *waiting.history.values()):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
