"""The embedded model as a family: one name, for a Wan model that comes with the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from miga.backbones.base import BackboneSpec
from miga.backbones.family import FrameMeter
from miga.backbones.wan.family import WanFamily

NAME: Final = "sprites"
CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""A folder in diffusers' layout, with all that a downloaded model has."""


class SpritesFamily(WanFamily):
    """See `Family`. In all else it is Wan's: its spec says so, and published settings are Wan's in proportion."""

    name: ClassVar[str] = NAME
    random_models: ClassVar[tuple[str, ...]] = ()

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """None: it is read from its folder."""
        return {}

    def knows(self, model: str) -> bool:
        """See `Family.knows`: its one name, whatever folder may be called so."""
        return model == NAME

    def recognises(self, place: Path, model: str) -> bool:
        """See `Family.recognises`."""
        return False

    def is_on_hub(self, model: str) -> bool:
        """See `Family.is_on_hub`."""
        return False

    @property
    def exact_scores(self) -> tuple[str, ...]:
        """See `Family.exact_scores`: those of the sprite world's scorer."""
        return ("colour", "ground", "shape", "motion", "all_right", "residual", "right_drift")

    def meter(
        self, spec: BackboneSpec, prompts: Sequence[str], num_frames: int, prompt_frames: Sequence[int] = ()
    ) -> FrameMeter | None:
        """See `Family.meter`: of captions of the sprite world."""
        from miga.metrics.sprites import SpriteMeter, scenes_of, wanted_scenes

        scenes = scenes_of(prompts)
        if scenes is None or not SpriteMeter.can_read(spec.height, spec.width):
            return None
        wanted = wanted_scenes(
            scenes,
            num_frames,
            frames_first_latent=spec.frames_first_latent,
            frames_per_latent=spec.frames_per_latent,
            prompt_frames=prompt_frames,
        )
        return SpriteMeter(wanted, spec.frames_first_latent + (spec.window - 1) * spec.frames_per_latent)

    def place(self, model: str) -> str:
        """See `FolderFamily.place`."""
        return str(CHECKPOINT)


FAMILY: Final = SpritesFamily()
