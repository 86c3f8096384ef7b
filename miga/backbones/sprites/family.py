"""The embedded models as a family: Wan models that come with the package; and models trained on from one.

"sprites-wide" is "sprites" trained on on clips with what captions leave open: tints, light, textures, a second object.
"sprites-causal" and "sprites-few-step" are "sprites" with another transformer, stored as its difference from that of
"sprites" (`difference.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import torch
from safetensors.torch import load_file

from miga.backbones.base import Backbone, BackboneSpec, Component
from miga.backbones.family import FrameMeter
from miga.backbones.sprites.difference import HOW, with_difference
from miga.backbones.wan.family import WanFamily
from miga.errors import ModelError

if TYPE_CHECKING:
    from miga.backbones.wan.backbone import WanBackbone

NAME: Final = "sprites"
CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""A folder in diffusers' layout, with all that a downloaded model has."""
CHECKPOINTS: Final = {NAME: CHECKPOINT, "sprites-wide": CHECKPOINT.with_name("checkpoint_wide")}
"""The embedded models by name."""
DIFFERENCES: Final = Path(__file__).parent / "differences"
"""Where the differences of other models from it are, by their names."""
FEW_STEPS: Final[Mapping[str, Any]] = {
    "timesteps": [1000, 750, 500, 250], "num_steps": 4, "solver": "renoise", "flow_shift": 5.0, "guidance_scale": 1.0,
    "handoff_level": 2,
}  # fmt: skip
"""What few-step weights are sampled with; causal presets say the same themselves."""
TRAINED_ON: Final[Mapping[str, Mapping[str, Any]]] = {"sprites-causal": {}, "sprites-few-step": FEW_STEPS}
"""Models that are the embedded one trained on, and their settings over its own."""


class SpritesFamily(WanFamily):
    """See `Family`. In all else it is Wan's: its spec says so, and published settings are Wan's in proportion."""

    name: ClassVar[str] = NAME
    random_models: ClassVar[tuple[str, ...]] = ()

    @property
    def published(self) -> Mapping[str, BackboneSpec]:
        """None: it is read from its folder."""
        return {}

    def knows(self, model: str) -> bool:
        """See `Family.knows`: its own names, whatever folder may be called so."""
        return model in CHECKPOINTS

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
        return str(CHECKPOINTS.get(model, CHECKPOINT))


class TrainedOnFamily(SpritesFamily):
    """The embedded model with a transformer that was trained on from its own."""

    name: ClassVar[str] = "sprites-causal"

    def knows(self, model: str) -> bool:
        """See `Family.knows`."""
        return model in TRAINED_ON

    def load_spec(self, model: str, revision: str | None) -> BackboneSpec:
        """See `Family.load_spec`: that of the embedded one, under a digest and settings of its own."""
        spec = super().load_spec(model, revision)
        digest = hashlib.sha256(spec.revision.encode() + self._file(model).read_bytes()).hexdigest()
        return replace(spec, revision=f"sha256:{digest}", sampler={**spec.sampler, **TRAINED_ON[model]})

    def load_backbone(
        self,
        model: str,
        *,
        revision: str | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        components: Sequence[Component],
    ) -> Backbone:
        """See `Family.load_backbone`."""
        spec = self.load_spec(model, revision)
        found = super().load_backbone(model, revision=revision, device=device, dtype=dtype, components=components)
        backbone: WanBackbone = found  # type: ignore[assignment]
        backbone.spec = spec
        if backbone.network is not None:
            weights = self._weights(model)
            with torch.no_grad():
                for name, parameter in backbone.network.named_parameters():
                    parameter.copy_(weights[name])
        return found

    def check_weights(self, model: str, revision: str | None) -> None:
        """See `Family.check_weights`."""
        super().check_weights(model, revision)
        for name, weight in self._weights(model).items():
            if not bool(torch.isfinite(weight).all()):
                raise ModelError(f"{name} of {self._file(model)} is not finite", f"train it anew: {HOW}")

    def _weights(self, model: str) -> dict[str, torch.Tensor]:
        file = CHECKPOINT / "transformer" / "diffusion_pytorch_model.safetensors"
        return with_difference(self._file(model), load_file(file))

    @staticmethod
    def _file(model: str) -> Path:
        file = DIFFERENCES / f"{model}.safetensors"
        if not file.is_file():
            raise ModelError(f"the weights of {model!r} are not here: there is no {file}", HOW)
        return file


FAMILY: Final = SpritesFamily()
TRAINED_ON_FAMILY: Final = TrainedOnFamily()
