"""What is simulated, from sizes of clusters and mixes of videos and nodes; and the simulation itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

from jobs.shared.options import num_latents_of
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_spec
from miga.errors import UsageError
from miga.profiles import resolve_config
from miga.sharing import Share
from pipeline.scheduling.simulation import Outcome, Scenario, measure_speed_up, simulate, video_cost
from pipeline.terminal import say

VIDEOS_PER_GPU: Final = 5
SWEEP_GPUS: Final = 100
"""Size of the cluster that the plot of lost work is made with: the share that is lost does not depend on it."""
SWEEP_INTERVALS_S: Final = (30.0, 60.0, 120.0, 300.0, 600.0)
SWEEP_KILLS: Final = (0.01, 0.05, 0.2)


def make_scenarios(
    *,
    gpus: Sequence[int],
    checkpoints_every_s: Sequence[float],
    family: str,
    profile: str,
    num_frames: Sequence[str],
    speeds: Sequence[str] = (),
    videos: int | None = None,
    share: Share = "windows",
    **settings: Any,
) -> list[Scenario]:
    """A scenario per size of cluster and interval of checkpoints.

    Args:
        gpus: sizes of clusters.
        checkpoints_every_s: seconds between checkpoints of a video.
        family: of the model; one that has a published model.
        profile: settings of the sampler.
        num_frames: lengths of videos, each `FRAMES` or `FRAMES:WEIGHT`; empty: the model's default.
        speeds: speeds of nodes, each `SPEED` or `SPEED:WEIGHT`; empty: all alike.
        videos: rows; None: `VIDEOS_PER_GPU` a GPU.
        share: what idle workers take of others' videos.
        **settings: of `Scenario`.

    Raises:
        UsageError: if a value cannot be.
        ConfigError: if the model has no such profile.
        ModelError: if there is no such family.
    """
    spec = load_spec(f"simulated:{family}")
    lengths = parse_mix("--num-frames", num_frames or [str(spec.default_num_frames)], int)
    config = resolve_config(profile, spec)
    costs = {frames: video_cost(config, _num_latents(spec, frames), share) for frames in lengths}
    for flag, values in (("--gpus", gpus), ("--checkpoint-every-s", checkpoints_every_s)):
        if len(set(values)) < len(values):
            raise UsageError(f"{flag} names a value twice: {' '.join(map(str, values))}", "name each once")
    scenarios = [
        Scenario(
            num_gpus=size,
            num_videos=VIDEOS_PER_GPU * size if videos is None else videos,
            costs=costs,
            lengths=lengths,
            speeds=parse_mix("--speeds", speeds or ["1"], float),
            checkpoint_every_s=interval_s,
            share=share,
            **settings,
        )
        for size in gpus
        for interval_s in checkpoints_every_s
    ]
    first = scenarios[0]
    if share == "nothing":
        return scenarios
    measured = {
        frames: replace(
            cost,
            speed_up=measure_speed_up(config, _num_latents(spec, frames), cost.parallelism, first.search_rate, share),
        )
        for frames, cost in costs.items()
    }
    return [replace(scenario, costs=measured) for scenario in scenarios]


def _num_latents(spec: BackboneSpec, num_frames: int) -> int:
    return num_latents_of(spec, num_frames, "--num-frames", "choose lengths that the model makes")


def parse_mix(flag: str, texts: Iterable[str], kind: Callable[[str], Any]) -> dict[Any, float]:
    """Values with weights: `161:3 321:1`, where no weight is a weight of 1.

    Raises:
        UsageError: if one is no number, or named twice.
    """
    mix: dict[Any, float] = {}
    for text in texts:
        name, separator, weight = text.partition(":")
        try:
            value, share = kind(name), float(weight) if separator else 1.0
        except ValueError:
            raise UsageError(f"{flag} {text!r} is not VALUE or VALUE:WEIGHT", "for example 161:3 321:1") from None
        if value in mix:
            raise UsageError(f"{flag} names {value} twice", "name each value once, with its weight")
        mix[value] = share
    return mix


def sweep_of(scenario: Scenario) -> list[Scenario]:
    """The same videos on a smaller cluster, over intervals of checkpoints and rates of kills."""
    small = replace(
        scenario, num_gpus=SWEEP_GPUS, num_videos=VIDEOS_PER_GPU * SWEEP_GPUS, preemptions_per_node_hour=0.0
    )
    return [
        replace(small, kills_per_gpu_hour=kills, checkpoint_every_s=interval_s)
        for kills in SWEEP_KILLS
        for interval_s in SWEEP_INTERVALS_S
    ]


def simulate_all(scenarios: Iterable[Scenario], *, quiet: bool) -> list[Outcome]:
    """Plays them one after the other, with a line of progress for each."""
    outcomes: list[Outcome] = []
    for scenario in scenarios:
        started_s = time.perf_counter()
        outcomes.append(simulate(scenario))
        if not quiet:
            seconds = time.perf_counter() - started_s
            size = f"{scenario.num_gpus} GPUs, {scenario.num_videos} videos"
            say(f"{size}: simulated in {seconds:.1f} s")
    return outcomes
