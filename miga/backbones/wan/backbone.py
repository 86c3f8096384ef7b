"""Wan2.1 and Wan2.2: the backbone, loaded whole or in parts from a folder or hub name in diffusers' layout.

`wan/spec.py` what is known before loading · `wan/schedule.py` its noise · `wan/text.py` prompts to embeddings ·
`wan/denoiser.py` the transformer · `wan/per_latent.py` a time step for every latent · `wan/padding.py` cheaper
cross-attention · `attention_backend.py` its backends · `wan/lora.py` LoRAs · `wan/vae.py` latents to frames and back ·
`wan/experts.py` two transformers · `wan/image.py` what is read of a picture.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from miga.backbones.attention_backend import set_attention_backend
from miga.backbones.base import Component
from miga.backbones.loading import load_component, load_tokenizer, require_component
from miga.backbones.lora_files import Lora
from miga.backbones.pretrained import PretrainedBackbone
from miga.backbones.text import TextEncoder
from miga.backbones.wan.causal.licence import licence_note
from miga.backbones.wan.denoiser import WanCondition, WanDenoiser
from miga.backbones.wan.experts import Experts
from miga.backbones.wan.image import ImageReader
from miga.backbones.wan.lora import fuse_loras
from miga.backbones.wan.padding import use_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.schedule import schedule_of
from miga.backbones.wan.spec import (
    JSON_FILES,
    TIED_TEXT_WEIGHTS,
    has_second_transformer,
    low_noise_guidance_of,
    spec_of_folder,
    text_config_of_folder,
    text_vocabulary,
)
from miga.backbones.wan.text import WanTextEncoder
from miga.backbones.wan.vae import WanFrameDecoder, encode_frames
from miga.backbones.weight_files import read_json
from miga.config import SamplerConfig
from miga.errors import ConfigError, ModelError
from miga.outside_data import shown


class WanBackbone(PretrainedBackbone):
    """See `PretrainedBackbone`; the network is the transformer, of two the one for high noise.

    Attributes:
        low_noise_network: the one for low noise, of Wan2.2's 14B models.
        low_noise_guidance: its guidance scale, as a share of the other's.
        image_reader: what is read of pictures, where the network reads something.
    """

    json_files: ClassVar[tuple[str, ...]] = JSON_FILES
    network_folder: ClassVar[str] = "transformer"
    is_compiled: bool = False
    text_class: ClassVar[type[TextEncoder]] = WanTextEncoder
    vae_class: ClassVar[Any] = AutoencoderKLWan
    low_noise_network: Any = None
    low_noise_guidance: float = 1.0
    image_reader: ImageReader | None = None

    @classmethod
    def without_parts(cls, folder: Path, name: str, device: torch.device) -> Self:
        """The backbone of a model in a local folder that the user calls so, with nothing loaded but its spec."""
        if note := licence_note(folder):
            warnings.warn(note, stacklevel=2)
        backbone = cls(spec_of_folder(folder, name), device)
        backbone.low_noise_guidance = low_noise_guidance_of(folder, name)
        return backbone

    @classmethod
    def _folders(cls, components: Sequence[Component]) -> list[str]:
        folders = super()._folders(components)
        if "denoiser" in components:
            folders += ["transformer_2", "image_encoder", "image_processor"]
        return folders

    def load_more(self, folder: Path, dtype: torch.dtype, components: Sequence[Component]) -> None:
        """Loads what only some models have: a second transformer, what reads pictures."""
        if "denoiser" not in components:
            return
        if has_second_transformer(folder):
            self.low_noise_network = self.load_network(folder, self.device, dtype, "transformer_2")
        if self.network.config.image_dim is not None:
            self.image_reader = ImageReader.load(folder, self.device)

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
    def load_network(
        folder: Path, device: torch.device, dtype: torch.dtype, part: str = "transformer"
    ) -> WanTransformer3DModel:
        """A transformer; where it reads text alone, cross-attention is computed the cheaper way (`wan/padding.py`)."""
        transformer = load_component(WanTransformer3DModel, part, folder, dtype).to(device)
        if transformer.config.image_dim is None:
            use_compact_padding(transformer)
        return transformer

    @property
    def networks(self) -> list[Any]:
        """The transformers that are loaded."""
        return [network for network in (self.network, self.low_noise_network) if network is not None]

    @functools.cached_property
    def experts(self) -> Experts:
        """The transformers as one: who answers for which levels, and where each is."""
        assert self.network is not None, "loaded without the denoiser"
        return Experts(self.network, self.low_noise_network, self.spec.expert_boundary)

    def to(self, device: torch.device) -> None:
        """See `PretrainedBackbone.to`."""
        super().to(device)
        if self.network is not None:
            self.experts.to(device)
        if self.image_reader is not None:
            self.image_reader.encoder.to(device)

    def save_memory(
        self, *, fp8: bool, vae_dtype: torch.dtype, decodes_beside: bool = True, one_expert: bool = False
    ) -> None:
        """See `PretrainedBackbone.save_memory`; with `one_expert`, of two transformers one is on the card at a time."""
        super().save_memory(fp8=fp8, vae_dtype=vae_dtype, decodes_beside=decodes_beside)
        if fp8 and self.low_noise_network is not None:
            network = self.low_noise_network
            network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=network.dtype)
        if self.image_reader is not None:
            self.image_reader.encoder.to(vae_dtype)
        if self.network is not None:
            self.experts.one_at_a_time = one_expert and self.low_noise_network is not None

    def fuse_loras(self, loras: Sequence[Lora]) -> None:
        """Adds LoRAs to the transformer's weights, where it is loaded.

        Raises:
            ModelError: if one is broken or is for another model.
        """
        for number, network in enumerate(self.networks):
            half = ("high", "low")[number] if self.low_noise_network is not None else ""
            fuse_loras(network, [lora for lora in loras if not half or lora.expert in (half, "both")])

    def set_attention_backend(self, name: str) -> None:
        """Has diffusers compute self-attention by another of its backends, for all models of this process.

        Raises:
            ModelError: if there is no such backend, or it does not work here.
        """
        for network in self.networks:
            set_attention_backend(network, name)

    def compile(self) -> None:
        """Compiles the transformer's blocks, one for all; that happens in the first call."""
        for network in self.networks:
            use_per_latent_timesteps(network)
            network.compile_repeated_blocks(fullgraph=True)
            self.is_compiled = True

    def denoiser(self, config: SamplerConfig) -> WanDenoiser:
        """The transformer under the schedule and guidance scale of `config`.

        Raises:
            ConfigError: if blocks are compiled, and another attention is asked for in them.
        """
        assert self.network is not None, "loaded without the denoiser"
        if self.is_compiled and config.frame_attention is not None:
            raise ConfigError(
                f"compile does not go with profile {config.profile!r}, which has an attention of its own in each block",
                "leave compile out",
            )
        guided_levels = (config.guidance_low_level, config.guidance_high_level)
        return WanDenoiser(
            self.experts,
            schedule_of(config),
            config.window,
            config.guidance_scale,
            guided_levels,
            self.turn,
            low_noise_guidance=self.low_noise_guidance,
            clean_at_0=self.spec.image_input == "first_latent",
            compiled=self.is_compiled,
            frame_attention=config.frame_attention,
            time_rotation=config.time_rotation,
        )

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> WanCondition:
        """The two embeddings on the backbone's device, as yet of no picture."""
        return WanCondition(*super().condition(prompt_embedding, negative_embedding))

    def frame_decoder(self) -> WanFrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return WanFrameDecoder(self.vae, self.turn)

    def encode_frames(self, frames_FCHW: torch.Tensor) -> torch.Tensor:
        """See `miga.image_condition.ImageBackbone.encode_frames`."""
        assert self.vae is not None, "loaded without the VAE"
        with self.turn():
            return encode_frames(self.vae, frames_FCHW)

    def decode_frames(self, x_FCHW: torch.Tensor) -> torch.Tensor:
        """See `miga.image_condition.ImageBackbone.decode_frames`."""
        return self.frame_decoder().decode_pixels(x_FCHW)

    def image_tokens(self, frames_FCHW: torch.Tensor) -> torch.Tensor | None:
        """See `miga.image_condition.ImageBackbone.image_tokens`: CLIP's, picture by picture."""
        return None if self.image_reader is None else self.image_reader.tokens(frames_FCHW)

    def with_image(self, condition: WanCondition, tokens_LD: torch.Tensor | None) -> WanCondition:
        """See `miga.image_condition.ImageBackbone.with_image`."""
        return condition._replace(tokens_LD=tokens_LD)
