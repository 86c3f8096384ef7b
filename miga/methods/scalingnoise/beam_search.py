"""ScalingNoise: FIFO-Diffusion that searches over the noise of every new latent, several beams side by side.

Each beam is a queue of its own behind one common context, the latents that were handed out. Before a pass every beam
is offered several noises for its tail. The pass's last window predicts clean latents with each; how alike the last of
them and the context are is the reward. The best pairs of beam and noise, by reward summed over the passes, go on.

Source: Yang et al. 2025, "ScalingNoise" (arXiv 2503.16400); MIGA sections A.4 and 4.1 (compared with); decisions/0010.

Legend: F latents, C channels, H, W cells, D features.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from miga.consistency import Evaluation
from miga.errors import NonFiniteError, UsageError
from miga.methods.base import Begin
from miga.methods.fifo.fifo import PART, Fifo, FifoState
from miga.methods.scalingnoise.candidates import TailNoise
from miga.methods.scalingnoise.settings import ScalingNoiseSettings
from miga.noise import NoiseSource
from miga.queue import FrameQueue
from miga.reflection import ReflectionTrace
from miga.windows import Window, plan_lookahead


@dataclass(frozen=True)
class Beam:
    """One continuation of the video.

    Attributes:
        queue: behind the base clip's own first pass, levels `1 ... T - 1`: the next tail is still to be chosen.
        candidates: per latent of the queue, which candidate its noise was; 0 for the base clip's. A number stands for
            one pair of beam and noise in its pass, so beams that share it share all noise up to that latent.
        reward: summed over the passes.
    """

    queue: FrameQueue
    candidates: tuple[int, ...]
    reward: float = 0.0


@dataclass(frozen=True)
class BeamSearchState:
    """One video: the clean context before the head, which all beams share, and the beams, best first.

    One beam before the first search, `num_beams` from then on.
    """

    context: FrameQueue
    beams: tuple[Beam, ...]
    trace: ReflectionTrace = field(default_factory=ReflectionTrace)


@dataclass(frozen=True)
class _Pair:
    """A beam, by its place, and one noise for its tail: what the pass's last windows see with it."""

    beam: int
    candidate: int
    seen: FrameQueue


@dataclass(frozen=True)
class _CandidateNoise:
    """Noise of one beam: every latent draws as the candidate it is.

    So the noise of a stochastic step is a function of level, latent and that number, the same for all beams that share
    the latent, wherever and in whatever order they are computed.
    """

    noise: NoiseSource
    first: int
    candidates: tuple[int, ...]

    def __call__(self, purpose: str, latents: Sequence[int], candidate: int = 0) -> torch.Tensor:
        """See `NoiseSource`; the candidate asked for is not looked at."""
        return torch.cat([self.noise(purpose, [latent], self.candidates[latent - self.first]) for latent in latents])


class BeamSearch:
    """ScalingNoise of one video.

    Args:
        config: the settings.
        begin: what the video begins with.
    """

    def __init__(self, config: ScalingNoiseSettings, begin: Begin) -> None:
        self.config = config
        self.stepper = begin.stepper.in_part(PART)
        self.features = begin.features
        self.fifo = Fifo(config, self.stepper)

    def start(self, clean_FCHW: torch.Tensor) -> BeamSearchState:
        """FIFO-Diffusion's queue and context, as one beam."""
        state = self.fifo.start(clean_FCHW)
        assert state.context is not None, "a search needs lookahead"
        return BeamSearchState(state.context, (Beam(state.queue, (0,) * len(state.queue)),))

    def advance(self, state: BeamSearchState) -> tuple[BeamSearchState, FrameQueue | None]:
        """One pass: the best beam's head leaves clean, for all of them.

        Returns:
            The state, and the popped latent (None while copies of the base clip's first come out).

        Raises:
            UsageError: if the features are of a wrong shape or not finite.
            NonFiniteError: if a reward is not finite.
        """
        is_first = len(state.beams[0].queue) == self.config.num_steps
        beams = self._first_pass(state) if is_first else self._search(state)
        head = beams[0].queue[:1].compact()
        rest = [replace(beam, queue=beam.queue[1:].compact(), candidates=beam.candidates[1:]) for beam in beams]
        next_state = replace(state, context=state.context.append(head)[1:].compact(), beams=tuple(rest))
        return next_state, (head if head.first >= 0 else None)

    def is_open(self, state: BeamSearchState) -> bool:
        """Always: no pass knows how long the video is."""
        return True

    def _first_pass(self, state: BeamSearchState) -> list[Beam]:
        """Over the base clip's own queue, which is full: nothing to choose."""
        return [replace(beam, queue=self.fifo.pass_over(FifoState(state.context, beam.queue))) for beam in state.beams]

    def _search(self, state: BeamSearchState) -> list[Beam]:
        """Every beam with every noise one pass on, as far as its reward takes; the best of them all the way."""
        common, last = self._plan(len(state.context))
        everything = [state.context.append(beam.queue) for beam in state.beams]
        pairs = self._pairs(everything, last[0].start)
        shifted = [window.shifted(-window.start) for window in last]
        calls = [call for queue in everything for call in self.stepper.calls(queue, common)]
        calls += [call for pair in pairs for call in self.stepper.calls(pair.seen, shifted)]
        outputs = iter(self.stepper.run_windows(calls))
        of_beam = [list(itertools.islice(outputs, len(common))) for _ in everything]
        of_pair = [list(itertools.islice(outputs, len(last))) for _ in pairs]
        gains = self._rewards([clean[-1][-self.config.num_eval_latents :] for clean in of_pair], state.context)
        rewards = [state.beams[pair.beam].reward + gain for pair, gain in zip(pairs, gains, strict=True)]
        beams = []
        for number in self._survivors(state.beams, pairs, rewards):
            pair = pairs[number]
            candidates = (*state.beams[pair.beam].candidates, pair.candidate)
            queue = everything[pair.beam].append(pair.seen[-1:])
            stepper = replace(self.stepper, noise=self._noise(state.beams[pair.beam], candidates))
            stepped = stepper.apply(queue, [*common, *last], of_beam[pair.beam] + of_pair[number])
            beams.append(Beam(stepped, candidates, rewards[number]))
        return beams

    def _plan(self, num_context: int) -> tuple[list[Window], list[Window]]:
        """The windows of a pass, those that do not see the tail and those that do (which all start at one place)."""
        config = self.config
        plan = plan_lookahead(num_context, config.num_steps, config.window, config.stride)
        total = num_context + config.num_steps
        return [window for window in plan if window.stop < total], [window for window in plan if window.stop == total]

    def _pairs(self, everything: Sequence[FrameQueue], start: int) -> list[_Pair]:
        """Every beam with its noises; `num_beams * num_candidates` of them, also while there is but one beam.

        Args:
            everything: per beam, context and queue.
            start: first latent that the last windows see.
        """
        per_beam = self.config.num_beams * self.config.num_candidates // len(everything)
        pairs = []
        for beam, queue in enumerate(everything):
            for candidate in range(beam * per_beam + 1, (beam + 1) * per_beam + 1):
                noise = TailNoise(
                    self.stepper.noise, self.config.kind_of(candidate), queue.x_FCHW[-1:], self.stepper.schedule
                )
                stepper = replace(self.stepper, noise=noise, candidate=candidate)
                seen = stepper.push_noise(queue[start:], 1, self.config.num_steps, "push")
                pairs.append(_Pair(beam, candidate, seen))
        return pairs

    def _survivors(self, beams: Sequence[Beam], pairs: Sequence[_Pair], rewards: Sequence[float]) -> list[int]:
        """Places of the pairs that go on, best first; of equal ones the earlier.

        The best one's head is about to be handed out. Pairs whose head grew from other noise are of another video, and
        drop out; where too few are left, they are taken again in turn.
        """
        ranked = sorted(range(len(pairs)), key=lambda number: -rewards[number])
        heads = [beams[pair.beam].candidates[0] for pair in pairs]
        of_one_video = [number for number in ranked if heads[number] == heads[ranked[0]]]
        return list(itertools.islice(itertools.cycle(of_one_video), self.config.num_beams))

    def _noise(self, beam: Beam, candidates: tuple[int, ...]) -> _CandidateNoise:
        return _CandidateNoise(self.stepper.noise, beam.queue.first, candidates)

    def _rewards(self, predictions: Sequence[torch.Tensor], context: FrameQueue) -> list[float]:
        """How consistent predicted clean latents are with the context, each in [-1, 1]. Source: MIGA Eq. 5-7."""
        reference = self._described(context.x_FCHW)
        rewards = [
            self.stepper.judge(Evaluation(self._described(clean_FCHW), reference, candidate=number))
            for number, clean_FCHW in enumerate(predictions, 1)
        ]
        for number, reward in enumerate(rewards):
            if not math.isfinite(reward):
                raise NonFiniteError(
                    f"the reward of candidate {number + 1} before latent {context.first + len(context)} is {reward}",
                    "its predicted clean latents are not finite: look for what the network was given",
                )
        return rewards

    def _described(self, x_FCHW: torch.Tensor) -> FrameQueue:
        """What is compared: the latents, or their features as latents of one channel and one row, `[F, 1, 1, D]`."""
        level_F = torch.zeros(len(x_FCHW), dtype=torch.int64)
        return FrameQueue(x_FCHW if self.features is None else self._features(x_FCHW), level_F, {})

    def _features(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        assert self.features is not None
        features_FD = self.features(x_FCHW)
        if features_FD.ndim != 2 or len(features_FD) != len(x_FCHW):
            raise UsageError(
                f"features of {len(x_FCHW)} latents came as {list(features_FD.shape)}",
                "an extractor takes latents [F, C, H, W] and must return one vector each, [F, D]",
            )
        if not torch.isfinite(features_FD).all():
            raise UsageError(
                f"features of {len(x_FCHW)} latents hold NaN or infinity", "candidates cannot be ranked by them"
            )
        return features_FD[:, None, None, :]
