"""Videos in step: who is called with whom, and that each is as it would be alone, whatever becomes of the others.

Legend: F latents, C channels, H, W cells.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from miga.backbones.guided_denoiser import require_finite
from miga.cached_call import CachedCall
from miga.cost import count_calls
from miga.errors import NonFiniteError
from miga.generate import Sampler
from miga.methods import methods
from miga.methods.causal.settings import CausalSettings
from miga.methods.causal.together import Lockstep, _Asked, make_together, next_group
from miga.noise import NamedNoise
from miga.prompts import PromptTrack
from tests.miga.methods.causal.recorded import SHAPE, Spy, settings, spied
from tests.miga.methods.causal.test_engine import made, prompts
from tests.pace import paced

LENGTH = 27


def alone(config: CausalSettings, track: PromptTrack, seed: int, num_latents: int = LENGTH) -> torch.Tensor:
    return made(Sampler(spied(config), config, track, NamedNoise(seed, SHAPE), num_latents))


def in_threads(work: Sequence[Callable[[], Any]]) -> list[Any]:
    """What each gave, or the error that it ended with."""
    with ThreadPoolExecutor(len(work)) as pool:
        futures = [pool.submit(each) for each in work]
        return [future.exception(paced(120)) or future.result() for future in futures]


def one_of(
    lockstep: Lockstep,
    config: CausalSettings,
    track: PromptTrack,
    seed: int,
    num_latents: int = LENGTH,
    finished: torch.Tensor | None = None,
) -> Callable[[], torch.Tensor]:
    """Makes one video of those in step; from finished latents on it is gone on with."""
    video = lockstep.join(num_latents)

    def make() -> torch.Tensor:
        sampler = Sampler(video, config, track, NamedNoise(seed, SHAPE), num_latents)
        state = sampler.start()
        try:
            if finished is None:
                return made(sampler, state)
            for _ in range(len(finished) // config.block):  # where an earlier attempt stood
                state = type(state)(method=type(state.method)(state.num_finished + config.block),
                                    num_finished=state.num_finished + config.block)  # fmt: skip
            sampler.restore(finished)
            return torch.cat([finished, made(sampler, state)])
        finally:
            video.leave()

    return make


def num_together(spy: Spy) -> list[int]:
    """Videos of each call."""
    return [len(out) for out in spy.predicted]


# ---- each as if alone ----


@pytest.mark.slow
def test_prompts_that_change_at_different_latents_leave_the_others_in_step() -> None:
    """The re-cache of one is a call of its own; everything else is made together."""
    config, texts = settings("longlive"), prompts(4)
    tracks = [
        PromptTrack(texts[:2], starts=(0, 9)), PromptTrack(texts[2:], starts=(0, 18)), PromptTrack(texts[1:2], 1),
    ]  # fmt: skip
    spy = spied(config)
    together = torch.cat(list(make_together(spy, config, tracks, [NamedNoise(n, SHAPE) for n in range(3)], LENGTH)), 1)
    for number, track in enumerate(tracks):
        torch.testing.assert_close(together[number], alone(config, track, number), atol=1e-5, rtol=0)
    calls = count_calls(config, LENGTH).total
    assert sorted(num_together(spy)) == [1, 1] + [3] * calls


def test_prompts_that_change_together_are_cached_anew_together() -> None:
    config, texts, spy = settings("longlive"), prompts(4), spied(settings("longlive"))
    tracks = [PromptTrack.spread(texts[:2], LENGTH), PromptTrack.spread(texts[2:], LENGTH)]
    together = torch.cat(list(make_together(spy, config, tracks, [NamedNoise(n, SHAPE) for n in range(2)], LENGTH)), 1)
    for number, track in enumerate(tracks):
        torch.testing.assert_close(together[number], alone(config, track, number), atol=1e-5, rtol=0)
    assert num_together(spy) == [2] * (count_calls(config, LENGTH).total + 1)


def test_videos_of_several_lengths_are_in_step_as_far_as_the_shorter_goes() -> None:
    config, texts, spy = settings("longlive-infinity"), prompts(2), spied(settings("longlive-infinity"))
    lockstep = Lockstep(spy, patience_s=math.inf)
    tracks = [PromptTrack([text], 1) for text in texts]
    short, long = in_threads([one_of(lockstep, config, tracks[0], 0, 9), one_of(lockstep, config, tracks[1], 1, 27)])
    torch.testing.assert_close(short, alone(config, tracks[0], 0, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(long, alone(config, tracks[1], 1, 27), atol=1e-5, rtol=0)
    both, rest = count_calls(config, 9).total, count_calls(config, 18).total
    assert sorted(num_together(spy)) == [1] * rest + [2] * both


@pytest.mark.slow
def test_one_that_is_gone_on_with_from_another_block_catches_up() -> None:
    """One stands at the start, one behind four blocks: it is shown those again, waits, and then they are in step."""
    config, texts, spy = settings("longlive-infinity"), prompts(2), spied(settings("longlive-infinity"))
    tracks = [PromptTrack([text], 1) for text in texts]
    whole = [alone(config, track, number) for number, track in enumerate(tracks)]
    lockstep = Lockstep(spy, patience_s=math.inf)
    found = in_threads(
        [
            one_of(lockstep, config, tracks[0], 0),
            one_of(lockstep, config, tracks[1], 1, finished=whole[1][:12]),
        ]
    )
    for made_now, before in zip(found, whole, strict=True):
        torch.testing.assert_close(made_now, before, atol=1e-5, rtol=0)
    behind = count_calls(config, LENGTH - 12).total
    assert num_together(spy).count(2) >= behind, "all that both had left to make"
    assert sum(num_together(spy)) == count_calls(config, LENGTH).total + behind + 4, "four clean calls to go on"


# ---- whatever becomes of the others ----


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fails_in", ["its own thread", "the network"])
def test_one_that_fails_takes_no_other_with_it(fails_in: str) -> None:
    config, texts = settings("longlive-infinity"), prompts(3)
    tracks = [PromptTrack([text], 1) for text in texts]
    spy = spied(config)

    def call(x_BFCHW: torch.Tensor, what: CachedCall, conditions: Sequence[Any]) -> tuple[torch.Tensor, float]:
        out = spy.call_cached(x_BFCHW, what, conditions)
        require_finite(out)
        return out, 0.0

    lockstep = Lockstep(spy, call, patience_s=math.inf)

    class BadNoise(NamedNoise):
        def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
            drawn = super().__call__(purpose, latents, candidate)
            if latents[0] < 9:
                return drawn
            if fails_in == "the network":
                return drawn * math.nan
            raise RuntimeError("it broke")

    bad = lockstep.join(LENGTH)

    def make_bad() -> torch.Tensor:
        try:
            return made(Sampler(bad, config, tracks[2], BadNoise(2, SHAPE), LENGTH))
        finally:
            bad.leave()

    first, second, error = in_threads(
        [one_of(lockstep, config, tracks[0], 0), one_of(lockstep, config, tracks[1], 1), make_bad]
    )
    assert isinstance(error, NonFiniteError if fails_in == "the network" else RuntimeError)
    for number, found in enumerate((first, second)):
        torch.testing.assert_close(found, alone(config, tracks[number], number), atol=1e-5, rtol=0)
    assert set(num_together(spy)) == {3, 2} | ({1} if fails_in == "the network" else set())


def test_one_that_does_not_ask_is_waited_for_only_once() -> None:
    config, (text,) = settings("longlive-infinity"), prompts(1)
    lockstep = Lockstep(spied(config), patience_s=0.2)
    silent = lockstep.join(LENGTH)
    started_s = time.monotonic()
    made_alone = one_of(lockstep, config, PromptTrack([text], 1), 0, 9)()
    assert len(made_alone) == 9
    assert time.monotonic() - started_s >= 0.2
    assert silent not in lockstep._awaited


def test_who_leaves_waits_no_more() -> None:
    config = settings("longlive-infinity")
    lockstep = Lockstep(spied(config), patience_s=math.inf)
    leaving, _ = lockstep.join(LENGTH), lockstep.join(LENGTH)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            leaving.call_cached(torch.zeros(1, 3, *SHAPE), call_at(0), [None])
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not lockstep._asked:
        time.sleep(0.001)
    leaving.leave()
    thread.join(paced(30))
    assert [type(error) for error in errors] == [CancelledError]


def test_seconds_of_calls_are_shared_out_and_add_up() -> None:
    config, texts = settings("longlive-infinity"), prompts(2)
    took: list[tuple[int, float]] = []

    def call(x_BFCHW: torch.Tensor, what: CachedCall, conditions: Sequence[Any]) -> tuple[torch.Tensor, float]:
        took.append((len(x_BFCHW), 1.0 + len(took)))
        return spy.call_cached(x_BFCHW, what, conditions), took[-1][1]

    spy = spied(config)
    lockstep = Lockstep(spy, call, patience_s=math.inf)
    videos = [lockstep.join(count) for count in (9, 18)]

    def make(number: int) -> torch.Tensor:
        video, count = videos[number], (9, 18)[number]
        try:
            return made(Sampler(video, config, PromptTrack([texts[number]], 1), NamedNoise(number, SHAPE), count))
        finally:
            video.leave()

    in_threads([lambda: make(0), lambda: make(1)])
    assert videos[0].busy_s == pytest.approx(sum(seconds for count, seconds in took if count == 2) / 2)
    assert sum(video.busy_s for video in videos) == pytest.approx(sum(seconds for _, seconds in took))


# ---- whose turn it is ----


def call_at(first: int, timestep: float = 1000.0, **others: Any) -> CachedCall:
    return CachedCall(
        cache=object(), timesteps=(timestep,) * 3, sigmas=(1.0,) * 3, positions=(0.0, 1.0, 2.0), writes=(-1,) * 3,
        first=first, **others,
    )  # fmt: skip


def asked(first: int, timestep: float = 1000.0, since_s: float = 0.0, length: int | None = 99) -> _Asked:
    """A call of a block that sees all latents before it."""
    video: Any = SimpleNamespace(num_latents=length)
    seen = {"slots": tuple(range(first)), "slot_positions": tuple(map(float, range(first)))}
    return _Asked(video, torch.zeros(0), call_at(first, timestep, **seen), None, since_s)


def test_calls_that_do_the_same_are_made_together() -> None:
    one, two, ahead = asked(3), asked(3), asked(6)
    assert next_group([one, ahead, two], 1.0, 20.0) == [one, two]


def test_who_is_behind_goes_first() -> None:
    ahead, behind, later_step = asked(6, since_s=0.0), asked(3, since_s=1.0), asked(3, 500.0, since_s=0.5)
    assert next_group([ahead, later_step, behind], 2.0, 20.0) == [behind]
    assert next_group([ahead, later_step], 2.0, 20.0) == [later_step]
    assert next_group([ahead], 2.0, 20.0) == [ahead]


def test_nobody_waits_for_one_that_does_not_come_so_far() -> None:
    ahead, short = asked(30, since_s=0.0), asked(3, since_s=1.0, length=30)
    assert next_group([short, ahead], 2.0, 20.0) == [ahead], "who asked first"
    endless = asked(3, since_s=1.0, length=None)
    assert next_group([endless, ahead], 2.0, 20.0) == [endless]


def test_nobody_waits_for_ever() -> None:
    ahead, behind = asked(30, since_s=0.0), asked(3, since_s=19.0)
    assert next_group([ahead, behind], 19.9, 20.0) == [behind]
    assert next_group([ahead, behind], 20.0, 20.0) == [ahead]


def test_methods_say_whether_they_can() -> None:
    assert [name for name, method in methods().items() if method.makes_together] == ["causal"]
