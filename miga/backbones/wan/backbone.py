"""Wan2.1: the backbone, loaded whole or in parts from a folder or hub name in diffusers' layout.

`wan/spec.py` what is known before loading · `wan/schedule.py` its noise · `wan/text.py` prompts to embeddings ·
`wan/denoiser.py` the transformer · `wan/per_latent.py` a time step for every latent · `wan/padding.py` cheaper
cross-attention · `attention_backend.py` its backends · `wan/lora.py` LoRAs · `wan/vae.py` latents to frames.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from miga.backbones.attention_backend import set_attention_backend
from miga.backbones.loading import load_component, load_tokenizer, require_component
from miga.backbones.lora_files import Lora
from miga.backbones.pretrained import PretrainedBackbone
from miga.backbones.text import TextEncoder
from miga.backbones.wan.causal.licence import licence_note
from miga.backbones.wan.denoiser import WanDenoiser
from miga.backbones.wan.lora import fuse_loras
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.schedule import schedule_of
from miga.backbones.wan.spec import (
    JSON_FILES,
    TIED_TEXT_WEIGHTS,
    spec_of_folder,
    text_config_of_folder,
    text_vocabulary,
)
from miga.backbones.wan.text import WanTextEncoder
from miga.backbones.wan.vae import WanFrameDecoder
from miga.backbones.weight_files import read_json
from miga.config import SamplerConfig
from miga.errors import ModelError
from miga.outside_data import shown


class WanBackbone(PretrainedBackbone):
    """See `PretrainedBackbone`; the network is the transformer."""

    json_files: ClassVar[tuple[str, ...]] = JSON_FILES
    network_folder: ClassVar[str] = "transformer"
    is_compiled: bool = False
    text_class: ClassVar[type[TextEncoder]] = WanTextEncoder
    vae_class: ClassVar[Any] = AutoencoderKLWan

    @classmethod
    def without_parts(cls, folder: Path, name: str, device: torch.device) -> Self:
        """The backbone of a model in a local folder that the user calls so, with nothing loaded but its spec."""
        if note := licence_note(folder):
            warnings.warn(note, stacklevel=2)
        return cls(spec_of_folder(folder, name), device)

    @staticmethod
    def load_tokenizer(folder: Path) -> Any:
        """By the class that model_index.json names: `AutoTokenizer` does not know every one that transformers saves."""
        entry = read_json(folder / "model_index.json").get("tokenizer")
        name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        kind: Any = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        is_tokenizer = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedTokenizerBase)
        if not is_tokenizer:
            raise ModelError(
                f"model_index.json of {str(folder)!r} names no tokenizer of transformers, but {shown(name)}",
                hint="T5TokenizerFast is what Wan's models name",
            )
        require_component("tokenizer", folder)
        if not any(os.path.lexists(folder / "tokenizer" / file) for file in ("tokenizer.json", "spiece.model")):
            raise ModelError(  # transformers would make one up
                f"cannot load {str(folder / 'tokenizer')!r}: no tokenizer.json or spiece.model",
                hint="the folder was copied or downloaded incompletely",
            )
        return load_tokenizer(kind, folder, text_vocabulary(folder))

    @staticmethod
    def load_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
        """UMT5."""
        config = text_config_of_folder(folder)
        return load_component(
            transformers.UMT5EncoderModel, "text_encoder", folder, dtype, ignore=TIED_TEXT_WEIGHTS, config=config
        )

    @staticmethod
    def load_network(folder: Path, device: torch.device, dtype: torch.dtype) -> WanTransformer3DModel:
        """The transformer; its cross-attention is computed the cheaper way (`wan/padding.py`)."""
        transformer = load_component(WanTransformer3DModel, "transformer", folder, dtype).to(device)
        use_compact_padding(transformer)
        return transformer

    def fuse_loras(self, loras: Sequence[Lora]) -> None:
        """Adds LoRAs to the transformer's weights, where it is loaded.

        Raises:
            ModelError: if one is broken or is for another model.
        """
        if self.network is not None:
            fuse_loras(self.network, loras)

    def set_attention_backend(self, name: str) -> None:
        """Has diffusers compute self-attention by another of its backends, for all models of this process.

        Raises:
            ModelError: if there is no such backend, or it does not work here.
        """
        if self.network is not None:
            set_attention_backend(self.network, name)

    def compile(self) -> None:
        """Compiles the transformer's blocks, one for all; that happens in the first call."""
        if self.network is not None:
            use_per_latent_timesteps(self.network)
            self.network.compile_repeated_blocks(fullgraph=True)
            self.is_compiled = True

    def denoiser(self, config: SamplerConfig) -> WanDenoiser:
        """The transformer under the schedule and guidance scale of `config`."""
        assert self.network is not None, "loaded without the denoiser"
        guided_levels = (config.guidance_low_level, config.guidance_high_level)
        return WanDenoiser(
            self.network, schedule_of(config), config.window, config.guidance_scale, guided_levels, self.turn,
            compiled=self.is_compiled,
        )  # fmt: skip

    def frame_decoder(self) -> WanFrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return WanFrameDecoder(self.vae, self.turn)
