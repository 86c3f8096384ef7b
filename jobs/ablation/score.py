"""The scores of an ablation's videos, each video scored once."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobs.ablation.plan import PROMPT_KEY, AblationPlan, manifest_of
from miga.backbones.sprites.world import STILL, Scene
from miga.errors import OutputError
from miga.metrics.features import FeatureExtractor, FrameFeatures, SpriteFeatures
from miga.metrics.pixels import MovementMeter
from miga.metrics.sprites import SpriteMeter, scenes_of, wanted_scenes
from miga.metrics.video import LongVideoMeter, chunks_of
from pipeline.ablation import ScoredVideo
from pipeline.rows import ManifestRow, first_frames
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.video import read_frames

SCORES_VERSION: Final = 2
"""Raised whenever scores of the same video would come out otherwise."""
MIN_POOL_FRAMES: Final = 1000
"""Fewer are scored sooner than processes are started for them."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ScoringTask:
    """One video to score, for a process of its own.

    Attributes:
        out: the run's folder.
        path: of the video in it.
        prompts: of the video.
        num_frames: of the video.
        prompt_frames: at which prompts begin; empty: they have even shares.
        clip_frames: of the model's own clip.
        frames_first_latent, frames_per_latent: of the model.
        is_sprites: whether the scorer of the sprite world can read it.
    """

    out: str
    path: str
    prompts: tuple[str, ...]
    num_frames: int
    prompt_frames: tuple[int, ...]
    clip_frames: int
    frames_first_latent: int
    frames_per_latent: int
    is_sprites: bool


def score_file(task: ScoringTask, extractor: FeatureExtractor) -> dict[str, float]:
    """The scores of one video, by name.

    Raises:
        OutputError: if its file is gone or not whole.
    """
    with _local_file(open_storage(task.out), task.path) as file:
        meters: list[LongVideoMeter | SpriteMeter] = [LongVideoMeter(extractor, task.num_frames, task.clip_frames)]
        movement = MovementMeter()
        scenes = scenes_of(task.prompts) if task.is_sprites else None
        if scenes is not None:
            wanted = wanted_scenes(
                scenes,
                task.num_frames,
                frames_first_latent=task.frames_first_latent,
                frames_per_latent=task.frames_per_latent,
                prompt_frames=task.prompt_frames,
            )
            meters.append(SpriteMeter(wanted, task.clip_frames, with_identity=True))
        for chunk_FHWC in chunks_of(read_frames(file)):
            for meter in meters:
                meter.add(chunk_FHWC)
            for frame_HWC in chunk_FHWC:
                movement.add(frame_HWC)
    try:
        values = {name: value for meter in meters for name, value in meter.values().items()}
        return {**values, **_of_movement(values["overall"], movement.score, scenes)}
    except ValueError as error:
        raise OutputError(
            f"{task.path} in {task.out}: {error}", "the file was changed after it was made: delete that run's folder"
        ) from error


def _of_movement(overall: float, moving: float, scenes: Sequence[Scene] | None) -> dict[str, float]:
    """How much moves, and O.S. for as much of the video as moves; NaN where the prompts ask for nothing that does."""
    is_still = scenes is not None and all(scene.motion == STILL for scene in scenes)
    if is_still:
        return {"dynamic": math.nan, "overall_moving": math.nan}
    return {"dynamic": moving, "overall_moving": overall * moving}


@contextlib.contextmanager
def _local_file(storage: Storage, path: str) -> Iterator[Path]:
    """A video of a run as a local file."""
    if isinstance(storage, LocalStorage):
        yield Path(storage.uri(path))
        return
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(storage.read_bytes(path))
        file.flush()
        yield Path(file.name)


def extractor_of(features: str) -> FeatureExtractor:
    """What consistency is judged by: "sprites", "frames", or image models.

    Raises:
        MigaError: if an image model is not to be had.
    """
    if features == "sprites":
        return SpriteFeatures()
    if features == "frames":
        return FrameFeatures()
    from miga.backbones.image_model import ImageModelFeatures

    return ImageModelFeatures(features)


def score_all(
    plan: AblationPlan, extractor: FeatureExtractor, storage: Storage, say: Say
) -> tuple[dict[str, list[ScoredVideo]], dict[str, int]]:
    """Setting → its videos with their scores, and how many of its rows have no video."""
    videos_of: dict[str, list[ScoredVideo]] = {}
    failed: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        score = _scorer(extractor, stack)
        for name in plan.samplers:
            rows = list(manifest_of(plan.run_plan(name)).read_rows())
            made = [row for row in rows if row.status == "ok"]
            failed[name] = len(rows) - len(made)
            scores = _scores(plan, name, made, extractor.name, storage, score, say)
            videos_of[name] = [_scored(row, scores[_score_key(row)]) for row in made]
    return videos_of, failed


def _scorer(
    extractor: FeatureExtractor, stack: contextlib.ExitStack
) -> Callable[[Sequence[ScoringTask]], Iterator[dict[str, float]]]:
    """Scores many videos: on all cores where features need no network, else in turn on the model's device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pools: list[ProcessPoolExecutor] = []

    def score(tasks: Sequence[ScoringTask]) -> Iterator[dict[str, float]]:
        is_small = sum(task.num_frames for task in tasks) < MIN_POOL_FRAMES
        if is_small or cores == 1 or not isinstance(extractor, SpriteFeatures | FrameFeatures):
            return (score_file(task, extractor) for task in tasks)
        if not pools:
            spawn = multiprocessing.get_context("spawn")
            pools.append(stack.enter_context(ProcessPoolExecutor(cores, mp_context=spawn)))
        return pools[0].map(score_file, tasks, [extractor] * len(tasks))

    return score


def _scores(
    plan: AblationPlan,
    name: str,
    made: Sequence[ManifestRow],
    features: str,
    storage: Storage,
    score: Callable[[Sequence[ScoringTask]], Iterator[dict[str, float]]],
    say: Say,
) -> dict[str, dict[str, float]]:
    """`_score_key` → scores of a setting's videos; what the scores file has is not decoded again."""
    path = f"scores/{name}.json"
    kept = _read_scores(storage, path)
    known = kept.setdefault(features, {})
    missing = [row for row in made if _score_key(row) not in known]
    if not missing:
        return known
    say(f"scoring {len(missing)} videos of {name}")
    out = plan.run_plan(name).out
    for row, values in zip(missing, score([_task(plan, out, row) for row in missing]), strict=True):
        known[_score_key(row)] = values
    storage.write_bytes(path, json.dumps({"version": SCORES_VERSION, "scores": kept}).encode())
    return known


def _read_scores(storage: Storage, path: str) -> dict[str, dict[str, dict[str, float]]]:
    """Features → `_score_key` → scores; empty where there are none of this version."""
    if not storage.exists(path):
        return {}
    try:
        values = json.loads(storage.read_bytes(path))
        return dict(values["scores"]) if values["version"] == SCORES_VERSION else {}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{storage.uri(path)} is broken: {error}", "delete it: it is written anew") from error


def _score_key(row: ManifestRow) -> str:
    """What the scores of a video depend on: its bytes, and what it was to show."""
    starts = [*row.prompt_frames, *row.prompt_times]
    return f"{row.sha256}:{json.dumps(row.prompts)}" + (f":{json.dumps(starts)}" if starts else "")


def _task(plan: AblationPlan, out: str, row: ManifestRow) -> ScoringTask:
    assert row.uri is not None
    assert row.num_frames is not None
    spec = plan.base.spec
    return ScoringTask(
        out=out,
        path=f"video/{row.shard:05d}/{row.uri.rpartition('/')[2]}",  # where it is now, should OUT have been moved
        prompts=row.prompts,
        num_frames=row.num_frames,
        prompt_frames=first_frames(row, spec.fps),
        clip_frames=spec.frames_first_latent + (spec.window - 1) * spec.frames_per_latent,
        frames_first_latent=spec.frames_first_latent,
        frames_per_latent=spec.frames_per_latent,
        is_sprites=SpriteMeter.can_read(spec.height, spec.width),
    )


def _scored(row: ManifestRow, scores: Mapping[str, float]) -> ScoredVideo:
    """A video's scores beside what the manifest knows of it."""
    made = {
        "num_frames": row.num_frames,
        "network_calls": row.network_calls,
        "seconds": (row.denoise_s or 0.0) + (row.decode_s or 0.0),
        "num_evaluations": row.num_evaluations,
        "num_searches": row.num_searches,
        "num_corrections": row.num_corrections,
        "peak_memory_bytes": row.peak_memory_bytes,
    }
    return ScoredVideo(
        prompt=str(json.loads(row.metadata)[PROMPT_KEY]),
        seed=row.seed or 0,
        values={**scores, **{name: float(value or 0) for name, value in made.items()}},
    )
