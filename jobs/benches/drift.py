"""Identity over the time of long videos: how far each profile moves from a video's first clip, and when."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from jobs.benches.quality import VideoJob, VideoMaker, made_rows, plan
from jobs.benches.video_score import caption_of
from jobs.profiles.choice import parse_profile
from miga.backbones.registry import load_spec
from miga.backbones.sprites.identity import identity_over_time, look_of
from miga.backbones.sprites.scorer import Reading, read_frames
from miga.backbones.sprites.world import PERIOD, held_out_scenes
from miga.video import make_video
from pipeline.evaluation.paired import mean_interval

NUM_PARTS: Final = 4
"""Parts of a video that the table gives a figure for."""
_COLOURS: Final = ("#1f5fa8", "#c4561b", "#3b8a3e", "#7a4ba0", "#8a6d1f", "#4b4b4b")


def bench_drift(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes the videos that are still missing, draws their identity over time, and tells it in four parts.

    Raises:
        UsageError: if an option does not fit, or the file holds none of these videos.
        MigaError: if a process that makes videos fails.
    """
    profiles = list(dict.fromkeys(options.profiles))
    options.first_prompt, options.seeds = 0, 1
    options.latents = load_spec(options.model).num_latents(options.frames)
    jobs = plan(options, profiles)
    rows = made_rows(DriftMaker, jobs, options)
    if options.plot:
        draw_drift(rows, profiles, Path(options.plot))
    return drift_table(rows, profiles)


class DriftMaker(VideoMaker):
    """Makes videos with the embedded model and keeps what is read off them, not their frames."""

    def make(self, job: VideoJob) -> dict[str, Any]:
        """Identity and residual of the video, means of every cycle of `PERIOD` frames after the first clip."""
        spec = self.backbone.spec
        scene = held_out_scenes(job.prompt + 1, seed=1)[job.prompt]
        caption = caption_of(scene, job.prompt, job.captions)
        readings = [
            read_frames(step.frames / np.float32(255.0))
            for step in make_video(
                self.backbone,
                parse_profile(job.profile, spec),
                self.backbone.encode_prompts([caption]),
                self.negative,
                job.latents,
                seed=job.prompt + 1_000_000 * job.seed,
            )
            if step.frames is not None
        ]
        reading = Reading.joined(readings)
        num_first = spec.num_frames(spec.window)
        later = reading[num_first:]
        over_time_F = identity_over_time(look_of(reading[:num_first]), later)
        return {
            "caption": caption,
            "first frames": num_first,
            "identity": _cycles(over_time_F),
            "residual": _cycles(later.residual_F),
        }


def _cycles(values_F: np.ndarray) -> list[float]:
    """Means of every `PERIOD` values; what is left over at the end is left out, but not of a shorter video."""
    starts = range(0, max(1, len(values_F) - PERIOD + 1), PERIOD)
    return [round(float(np.nanmean(values_F[start : start + PERIOD])), 6) for start in starts]


def drift_table(rows: Sequence[Mapping[str, Any]], profiles: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Mean identity in each of four parts of the videos, with 95 % intervals over prompts."""
    first = rows[0]
    table = []
    for profile in profiles:
        of_profile = [row for row in rows if row["profile"] == profile]
        parts: dict[int, dict[tuple[int, int], float]] = {number: {} for number in range(NUM_PARTS)}
        for row in of_profile:
            for number, part in enumerate(np.array_split(np.asarray(row["identity"]), NUM_PARTS)):
                parts[number][row["prompt"], row["seed"]] = float(part.mean()) if len(part) else float("nan")
        named = {f"part {number + 1} of {NUM_PARTS}": str(mean_interval(found)) for number, found in parts.items()}
        table.append({"profile": f"{profile} ({len(of_profile)})", **named})
    title = f"{first['latents']} latents, {first['captions']} captions, {first['dtype']}"
    return {f"Distance from the first clip (0: the same, 1: another clip): {title}": table}


def draw_drift(rows: Sequence[Mapping[str, Any]], profiles: Sequence[str], file: Path) -> None:
    """A PNG: the mean over prompts for each profile, and each prompt's own line behind it."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8.0, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    for number, profile in enumerate(profiles):
        lines = [(row["first frames"], np.asarray(row["identity"])) for row in rows if row["profile"] == profile]
        if not lines:
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        num_cycles = min(len(line) for _, line in lines)
        frames = lines[0][0] + PERIOD * (np.arange(num_cycles) + 0.5)
        for _, line in lines:
            axes.plot(frames, line[:num_cycles], color=colour, alpha=0.2, linewidth=0.7)
        mean = np.mean([line[:num_cycles] for _, line in lines], axis=0)
        axes.plot(frames, mean, color=colour, linewidth=2.0, label=f"{profile} ({len(lines)} prompts)")
    axes.set_xlabel("frame")
    axes.set_ylabel("distance from the first clip")
    axes.set_ylim(0.0, 1.0)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, format="png", metadata={"Software": None})
