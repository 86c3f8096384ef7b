"""`miga simulate`: the ledger of a run on clusters of any size, under a virtual clock; and the ledger alone, timed."""

from __future__ import annotations

import gc
import json
import math
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

from jobs.bench.table import format_table
from jobs.options import num_latents_of
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_spec
from miga.errors import OutputError, UsageError
from miga.profiles import resolve_config
from miga.sharing import Share
from pipeline.ledger import Assign, Decision, Ledger
from pipeline.rows import PromptRow
from pipeline.simulation import Outcome, Scenario, measure_speed_up, simulate, video_cost
from pipeline.terminal import say

VIDEOS_PER_GPU: Final = 5
SWEEP_GPUS: Final = 100
"""Size of the cluster that the plot of lost work is made with: the share that is lost does not depend on it."""
SWEEP_INTERVALS_S: Final = (30.0, 60.0, 120.0, 300.0, 600.0)
SWEEP_KILLS: Final = (0.01, 0.05, 0.2)
SPEC_OF: Final = {"wan": "simulated:wan", "videocrafter2": "simulated:videocrafter2"}


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
        family: "wan" or "videocrafter2".
        profile: settings of the sampler.
        num_frames: lengths of videos, each `FRAMES` or `FRAMES:WEIGHT`; empty: the model's default.
        speeds: speeds of nodes, each `SPEED` or `SPEED:WEIGHT`; empty: all alike.
        videos: rows; None: `VIDEOS_PER_GPU` a GPU.
        share: what idle workers take of others' videos.
        **settings: of `Scenario`.

    Raises:
        UsageError: if a value cannot be.
        ConfigError: if the model has no such profile.
    """
    spec = load_spec(SPEC_OF[family])
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


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """A row per scenario, and why runs ended before all their rows were settled."""
    stopped = [
        f"{outcome.scenario.num_gpus} GPUs, checkpoints every {outcome.scenario.checkpoint_every_s:g} s: "
        f"the run stops: {outcome.abort_reason}"
        for outcome in outcomes
        if outcome.abort_reason
    ]
    return "\n".join([format_table([_row(outcome) for outcome in outcomes]), *stopped])


def _row(outcome: Outcome) -> dict[str, Any]:
    scenario, values = outcome.scenario, outcome.to_dict()
    return {
        "GPUs": scenario.num_gpus,
        "videos": scenario.num_videos,
        "checkpoint, s": f"{scenario.checkpoint_every_s:g}",
        "hours": f"{outcome.makespan_s / 3600:.2f}",
        "of ideal": f"{values['makespan_of_ideal']:.3f}",
        "busy before tail": f"{outcome.busy_before_tail:.2%}",
        "busy": f"{outcome.busy_share:.2%}",
        "useful": f"{outcome.useful_share:.2%}",
        "lost work": f"{outcome.lost_share:.3%}",
        "tail, min": f"{outcome.tail_s / 60:.1f}",
        "ok": outcome.num_ok,
        "quarantined": outcome.num_quarantined,
        "kills": outcome.num_kills,
        "preemptions": outcome.num_preemptions,
        "events/s": f"{values['events_per_s']:.1f}",
        "calls/s": f"{values['calls_per_s']:.2f}",
        "ledger here, events/s": f"{values['ledger_events_per_s']:,.0f}",
    }


def check_out(out: str) -> None:
    """Makes the folder of the plots, before any time is spent.

    Raises:
        OutputError: if it cannot be made.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a NUL, or half of a surrogate pair
        raise OutputError(f"--out {out} cannot be made: {error}", "name a folder that can be written") from error


def write_plots(outcomes: Sequence[Outcome], out: str, *, quiet: bool) -> list[str]:
    """Draws utilisation, tail and lost work, this from a sweep of its own; returns the files.

    Raises:
        OutputError: if the folder cannot be written.
    """
    from jobs.simulation_plots import draw_lost_work, draw_tail, draw_utilisation

    sweep = simulate_all(_sweep(outcomes[0].scenario), quiet=quiet)
    plots = {
        "utilisation.png": draw_utilisation(outcomes),
        "tail.png": draw_tail(outcomes),
        "lost-work.png": draw_lost_work(sweep),
    }
    folder = Path(out)
    try:
        for name, data in plots.items():
            (folder / name).write_bytes(data)
        text = json.dumps([as_json(outcome) for outcome in [*outcomes, *sweep]], indent=1)
        (folder / "simulation.json").write_text(text + "\n")
    except OSError as error:
        raise OutputError(f"--out {out} cannot be written: {error}", "name a folder that can be written") from error
    return [str(folder / name) for name in [*plots, "simulation.json"]]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome and the settings it came from; without checkpoints their interval is None."""
    scenario = outcome.scenario
    settings = {name: value for name, value in vars(scenario).items() if isinstance(value, int | float | str)}
    if scenario.checkpoint_every_s == math.inf:
        settings["checkpoint_every_s"] = None
    return {
        "settings": settings,
        "num_frames": {str(frames): share for frames, share in scenario.lengths.items()},
        "speeds": {str(speed): share for speed, share in scenario.speeds.items()},
        **outcome.to_dict(),
    }


def _sweep(scenario: Scenario) -> list[Scenario]:
    """The same videos on a smaller cluster, over intervals of checkpoints and rates of kills."""
    small = replace(
        scenario, num_gpus=SWEEP_GPUS, num_videos=VIDEOS_PER_GPU * SWEEP_GPUS, preemptions_per_node_hour=0.0
    )
    return [
        replace(small, kills_per_gpu_hour=kills, checkpoint_every_s=interval_s)
        for kills in SWEEP_KILLS
        for interval_s in SWEEP_INTERVALS_S
    ]


# ---- the ledger alone ----


def bench_ledger(num_rows: int, num_workers: int) -> list[dict[str, Any]]:
    """Rows a second of processor time that the ledger takes when videos take none, and what its memory grows by.

    Args:
        num_rows: rows, each read, assigned, made and stored.
        num_workers: workers that are making videos at any time.

    Raises:
        UsageError: if there are fewer rows than twice the workers.
    """
    if num_workers < 1 or num_rows < 2 * num_workers:
        raise UsageError(
            f"--ledger-rows {num_rows} with {num_workers} workers", "there must be at least two rows a worker"
        )
    before_bytes, started_s = _resident_bytes(), time.process_time()
    num_events = play_ledger(num_rows, num_workers)
    seconds = time.process_time() - started_s
    return [
        {
            "rows": num_rows,
            "workers": num_workers,
            "rows/s": f"{num_rows / seconds:,.0f}",
            "events/s": f"{num_events / seconds:,.0f}",
            "growth, MiB": f"{(_resident_bytes() - before_bytes) / 2**20:.1f}",
            "peak, MiB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f}",
        }
    ]


def play_ledger(num_rows: int, num_workers: int) -> int:
    """Has a ledger hand out rows whose videos are done at once; returns the number of events."""
    ledger = Ledger(prompts_per_shard=1000, lookahead=2, parallelism_of=lambda row: 20)
    todo: list[Decision] = []
    for number in range(num_workers):
        todo += ledger.worker_ready(f"worker-{number}", 0.0, node="node")
    rows = iter(range(num_rows + 1))  # the last stands for the end of the file
    num_events, now_s = num_workers, 0.0
    making: list[Assign] = []
    while not ledger.is_complete:
        now_s += 0.001
        wanted = sum(getattr(decision, "count", 0) for decision in todo)
        making += [decision for decision in todo if isinstance(decision, Assign)]
        todo = []
        for index in islice(rows, wanted):
            todo += ledger.rows_exhausted(now_s) if index == num_rows else ledger.row_read(_row_of(index), now_s)
            num_events += 1
        for made in making if not wanted else []:
            attempt = (made.row.index, made.attempt, made.worker)
            todo += ledger.progress(*attempt, now_s, share=0.5)
            todo += ledger.made(*attempt, now_s)
            todo += ledger.finished(*attempt, now_s)
            num_events += 3
        making = making if wanted else []
    return num_events


def _row_of(index: int) -> PromptRow:
    return PromptRow(index=index, id=str(index), prompts=("a",), negative_prompt=None, seed=index, num_frames=161)


def _resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
