"""Wan2.1: the backbone, loaded whole or in parts from a folder or hub name in diffusers' layout.

`wan_spec.py` what is known before loading · `wan_schedule.py` its noise · `wan_text.py` prompts to embeddings ·
`wan_denoiser.py` the transformer · `wan_per_latent.py` a time step for every latent · `wan_padding.py` cheaper
cross-attention · `wan_attention.py` its backends · `wan_lora.py` LoRAs · `wan_vae.py` latents to frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from miga.backbones.base import BackboneSpec, Component
from miga.backbones.loading import load_component, loading, read_json, resolve_folder
from miga.backbones.text import TextBackbone
from miga.backbones.wan_attention import set_attention_backend
from miga.backbones.wan_denoiser import WanDenoiser
from miga.backbones.wan_lora import Lora, fuse_loras
from miga.backbones.wan_padding import use_compact_padding
from miga.backbones.wan_per_latent import use_per_latent_timesteps
from miga.backbones.wan_schedule import schedule_of
from miga.backbones.wan_spec import JSON_FILES, TIED_TEXT_WEIGHTS, load_spec, spec_of_folder
from miga.backbones.wan_text import WanTextEncoder
from miga.backbones.wan_vae import WanFrameDecoder
from miga.config import SamplerConfig
from miga.errors import ModelError

__all__ = ["WanBackbone", "load_spec"]

FOLDERS: Final[dict[str, tuple[str, ...]]] = {
    "tokenizer": ("tokenizer",),
    "text": ("tokenizer", "text_encoder"),
    "denoiser": ("transformer",),
    "vae": ("vae",),
}


class WanBackbone(TextBackbone):
    """See `miga.backbones.base.Backbone`. Made by `from_pretrained`; parts that were not loaded are None."""

    def __init__(
        self,
        spec: BackboneSpec,
        device: torch.device,
        text: WanTextEncoder | None = None,
        transformer: WanTransformer3DModel | None = None,
        vae: AutoencoderKLWan | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.text = text
        self.transformer = transformer
        self.vae = vae

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        components: Sequence[Component] = ("text", "denoiser", "vae"),
        compact_padding: bool = True,
    ) -> Self:
        """Loads the parts asked for, and downloads no others.

        Args:
            name_or_dir: a folder, or a name on the hub.
            revision: commit, branch or tag on the hub.
            dtype: of transformer and text encoder, but for the modules they keep in float32; by default bfloat16 on a
                GPU, float32 on a CPU. The VAE stays in float32.
            device: by default the GPU, where there is one.
            components: parts to load.
            compact_padding: whether cross-attention is computed the cheaper way (see `wan_padding.py`).

        Raises:
            ModelError: if the model is missing, incomplete, broken or of another kind.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        subfolders = [subfolder for component in components for subfolder in FOLDERS[component]]
        folder = resolve_folder(name_or_dir, revision, [*JSON_FILES, *(f"{name}/*" for name in subfolders)])
        backbone = cls(spec_of_folder(folder, str(name_or_dir)), device)
        if "tokenizer" in subfolders:
            encoder = _load_text_encoder(folder, dtype).to(device) if "text_encoder" in subfolders else None
            backbone.text = WanTextEncoder(_load_tokenizer(folder), encoder)
        if "transformer" in subfolders:
            backbone.transformer = load_component(WanTransformer3DModel, "transformer", folder, dtype).to(device)
            if compact_padding:
                use_compact_padding(backbone.transformer)
        if "vae" in subfolders:
            backbone.vae = load_component(AutoencoderKLWan, "vae", folder, torch.float32).to(device)
        return backbone

    @property
    def network(self) -> WanTransformer3DModel | None:
        """The transformer."""
        return self.transformer

    def fuse_loras(self, loras: Sequence[Lora]) -> None:
        """Adds LoRAs to the transformer's weights, where it is loaded.

        Raises:
            ModelError: if one is broken or is for another model.
        """
        if self.transformer is not None:
            fuse_loras(self.transformer, loras)

    def set_attention_backend(self, name: str) -> None:
        """Has diffusers compute self-attention by another of its backends, for all models of this process.

        Raises:
            ModelError: if there is no such backend, or it does not work here.
        """
        if self.transformer is not None:
            set_attention_backend(self.transformer, name)

    def compile(self) -> None:
        """Compiles the transformer's blocks, one for all; that happens in the first call."""
        if self.transformer is not None:
            use_per_latent_timesteps(self.transformer)
            self.transformer.compile_repeated_blocks(fullgraph=True)

    def denoiser(self, config: SamplerConfig) -> WanDenoiser:
        """The transformer under the schedule and guidance scale of `config`."""
        assert self.transformer is not None, "loaded without the denoiser"
        guided_levels = (config.guidance_low_level, config.guidance_high_level)
        return WanDenoiser(
            self.transformer, schedule_of(config), config.window, config.guidance_scale, guided_levels, self.turn
        )

    def frame_decoder(self) -> WanFrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return WanFrameDecoder(self.vae, self.turn)


def _load_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    return load_component(transformers.UMT5EncoderModel, "text_encoder", folder, dtype, ignore=TIED_TEXT_WEIGHTS)


def _load_tokenizer(folder: Path) -> Any:
    """By the class that model_index.json names: `AutoTokenizer` does not know every one that transformers saves."""
    entry = read_json(folder / "model_index.json").get("tokenizer") or [None, None]
    kind = getattr(transformers, str(entry[1]), None)
    if kind is None or "Tokenizer" not in str(entry[1]):
        raise ModelError(
            f"model_index.json of {str(folder)!r} names no tokenizer of transformers, but {entry[1]!r}",
            hint="T5TokenizerFast is what Wan's models name",
        )
    with loading("tokenizer", folder):
        if not any((folder / "tokenizer" / file).exists() for file in ("tokenizer.json", "spiece.model")):
            raise FileNotFoundError("no tokenizer.json or spiece.model")  # transformers would make an empty one up
        return kind.from_pretrained(folder / "tokenizer", local_files_only=True)
