"""Two prompts in turn: does what they name change, how soon, and does what they leave open stay?

Both prompts leave the same attributes open. What the second one names is another colour, shape and ground each.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from jobs.benches.making import figure
from jobs.benches.quality import VideoJob, VideoMaker, made_rows, plan
from jobs.benches.video_score import LOOKS, caption_of, omitted
from jobs.profiles.choice import parse_profile
from miga.backbones.sprites.scorer import read_frames
from miga.backbones.sprites.world import COLOURS, GROUNDS, SHAPES, Scene, held_out_scenes
from miga.errors import UsageError
from miga.video import make_video
from pipeline.evaluation.paired import mean_interval, paired_difference, verdict

HELD: Final = 16
"""Frames, a second of them: what is named has changed once three quarters of so many show it."""
MEASURES: Final[dict[str, bool]] = {
    "first named": True,
    "then named": True,
    "frames to change": False,
    "open stays": True,
    "residual": False,
    "colour, 2nd block": True,
    "ground, 2nd block": True,
    "colour, 4th block": True,
    "ground, 4th block": True,
}
"""All measures, and whether more of it is better."""
BLOCK_FRAMES: Final = 12
"""Of a causal preset's block: three latents."""
_CHOICES: Final = {"colour": tuple(COLOURS), "shape": tuple(SHAPES), "ground": tuple(GROUNDS)}


def bench_turns(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes the videos that are still missing, and compares the profiles.

    Raises:
        UsageError: if an option does not fit, or the file holds none of these videos.
        MigaError: if a process that makes videos fails.
    """
    profiles = list(dict.fromkeys(options.profiles))
    if options.against not in profiles and len(profiles) > 1:
        raise UsageError(f"--against {options.against} is none of --profiles", f"take one of {', '.join(profiles)}")
    if options.captions == "empty":
        raise UsageError("--captions empty names nothing that could change", "take full or partial")
    jobs = plan(options, profiles)
    rows = made_rows(TurnsMaker, jobs, options)
    return compare(rows, profiles, options.against)


def next_scene(scene: Scene, open_names: Sequence[str]) -> Scene:
    """The scene of the second prompt: another value of every look that is named."""
    other = {}
    for name in LOOKS:
        if name not in open_names:
            choices = _CHOICES[name]
            other[name] = choices[(choices.index(getattr(scene, name)) + 1) % len(choices)]
    return replace(scene, **other)


class TurnsMaker(VideoMaker):
    """Makes and measures videos under two prompts in turn."""

    def make(self, job: VideoJob) -> dict[str, Any]:
        """What a line says of the video beside its key."""
        backbone, open_names = self.backbone, omitted(job.captions, job.prompt)
        first = held_out_scenes(job.prompt + 1, seed=1)[job.prompt]
        scenes = (first, next_scene(first, open_names))
        captions = [caption_of(scene, job.prompt, job.captions) for scene in scenes]
        started_s, frames = time.process_time(), []
        config = parse_profile(job.profile, backbone.spec)
        for step in make_video(
            backbone,
            config,
            backbone.encode_prompts(captions),
            self.negative,
            job.latents,
            seed=job.prompt + 1_000_000 * job.seed,
        ):
            num_calls = step.num_calls
            if step.frames is not None:
                frames.append(step.frames)
        turn = backbone.spec.num_frames(config.first_under(math.ceil(job.latents / 2)))
        values = measure_turns(np.concatenate(frames) / np.float32(255.0), scenes, open_names, turn)
        return {
            "captions in turn": captions,
            **{name: figure(value) for name, value in values.items()},
            "calls": num_calls,
            "cpu s": round(time.process_time() - started_s, 2),
        }


def measure_turns(
    frames_FHWC: np.ndarray, scenes: tuple[Scene, Scene], open_names: Sequence[str], turn: int
) -> dict[str, float]:
    """Every measure of `MEASURES`.

    "first named", "then named": share of frames before the turn, and of those in the second half behind it, that show
    all looks the prompt of that time names. "frames to change": from the turn until they are shown by three quarters of
    `HELD` frames; the frames left where that never happens. "open stays": share of all frames that show the looks left
    open as most of the first second does; NaN where none is. "colour, 4th block": share of frames 36 to 47 behind the
    turn that show the new one; NaN where it is left open, or the video ends before.

    Args:
        frames_FHWC: float32 in [0, 1].
        scenes: of the first prompt and of the second.
        open_names: what both leave open.
        turn: number of the first frame under the second.
    """
    reading = read_frames(frames_FHWC)
    seen = {name: np.asarray(getattr(reading, name)) for name in LOOKS}
    named = [name for name in LOOKS if name not in open_names]
    right = [np.logical_and.reduce([seen[name] == getattr(scene, name) for name in named]) for scene in scenes]
    behind = right[1][turn:]
    windows = [behind[start : start + HELD].mean() for start in range(max(1, len(behind) - HELD + 1))]
    changed = next((start for start, share in enumerate(windows) if share >= 0.75), len(behind))
    kept = [seen[name] == _most_common(seen[name][:HELD]) for name in LOOKS if name in open_names]
    return {
        "first named": float(right[0][:turn].mean()),
        "then named": float(behind[len(behind) // 2 :].mean()),
        "frames to change": float(changed),
        "open stays": float(np.logical_and.reduce(kept).mean()) if kept else math.nan,
        "residual": float(reading.residual_F.mean()),
        **{
            f"{name}, {ordinal} block": _share(seen[name] == getattr(scenes[1], name), turn, number, name in open_names)
            for ordinal, number in (("2nd", 2), ("4th", 4))
            for name in ("colour", "ground")
        },
    }


def _share(is_new_F: np.ndarray, turn: int, number: int, is_open: bool) -> float:
    """Of the frames of a block behind the turn, counted from 1."""
    frames_F = is_new_F[turn + (number - 1) * BLOCK_FRAMES : turn + number * BLOCK_FRAMES]
    return math.nan if is_open or len(frames_F) < BLOCK_FRAMES else float(frames_F.mean())


def _most_common(names: np.ndarray) -> str:
    values, counts = np.unique(names, return_counts=True)
    return str(values[counts.argmax()])


def compare(
    rows: Sequence[Mapping[str, Any]], profiles: Sequence[str], against: str
) -> dict[str, list[dict[str, Any]]]:
    """Means per profile, and paired differences from one of them, each with its interval over prompts."""
    values = {
        (profile, name): {
            (row["prompt"], row["seed"]): math.nan if row.get(name) is None else float(row[name])
            for row in rows
            if row["profile"] == profile
        }
        for profile in profiles
        for name in (*MEASURES, "calls")
    }
    tables = {
        f"Two prompts in turn: {rows[0]['latents']} latents, {rows[0]['captions']} captions": [
            {"measure": name, **{profile: str(mean_interval(values[profile, name])) for profile in profiles}}
            for name in (*MEASURES, "calls")
        ]
    }
    others = [profile for profile in profiles if profile != against]
    if others:
        tables[f"Difference from {against}, same prompts and seeds"] = [
            {
                "measure": name,
                **{other: _difference(values[other, name], values[against, name], name) for other in others},
            }
            for name in MEASURES
        ]
    return tables


def _difference(ours: Mapping[tuple[int, int], float], theirs: Mapping[tuple[int, int], float], name: str) -> str:
    difference = paired_difference(ours, theirs)
    return "-" if math.isnan(difference.mean) else f"{difference.signed()} {verdict(difference, MEASURES[name])}"
