"""Long videos of held-out prompts, profile against profile: means, and differences video by video."""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from jobs.benches.making import figure, made_lines, settings_digest
from jobs.benches.video_score import MEASURES, caption_of, measure, omitted, require_scenes, scenes_in_turn
from jobs.profiles.choice import parse_profile
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites.world import held_out_scenes
from miga.errors import UsageError
from miga.metrics.sprites import wanted_scenes
from miga.video import make_video
from pipeline.evaluation.paired import mean_interval, paired_difference, verdict

KEY_NAMES: Final = ("profile", "config", "model", "dtype", "captions", "latents", "prompt", "seed")
"""What makes a line: a changed profile or model makes others."""
COSTS: Final = ("calls", "searches", "corrections", "cpu s")


@dataclass(frozen=True)
class VideoJob:
    """One video of the bench.

    Attributes:
        profile: as it was named.
        config: digest of its settings, see `settings_digest`.
        model: revision of the model.
        dtype: of the network.
        captions: "full", "partial", "empty", "turns" (two full ones) or "details" (texture and second object named).
        latents: length.
        prompt: number of the held-out scene.
        seed: of the video among those of its prompt.
    """

    profile: str
    config: str
    model: str
    dtype: str
    captions: str
    latents: int
    prompt: int
    seed: int

    def __str__(self) -> str:
        return f"{self.profile}, prompt {self.prompt}, seed {self.seed}"


def bench_quality(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes the videos that are still missing, and compares the profiles.

    Raises:
        UsageError: if an option does not fit.
        MigaError: if a process that makes videos fails.
    """
    profiles = list(dict.fromkeys(options.profiles))
    if options.against not in profiles and len(profiles) > 1:
        raise UsageError(f"--against {options.against} is none of --profiles", f"take one of {', '.join(profiles)}")
    jobs = plan(options, profiles)
    rows = made_rows(VideoMaker, jobs, options)
    return compare(rows, profiles, options.against, len(jobs) - len(rows), every_pair=options.every_pair)


def made_rows(kind: type[VideoMaker], jobs: Sequence[VideoJob], options: argparse.Namespace) -> list[dict[str, Any]]:
    """See `made_lines`; `options.model` is what makes them."""
    return made_lines(partial(kind, options.model, options.dtype), jobs, KEY_NAMES, options)


def plan(options: argparse.Namespace, profiles: Sequence[str]) -> list[VideoJob]:
    """All videos, those of one prompt and seed side by side: what an interrupted bench has made can be compared.

    Raises:
        UsageError: if there are not so many held-out scenes.
        ConfigError: if a profile is not known.
    """
    spec = load_spec(options.model)
    prompts = range(options.first_prompt, options.first_prompt + options.prompts)
    require_scenes(f"--prompts {options.prompts}", options.first_prompt + options.prompts, seed=1)
    digests = {profile: settings_digest(parse_profile(profile, spec)) for profile in profiles}
    return [
        VideoJob(
            profile=profile,
            config=digests[profile],
            model=spec.revision,
            dtype=options.dtype,
            captions=options.captions,
            latents=options.latents,
            prompt=prompt,
            seed=seed,
        )
        for seed, prompt, profile in itertools.product(range(options.seeds), prompts, profiles)
    ]


class VideoMaker:
    """Makes and measures videos of the sprite world.

    Args:
        model: the embedded one, or another that was trained on its world.
        dtype: of the network.

    Attributes:
        backbone: the model.
        negative: embedding of its negative prompt.
    """

    def __init__(self, model: str, dtype: str) -> None:
        self.backbone = load_backbone(model, device="cpu", dtype=getattr(torch, dtype))
        (self.negative,) = self.backbone.encode_prompts([self.backbone.spec.negative_prompt])

    def make(self, job: VideoJob) -> dict[str, Any]:
        """What a line says of the video beside its key."""
        backbone = self.backbone
        scene = held_out_scenes(job.prompt + 1, seed=1)[job.prompt]
        open_names = omitted(job.captions, job.prompt)
        scenes = scenes_in_turn(job.captions, scene, job.prompt)
        captions = [caption_of(each, job.prompt, job.captions) for each in scenes]
        started_s = time.process_time()
        frames = []
        for step in make_video(
            backbone,
            parse_profile(job.profile, backbone.spec),
            backbone.encode_prompts(captions),
            self.negative,
            job.latents,
            seed=job.prompt + 1_000_000 * job.seed,
        ):
            trace, num_calls = step.trace, step.num_calls
            if step.frames is not None:
                frames.append(step.frames)
        cpu_s = time.process_time() - started_s
        num_first = backbone.spec.num_frames(backbone.spec.window)
        video_FHWC = np.concatenate(frames) / np.float32(255.0)
        wanted = wanted_scenes(
            scenes,
            len(video_FHWC),
            frames_first_latent=backbone.spec.frames_first_latent,
            frames_per_latent=backbone.spec.frames_per_latent,
        )
        values = measure(video_FHWC, wanted, open_names, num_first)
        return {
            "caption": captions[0] if len(captions) == 1 else captions,
            "scene": asdict(scene),
            **{name: figure(value) for name, value in values.items()},
            "calls": num_calls,
            "searches": sum(trace.searched),
            "corrections": sum(trace.corrected),
            "cpu s": round(cpu_s, 2),
        }


def compare(
    rows: Sequence[Mapping[str, Any]],
    profiles: Sequence[str],
    against: str,
    num_missing: int = 0,
    *,
    every_pair: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Means per profile, and paired differences, each with its interval over prompts.

    Args:
        rows: lines of the file.
        profiles: columns.
        against: the profile that the others are held against.
        num_missing: videos that are still to be made.
        every_pair: whether the others are held against each other too, each pair once.
    """
    values = {
        (profile, name): {
            (row["prompt"], row["seed"]): _number(row.get(name)) for row in rows if row["profile"] == profile
        }
        for profile in profiles
        for name in (*MEASURES, *COSTS)
    }
    num_videos = {profile: len(values[profile, "calls"]) for profile in profiles}
    judged = [name for name in MEASURES if any(not math.isnan(v) for p in profiles for v in values[p, name].values())]
    first = rows[0]
    title = f"{first['latents']} latents, {first['captions']} captions, {first['dtype']}"
    if num_missing:
        title += f"; {num_missing} videos are not made yet"
    tables = {
        f"Means and 95 % intervals over prompts: {title}": [
            {
                "measure": name,
                **{
                    f"{profile} ({num_videos[profile]})": str(mean_interval(values[profile, name]))
                    for profile in profiles
                },
            }
            for name in (*judged, *COSTS)
        ]
    }
    first_ones = sorted(profiles, key=lambda profile: profile != against)
    for number, one in enumerate(first_ones if every_pair else first_ones[:1]):
        others = [profile for profile in profiles if profile not in first_ones[: number + 1]]
        if others:
            tables[f"Difference from {one}, same prompts and seeds"] = [
                {"measure": name, **{other: _difference(values, other, one, name) for other in others}}
                for name in judged
            ]
    return tables


def _number(value: float | None) -> float:
    """A measure as it stands in a line; NaN for none, and for one that an older line lacks."""
    return math.nan if value is None else float(value)


def _difference(
    values: Mapping[tuple[str, str], Mapping[tuple[int, int], float]], profile: str, against: str, name: str
) -> str:
    difference = paired_difference(values[profile, name], values[against, name])
    return "-" if math.isnan(difference.mean) else f"{difference.signed()} {verdict(difference, MEASURES[name])}"
