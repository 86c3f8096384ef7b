"""Drift of chains of clips in the sprite world: identity and residual against the clip's number, model against model.

Every chain begins from a picture that the world drew with details of its own (tints, light, a texture, a second
object), under a caption that names neither colour nor ground: what the clips show of them, only the picture tells. All
models make the same chains from the same noise. Identity is the distance from what the world shows, residual what is
off every drawing of the world. `acceptance` says what is held to be a success; it was written before any long run.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from jobs.benches.making import figure, made_lines, settings_digest
from jobs.benches.video_score import require_scenes
from jobs.profiles.choice import parse_profile
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites.details import Details, render_detailed
from miga.backbones.sprites.identity import identity_over_time, look_of
from miga.backbones.sprites.scorer import Reading, read_frames, read_motion
from miga.backbones.sprites.world import Placement, Scene, held_out_scenes
from miga.errors import UsageError
from miga.image_condition import Pictures
from miga.video import make_video
from pipeline.evaluation.paired import Interval, mean_interval, paired_difference, verdict

SCENES_SEED: Final = 20
"""Of the order of the held-out scenes: other ones than `miga bench quality` begins with."""
KEY_NAMES: Final = ("label", "revision", "config", "dtype", "clips", "prompt")
MEASURES: Final[dict[str, bool]] = {"identity": False, "residual": False, "shape": True, "motion": True}
"""Of a clip, and whether more of it is better."""
NUM_LAST: Final = 5
"""Clips at a chain's end whose mean is held against the first one."""
MOST_GROWTH: Final = 0.5
"""Of the control's growth, what the recycled model's may be."""
_COLOURS: Final = ("#8a8a8a", "#c4561b", "#1f5fa8", "#3b8a3e")


@dataclass(frozen=True)
class ChainJob:
    """One chain.

    Attributes:
        label: of the model, as it was named.
        model: its folder.
        revision: of its files.
        profile: as it was named.
        config: digest of its settings.
        dtype: of the network.
        clips: of the chain.
        prompt: number of the held-out scene.
    """

    label: str
    model: str
    revision: str
    profile: str
    config: str
    dtype: str
    clips: int
    prompt: int

    def __str__(self) -> str:
        return f"{self.label}, chain {self.prompt}"


def bench_chains(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes the chains that are still missing, and holds the models against each other.

    Raises:
        UsageError: if an option does not fit.
        MigaError: if a model cannot be loaded, or a process fails.
    """
    models = parse_models(options.models)
    jobs = plan(models, options.profile, options.prompts, options.clips, options.dtype)
    rows = made_lines(ChainMaker, jobs, KEY_NAMES, options, "chains")
    if options.plot:
        draw(rows, list(models), Path(options.plot))
    return tables(rows, list(models), len(jobs) - len(rows))


def parse_models(texts: Sequence[str]) -> dict[str, str]:
    """Folders by label, of `LABEL=FOLDER`.

    Raises:
        UsageError: if one is none, or a label comes twice.
    """
    models: dict[str, str] = {}
    for text in texts:
        label, sign, folder = text.partition("=")
        if not sign or not label or not folder or label in models:
            raise UsageError(
                f"--models {text!r} is not LABEL=FOLDER, each label once", "such as base=i2v/ control=c/model"
            )
        models[label] = folder
    return models


def plan(models: Mapping[str, str], profile: str, num_prompts: int, num_clips: int, dtype: str) -> list[ChainJob]:
    """All chains, those of one prompt side by side.

    Raises:
        UsageError: if there are not so many held-out scenes, or a model is not of the sprite world.
    """
    require_scenes(f"--prompts {num_prompts}", num_prompts, SCENES_SEED)
    found = {}
    for label, folder in models.items():
        spec = load_spec(folder)
        if spec.image_input != "channels" or (spec.height, spec.width, spec.window) != (64, 64, 12):
            raise UsageError(
                f"{label}={folder} is no model of the sprite world that takes pictures",
                "such as `python -m jobs.train_sprites_i2v` writes, or what `jobs.train_svi --full` makes of it",
            )
        found[label] = folder, spec.revision, settings_digest(parse_profile(profile, spec))
    return [
        ChainJob(label, folder, revision, profile, config, dtype, num_clips, prompt)
        for prompt in range(num_prompts)
        for label, (folder, revision, config) in found.items()
    ]


class ChainMaker:
    """Makes and measures chains; a model is loaded with its first chain."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def make(self, job: ChainJob) -> dict[str, Any]:
        """What a line says of a chain beside its key: each measure clip by clip."""
        if job.model not in self._loaded:
            self._loaded[job.model] = load_backbone(job.model, device="cpu", dtype=getattr(torch, job.dtype))
        return make_chain(self._loaded[job.model], job)


def world_of(prompt: int, num_frames: int) -> tuple[Scene, np.ndarray]:
    """A held-out scene, and frames `[F, H, W, 3]` that the world draws of it, with details of its own."""
    scene = held_out_scenes(prompt + 1, SCENES_SEED)[prompt]
    rng = np.random.default_rng([SCENES_SEED, prompt])
    return scene, render_detailed(scene, Placement.random(rng), Details.random(scene, rng), num_frames)


def first_picture(backbone: Any, world_FHWC: np.ndarray) -> Pictures:
    """The first of the world's frames, 0 ... 1, as what a video begins from."""
    return Pictures(backbone, torch.from_numpy(world_FHWC[0]).permute(2, 0, 1) * 2.0 - 1.0)


def make_chain(backbone: Any, job: ChainJob) -> dict[str, Any]:
    """What a line says of a chain beside its key: each measure clip by clip."""
    spec, config = backbone.spec, parse_profile(job.profile, backbone.spec)
    clip_frames = spec.num_frames(spec.window)
    scene, world_FHWC = world_of(job.prompt, clip_frames)
    negative, embedding = backbone.encode_prompts([spec.negative_prompt, scene.caption(0, ("colour", "ground"))])
    readings = [
        read_frames(step.frames / np.float32(255.0))
        for step in make_video(
            backbone,
            config,
            [embedding],
            negative,
            job.clips * spec.window,
            seed=job.prompt,
            pictures=first_picture(backbone, world_FHWC),
        )
        if step.frames is not None and len(step.frames)
    ]
    assert config.clips is not None
    look = look_of(read_frames(world_FHWC))
    clips = clips_of(Reading.joined(readings), job.clips, clip_frames - config.clips.overlap)
    found: dict[str, list[float | None]] = {name: [] for name in MEASURES}
    for clip in clips:
        figures = {
            "identity": float(np.mean(identity_over_time(look, clip))),
            "residual": float(np.mean(clip.residual_F)),
            "shape": float(np.mean([shape == scene.shape for shape in clip.shape])),
            "motion": float(read_motion(clip.xy_F2) == scene.motion),
        }
        for name, value in figures.items():
            found[name].append(figure(value))
    return {"caption": scene.caption(0, ("colour", "ground")), "scene": asdict(scene), **found}


def clips_of(reading: Reading, num_clips: int, num_new: int) -> list[Reading]:
    """The frames of every clip that are in the video; the frames that one clip has more than others are the last's."""
    bounds = [*(number * num_new for number in range(num_clips)), len(reading)]
    return [reading[start:stop] for start, stop in itertools.pairwise(bounds)]


# ---- what it says ----------------------------------------------------------------------------------------------------

Values = dict[tuple[int, int], float]
"""By chain, and a 0 that `mean_interval` asks for."""


def tables(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], num_missing: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Means by clip, growth from the first clip on, and, of a control and a recycled model, what is accepted.

    Args:
        rows: lines of the file.
        labels: of the models; "control" and "recycled" are held against each other.
        num_missing: chains that are still to be made.
    """
    num_clips = rows[0]["clips"]
    shown = sorted({1, 2, 5, 10, num_clips} & set(range(1, num_clips + 1)))
    missing = f"; {num_missing} chains are not made yet" if num_missing else ""
    found: dict[str, list[dict[str, Any]]] = {}
    for name in MEASURES:
        table = [
            {"model": label}
            | {f"clip {clip}": str(mean_interval(at_clip(rows, label, name, clip - 1))) for clip in shown}
            | {"growth": mean_interval(growth(rows, label, name)).signed()}
            for label in labels
        ]
        found[f"{name} by clip, 95 % intervals over chains{missing}"] = table
    if {"control", "recycled"} <= set(labels):
        found["recycled against control, the same chains"] = acceptance(rows)
    return found


def at_clip(rows: Sequence[Mapping[str, Any]], label: str, name: str, clip: int) -> Values:
    """A measure of one clip, by chain."""
    return {
        (row["prompt"], 0): math.nan if row[name][clip] is None else float(row[name][clip])
        for row in rows
        if row["label"] == label
    }


def growth(rows: Sequence[Mapping[str, Any]], label: str, name: str) -> Values:
    """What a measure has become in the last `NUM_LAST` clips, less the first clip's, by chain."""
    found: Values = {}
    for row in rows:
        if row["label"] == label:
            values = np.asarray([math.nan if value is None else value for value in row[name]], dtype=np.float64)
            last = values[1:][-NUM_LAST:]
            known = last[~np.isnan(last)]
            found[row["prompt"], 0] = float(known.mean() - values[0]) if len(known) else math.nan
    return found


def acceptance(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is held to be a success: the error grows at most half as much as the control's, and nothing is lost.

    Of identity and residual, growth less half the control's, chain by chain: "accepted" if the interval lies at 0 or
    below, "refuted" if above, else "undecided"; "no drift" where the control's own growth is not above 0. Of shape and
    motion, the difference at the first clip.
    """
    found = []
    for name in ("identity", "residual"):
        control, recycled = (growth(rows, label, name) for label in ("control", "recycled"))
        excess = paired_difference(recycled, {key: MOST_GROWTH * value for key, value in control.items()})
        found.append(
            {
                "measure": f"growth of {name}",
                "control": mean_interval(control).signed(),
                "recycled": mean_interval(recycled).signed(),
                "recycled less half the control": excess.signed(),
                "verdict": _judged(mean_interval(control), excess),
            }
        )
    for name in ("shape", "motion"):
        control, recycled = (at_clip(rows, label, name, 0) for label in ("control", "recycled"))
        difference = paired_difference(recycled, control)
        found.append(
            {
                "measure": f"{name} at clip 1",
                "control": str(mean_interval(control)),
                "recycled": str(mean_interval(recycled)),
                "recycled less half the control": "-",
                "verdict": f"{difference.signed()} {verdict(difference, MEASURES[name])}",
            }
        )
    return found


def _judged(control: Interval, excess: Interval) -> str:
    if math.isnan(excess.low):
        return "undecided"
    if control.low <= 0.0:
        return "no drift"
    return "accepted" if excess.high <= 0.0 else "refuted" if excess.low > 0.0 else "undecided"


def draw(rows: Sequence[Mapping[str, Any]], labels: Sequence[str], file: Path) -> None:
    """A PNG: every measure against the clip's number, the mean over chains with its interval."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_clips = rows[0]["clips"]
    numbers = np.arange(1, num_clips + 1)
    canvas = Figure(figsize=(3.2 * len(MEASURES), 3.2), dpi=130, layout="constrained")
    FigureCanvasAgg(canvas)
    for axes, name in zip(canvas.subplots(1, len(MEASURES)), MEASURES, strict=True):
        for label, colour in zip(labels, (*_COLOURS, *("#4b4b4b",) * len(labels)), strict=False):
            spread = [mean_interval(at_clip(rows, label, name, clip)) for clip in range(num_clips)]
            axes.plot(numbers, [each.mean for each in spread], color=colour, label=label)
            axes.fill_between(
                numbers,
                [each.low for each in spread],
                [each.high for each in spread],
                color=colour,
                alpha=0.2,
                linewidth=0,
            )
        axes.set_title(name)
        axes.set_xlabel("clip")
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, format="png", metadata={"Software": None})
