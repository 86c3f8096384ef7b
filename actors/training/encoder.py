"""Clips to latents, conditions and text, by a pool of workers, once: who trains then holds the network alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util import ActorPool

from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.training import load_encoder
from miga.errors import BadVideoError, ConfigError, MigaError
from miga.training.conditions import Shown, conditions_of, frames_before, picture_shown
from miga.training.encoded import EncodedClip, clip_file, write_clip
from pipeline.training_clips import ClipSource, cut_clip


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """What clips are encoded by, and for.

    Attributes:
        model, revision: whose VAE and text encoder.
        device: of the workers.
        num_threads: of a worker.
        names: of the conditions.
        folder: where encoded clips go.
        seed: of which stretch of a video is taken.
    """

    model: str
    revision: str | None
    device: str
    num_threads: int
    names: tuple[str, ...]
    folder: str
    seed: int


class ClipEncoder:
    """Encodes clips.

    Raises:
        ModelError: if the model cannot be loaded.
    """

    def __init__(self, job: EncodeJob) -> None:
        torch.set_num_threads(job.num_threads)
        self._job = job
        self._backbone: WanBackbone = load_encoder(job.model, job.revision, torch.device(job.device))
        self._texts: dict[str, torch.Tensor] = {}

    def encode(self, number: int, source: ClipSource) -> tuple[int, str]:
        """Writes one clip, unless it is there; its number, and why it cannot be used, empty if it can."""
        file = clip_file(Path(self._job.folder), number)
        if file.exists():
            return number, ""
        try:
            write_clip(file, self._encoded(number, source))
        except MigaError as error:
            if error.scope != "row":
                raise
            return number, error.message
        return number, ""

    @torch.inference_mode()
    def _encoded(self, number: int, source: ClipSource) -> EncodedClip:
        backbone, spec = self._backbone, self._backbone.spec
        rng = np.random.default_rng([self._job.seed, number])
        num_before = max(frames_before(name, spec.frames_per_latent) for name in self._job.names)
        with source.local() as path:
            cut = cut_clip(
                path,
                (spec.height, spec.width),
                spec.num_frames(spec.window),
                rng,
                num_before=num_before,
                num_shared=spec.frames_per_latent,
            )
        num_there = len(cut.before_FCHW)
        names = [name for name in self._job.names if frames_before(name, spec.frames_per_latent) <= num_there]
        if not names:
            raise BadVideoError(f"it has too few frames before a clip for {', '.join(self._job.names)}")
        clip_FCHW, before_FCHW = (frames.to(backbone.device) for frames in (cut.frames_FCHW, cut.before_FCHW))
        reference_CHW = cut.reference_CHW.to(backbone.device)
        caption = source.caption(cut.middle)
        if caption not in self._texts:
            (self._texts[caption],) = backbone.encode_prompts([caption])
        tokens = {
            name: read
            for name in names
            if (read := backbone.image_tokens(picture_shown(name, clip_FCHW, reference_CHW)[None])) is not None
        }
        return EncodedClip(
            clean_CFHW=backbone.encode_frames(clip_FCHW).transpose(0, 1),
            conditions=conditions_of(backbone, clip_FCHW, reference_CHW, before_FCHW, names),
            text_LD=self._texts[caption],
            tokens=tokens,
            notes={"caption": caption, "video": source.name, "start": str(cut.start)},
        )


def encode_clips(
    job: EncodeJob,
    sources: Sequence[ClipSource],
    *,
    num_actors: int,
    cpus: float,
    gpus: float,
    told: Callable[[int, str], None],
) -> list[int]:
    """Has a pool of actors encode all clips; the numbers of those that can be used, in order.

    Args:
        job: see there.
        sources: one a clip.
        num_actors: of the pool, at most.
        cpus: slots of each.
        gpus: the same.
        told: is given every clip as it is done, and why it cannot be used.

    Raises:
        MigaError: if the model cannot be loaded.
    """
    kind = ray.remote(ClipEncoder).options(num_cpus=cpus, num_gpus=gpus, max_restarts=2, max_task_retries=2)
    actors = [kind.remote(job) for _ in range(max(1, min(num_actors, len(sources))))]
    pool: Any = ActorPool(actors)
    usable = []
    try:
        found = pool.map_unordered(lambda actor, task: actor.encode.remote(*task), list(enumerate(sources)))
        for number, reason in found:
            told(number, reason)
            if not reason:
                usable.append(number)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, MigaError) else error from None
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)
    return sorted(usable)


def check_names(names: Sequence[str], *, reads_tokens: bool) -> None:
    """Whether a model can be trained under these conditions.

    Raises:
        ConfigError: if not.
    """
    for name in names:
        if Shown.of(name).kind == "none" and reads_tokens:
            raise ConfigError(
                "condition 'none' shows no picture, and this model's network reads one beside the text",
                "leave it out",
            )
