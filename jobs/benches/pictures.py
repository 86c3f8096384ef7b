"""What becomes of a picture in one profile and in another: videos of the sprite world from pictures, way against way.

Every video begins from a picture that the world drew with details of its own, under a caption that names neither
colour nor ground: what they are, only the picture tells. All profiles make the same videos from the same noise.
Identity is the distance from what the world shows, residual what is off every drawing of the world, jump how much more
the frames change where the second latent begins than they do later on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from jobs.benches.chains import SCENES_SEED, first_picture, world_of
from jobs.benches.making import figure, made_lines, settings_digest
from jobs.benches.video_score import require_scenes
from jobs.profiles.choice import parse_profile
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_backbone, load_spec
from miga.backbones.sprites.identity import identity_over_time, look_of
from miga.backbones.sprites.scorer import Reading, read_frames, read_motion
from miga.backbones.sprites.world import Scene
from miga.cost import count_calls
from miga.errors import UsageError
from miga.generate import rules_of_pictures
from miga.profiles import why_no_length
from miga.video import make_video
from pipeline.evaluation.paired import Interval, mean_interval, paired_difference, verdict

KEY_NAMES: Final = ("profile", "revision", "config", "frames", "prompt")
HALVES: Final[Mapping[str, bool]] = {"identity": False, "residual": False, "colour": True, "ground": True}
"""What is measured in both halves of a video, and whether more of it is better."""
WHOLE: Final[Mapping[str, bool]] = {"first frame": False, "jump": False, "shape": True, "motion": True}
"""The same of a video as a whole."""


@dataclass(frozen=True)
class PictureJob:
    """One video.

    Attributes:
        profile: as it was named.
        model: its folder.
        revision: of its files.
        config: digest of the settings.
        frames: of the video.
        prompt: number of the held-out scene.
    """

    profile: str
    model: str
    revision: str
    config: str
    frames: int
    prompt: int

    def __str__(self) -> str:
        return f"{self.profile}, scene {self.prompt}"


def bench_pictures(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Makes the videos that are still missing, and holds every profile against the first one.

    Raises:
        UsageError: if an option does not fit.
        MigaError: if the model cannot be loaded, or a process fails.
    """
    jobs = plan(options.model, options.profiles, options.prompts, options.frames)
    rows = made_lines(PictureMaker, jobs, KEY_NAMES, options)
    return tables(rows, options.profiles, len(jobs) - len(rows))


def plan(model: str, profiles: Sequence[str], num_prompts: int, num_frames: int) -> list[PictureJob]:
    """All videos, those of one scene side by side.

    Raises:
        UsageError: if there are not so many held-out scenes, a video of that length cannot be made, or the model takes
            no pictures of the sprite world.
        ConfigError: if a profile is not known, or does not go with the model.
    """
    require_scenes(f"--prompts {num_prompts}", num_prompts, SCENES_SEED)
    spec = load_spec(model)
    if not spec.image_input or (spec.height, spec.width, spec.window) != (64, 64, 12):
        raise UsageError(
            f"{model} is no model of the sprite world that takes pictures",
            "such as `python -m jobs.train_sprites_i2v` writes; 'sprites' itself holds its first latent",
        )
    digests = {}
    for profile in profiles:
        config = parse_profile(profile, spec)
        rules_of_pictures(spec, config)
        if reason := why_no_length(config, spec.of_clips(config.clips), num_frames):
            raise UsageError(f"--frames {num_frames}, profile {profile!r}: {reason}", "give a length that all make")
        digests[profile] = settings_digest(config)
    return [
        PictureJob(profile, model, spec.revision, digest, num_frames, prompt)
        for prompt in range(num_prompts)
        for profile, digest in digests.items()
    ]


class PictureMaker:
    """Makes and measures videos; the model is loaded with the first."""

    def __init__(self) -> None:
        self._backbone: Any = None

    def make(self, job: PictureJob) -> dict[str, Any]:
        """What a line says of a video beside its key."""
        if self._backbone is None:
            self._backbone = load_backbone(job.model, device="cpu")
        return make_one(self._backbone, job)


def make_one(backbone: Any, job: PictureJob) -> dict[str, Any]:
    """What a line says of a video beside its key."""
    spec, config = backbone.spec, parse_profile(job.profile, backbone.spec)
    scene, world_FHWC = world_of(job.prompt, spec.num_frames(spec.window))
    caption = scene.caption(0, ("colour", "ground"))
    negative, embedding = backbone.encode_prompts([spec.negative_prompt, caption])
    num_latents = spec.of_clips(config.clips).num_latents(job.frames)
    pictures = first_picture(backbone, world_FHWC)
    steps = make_video(backbone, config, [embedding], negative, num_latents, job.prompt, pictures=pictures)
    frames_FHWC = np.concatenate([step.frames for step in steps if step.frames is not None]) / np.float32(255.0)
    calls = {"calls": count_calls(config, num_latents).total}
    return {"caption": caption, "scene": asdict(scene), **calls, **figures_of(frames_FHWC, world_FHWC, scene, spec)}


def figures_of(
    frames_FHWC: np.ndarray, world_FHWC: np.ndarray, scene: Scene, spec: BackboneSpec
) -> dict[str, float | list[float] | None]:
    """All measures of a video.

    Args:
        frames_FHWC: of the video, 0 ... 1.
        world_FHWC: what the world shows of the scene, its first frame the picture.
        scene: that is shown.
        spec: of the model.
    """
    reading, look, half = read_frames(frames_FHWC), look_of(read_frames(world_FHWC)), len(frames_FHWC) // 2
    found: dict[str, float | list[float] | None] = {
        name: [round(value, 6) for value in values]
        for name, values in (
            ("identity", _halves(identity_over_time(look, reading), half)),
            ("residual", _halves(reading.residual_F, half)),
            ("colour", _halves(np.array([seen == scene.colour for seen in reading.colour]), half)),
            ("ground", _halves(np.array([seen == scene.ground for seen in reading.ground]), half)),
        )
    }
    whole = {
        "first frame": float(np.abs(frames_FHWC[0] - world_FHWC[0]).mean()),
        "jump": jump_of(frames_FHWC, spec.frames_first_latent),
        "shape": float(np.mean([shape == scene.shape for shape in reading.shape])),
        "motion": _motion_right(reading, scene),
    }
    return found | {name: figure(value) for name, value in whole.items()}


def _halves(values_F: np.ndarray, half: int) -> list[float]:
    return [float(np.mean(values_F[:half])), float(np.mean(values_F[half:]))]


def _motion_right(reading: Reading, scene: Scene) -> float:
    return float(read_motion(reading.xy_F2) == scene.motion)


def jump_of(frames_FHWC: np.ndarray, num_first: int) -> float:
    """Change from the picture to the frame behind the first latent, as a multiple of the median of later changes."""
    change_F = np.abs(np.diff(frames_FHWC, axis=0)).mean(axis=(1, 2, 3))
    usual = float(np.median(change_F[num_first:])) if len(change_F) > num_first else 0.0
    return float(change_F[num_first - 1]) / usual if usual > 0.0 else math.nan


# ---- what it says ----------------------------------------------------------------------------------------------------


def tables(
    rows: Sequence[Mapping[str, Any]], profiles: Sequence[str], num_missing: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Means by profile, and every profile held against the first one, the same scenes.

    Args:
        rows: lines of the file.
        profiles: in order.
        num_missing: videos that are still to be made.
    """
    missing = f"; {num_missing} videos are not made yet" if num_missing else ""
    means, differences = [], []
    for profile in profiles:
        own = [row for row in rows if row["profile"] == profile]
        values = measures(own)
        calls = {"calls": own[0]["calls"] if own else "-"}
        means.append({"profile": profile} | calls | {name: str(mean_interval(each)) for name, each in values.items()})
        if profile != profiles[0]:
            against = measures([row for row in rows if row["profile"] == profiles[0]])
            found = {name: paired_difference(values[name], against[name]) for name in values}
            differences.append(
                {"profile": profile} | {name: _said(difference, name) for name, difference in found.items()}
            )
    of_all = {f"from pictures, 95 % intervals over scenes{missing}": means}
    return of_all | ({f"less {profiles[0]}, the same scenes": differences} if differences else {})


def _said(difference: Interval, name: str) -> str:
    kind = name.split(",")[0]
    return f"{difference.signed()} {verdict(difference, {**HALVES, **WHOLE}[kind])}"


def measures(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[int, int], float]]:
    """Every measure by scene (and a 0 that `mean_interval` asks for)."""
    found: dict[str, dict[tuple[int, int], float]] = {}
    for name in HALVES:
        for number, half in enumerate(("first half", "second half")):
            found[f"{name}, {half}"] = {(row["prompt"], 0): float(row[name][number]) for row in rows}
    for name in WHOLE:
        found[name] = {(row["prompt"], 0): math.nan if row[name] is None else float(row[name]) for row in rows}
    return found
