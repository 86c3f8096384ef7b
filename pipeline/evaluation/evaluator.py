"""Evaluates one video after another: fetches it, looks at it, and keeps what it noted. It knows no Ray."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from miga.backbones.registry import load_spec
from miga.errors import BadVideoError
from miga.evaluation.measures import FEATURES, MEASURES, Measure, VideoForm
from miga.evaluation.weights import WeightFile, load_network
from miga.metrics.sprites import SpriteMeter, scenes_of, wanted_scenes
from miga.outside_data import OutsideDataError
from pipeline.evaluation.features import FeatureFile
from pipeline.evaluation.records import EvaluatedRow, feature_path
from pipeline.evaluation.scores import VERSION, Looking, Meter, Result, score_video
from pipeline.evaluation.videos import FOLDER, Video, look_at_video
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage

SPRITES: Final = "sprites"
SAMPLER: Final = "sampler_consistency"
EXTRA: Final[Mapping[str, str]] = {
    SPRITES: "the sprite world's exact scores: colour, ground, shape, motion; needs no weights",
    SAMPLER: "the sampler's own consistency of a run's latents; needs no frames",
}
"""Measures that keep no features: name → what they are."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """With what every worker of an evaluation works.

    Attributes:
        out: where the videos are; results go into its folder `evaluation`.
        measures: names that are wanted.
        weights: name → file.
        device: of the networks.
        batch: frames that go through a network at once.
        num_threads: of a worker on the CPU.
        storage_patience_s: seconds that the server of OUT may be gone; None: what the environment says.
    """

    out: str
    measures: tuple[str, ...]
    weights: Mapping[str, WeightFile] = field(default_factory=dict)
    device: str = "cpu"
    batch: int = 1
    num_threads: int = 1
    storage_patience_s: float | None = None


def made_of(name: str, weights: Mapping[str, WeightFile]) -> str:
    """What a measure's results depend on beside the video, as one name."""
    networks = MEASURES[name].networks if name in MEASURES else ()
    return ",".join([f"v{VERSION}", *(f"{network}={weights[network].sha256[:16]}" for network in networks)])


def is_of(result_name: str, measure: str) -> bool:
    """Whether a result is of a measure; some give several, called "measure.part"."""
    return result_name == measure or result_name.startswith(f"{measure}.")


class Evaluator:
    """Holds the networks that it needed so far.

    Args:
        settings: see there.

    Attributes:
        num_steps: how often it has come a little further; one that stands still hangs.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self.num_steps = 0
        self._settings = settings
        self._networks: dict[str, Any] = {}
        self._storage = open_storage(settings.out, settings.storage_patience_s)
        root = f"{self._storage.root.rstrip('/')}/{FOLDER}"
        self._kept: Storage = open_storage(root, settings.storage_patience_s)

    def evaluate(self, video: Video, measures: Sequence[str]) -> EvaluatedRow:
        """The results of one video.

        Args:
            video: which.
            measures: names that are still to be had of it.

        Raises:
            BadVideoError: if it cannot be read.
            ModelError: if the weights of a network cannot be loaded.
        """
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="miga-evaluate-") as folder, self._local(video, Path(folder)) as path:
            sha256 = self._checked_hash(path, video)
            form, note = (video.form, "") if video.form is not None else look_at_video(path)
            wanted = [MEASURES[name] for name in measures if name in MEASURES]
            scratch = Path(folder, "features")
            scratch.mkdir()
            meters = self._meters(video, form, measures)
            results, fresh = score_video(
                path,
                form,
                wanted,
                Looking(
                    networks=self._network,
                    device=torch.device(self._settings.device),
                    batch=self._settings.batch,
                    step=self._step,
                ),
                kept=self._features(wanted, sha256, Path(folder)),
                scratch=scratch,
                made_of=lambda measure: made_of(measure.name, self._settings.weights),
                meters=meters,
            )
            for feature, file in fresh.items():
                self._kept.put_file(file, self._feature_path(feature, sha256))
        results |= self._read(video, form, measures, meters)
        return EvaluatedRow(
            video=video, sha256=sha256, form=form, results=results, note=note, seconds=time.monotonic() - started_s
        )

    def _step(self) -> None:
        self.num_steps += 1

    @contextmanager
    def _local(self, video: Video, folder: Path) -> Iterator[Path]:
        """The video as a local file."""
        if isinstance(self._storage, LocalStorage):
            path = Path(self._storage.root, video.path)
            if not path.is_file():
                raise BadVideoError(f"{video.path} is not there", "`miga verify` says what is missing")
            yield path
            return
        path = folder / "video.mp4"
        try:
            self._storage.get_file(video.path, path)
        except FileNotFoundError as error:
            raise BadVideoError(f"{video.path} is not there", "`miga verify` says what is missing") from error
        yield path

    def _checked_hash(self, path: Path, video: Video) -> str:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if video.sha256 is not None and sha256 != video.sha256:
            raise BadVideoError(
                f"{video.path} is not the video that was made: its SHA-256 is another",
                "see `miga verify` and `miga repair`",
            )
        return sha256

    def _network(self, name: str) -> Any:
        if name not in self._networks:
            self._networks[name] = load_network(self._settings.weights[name], self._settings.device)
        return self._networks[name]

    # ---- what was noted before ----

    def _feature_path(self, feature: str, sha256: str) -> str:
        network = FEATURES[feature].network
        return feature_path(feature, self._settings.weights[network].sha256 if network else "", sha256)

    def _features(self, measures: Sequence[Measure], sha256: str, folder: Path) -> dict[str, Path]:
        """Feature → its file, of those that an earlier evaluation has kept whole."""
        found: dict[str, Path] = {}
        for feature in dict.fromkeys(name for measure in measures for name in measure.features):
            path = self._feature_path(feature, sha256)
            local = folder / f"kept-{feature}.safetensors"
            if isinstance(self._kept, LocalStorage):
                local = Path(self._kept.root, path)
            else:
                with suppress(FileNotFoundError):
                    self._kept.get_file(path, local)
            if _is_whole(local):
                found[feature] = local
        return found

    # ---- measures without features ----

    def _meters(self, video: Video, form: VideoForm, measures: Sequence[str]) -> dict[str, Meter]:
        if SPRITES not in measures or self._why_no_sprites(video, form):
            return {}
        scenes = scenes_of(video.prompts)
        assert scenes is not None
        spec = self._sprites
        wanted = wanted_scenes(
            scenes,
            form.num_frames,
            frames_first_latent=spec.frames_first_latent,
            frames_per_latent=spec.frames_per_latent,
            prompt_frames=video.prompt_frames,
        )
        clip_frames = spec.frames_first_latent + (spec.window - 1) * spec.frames_per_latent
        return {SPRITES: SpriteMeter(wanted, clip_frames)}

    @cached_property
    def _sprites(self) -> Any:
        return load_spec("sprites", None)

    @staticmethod
    def _why_no_sprites(video: Video, form: VideoForm) -> str:
        if not SpriteMeter.can_read(form.height, form.width):
            return (
                f"the sprite world's scorer reads frames of its own size, and the video is {form.width}x{form.height}"
            )
        if not video.prompts or scenes_of(video.prompts) is None:
            return "the sprite world's scorer needs prompts of that world's grammar"
        return ""

    def _read(
        self, video: Video, form: VideoForm, measures: Sequence[str], meters: Mapping[str, Meter]
    ) -> dict[str, Result]:
        results: dict[str, Result] = {}
        of = made_of(SPRITES, {})
        for name, meter in meters.items():
            results |= {f"{name}.{part}": Result.single(value, of) for part, value in meter.values().items()}
        if SPRITES in measures and not meters:
            results[SPRITES] = Result.failed(self._why_no_sprites(video, form), of)
        if SAMPLER in measures:
            trace = video.consistency
            results[SAMPLER] = (
                Result.single(sum(trace) / len(trace), of, trace)
                if trace
                else Result.failed("the sampler left no trace of its consistency", of)
            )
        return results


def _is_whole(path: Path) -> bool:
    try:
        FeatureFile(path).close()
    except (FileNotFoundError, OutsideDataError):
        return False
    return True
