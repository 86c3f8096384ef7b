"""VideoCrafter2: the backbone, loaded whole or in parts from a folder that `miga convert` wrote.

`spec.py` what is known before loading · `checkpoint.py` the published file's tensors · `convert.py` that file to a
folder · `text.py` prompts to embeddings · `unet.py` the network · `schedule.py` its noise · `denoiser.py` its calls ·
`vae.py` latents to frames.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import (
    MOST_TOKENS,
    load_component,
    load_tokenizer,
    loading,
    require_component,
    require_finite,
)
from miga.backbones.model_config import arguments, read_config
from miga.backbones.pretrained import PretrainedBackbone
from miga.backbones.text import TextEncoder
from miga.backbones.videocrafter2.config import ClipTextConfig
from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.videocrafter2.spec import (
    JSON_FILES,
    Settings,
    settings_of_folder,
    spec_of_folder,
    text_config_of_folder,
    unet_config_of,
)
from miga.backbones.videocrafter2.text import VideoCrafter2TextEncoder
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.backbones.videocrafter2.vae import VideoCrafter2FrameDecoder
from miga.backbones.weight_files import entries_of, opened, require_file, require_fitting, weight_files
from miga.config import SamplerConfig
from miga.errors import ModelError


class VideoCrafter2Backbone(PretrainedBackbone):
    """See `PretrainedBackbone`; the network is the UNet."""

    json_files: ClassVar[tuple[str, ...]] = JSON_FILES
    network_folder: ClassVar[str] = "unet"
    text_class: ClassVar[type[TextEncoder]] = VideoCrafter2TextEncoder
    vae_class: ClassVar[Any] = AutoencoderKL
    network: VideoCrafter2UNet | None

    def __init__(self, spec: BackboneSpec, device: torch.device, settings: Settings, **parts: Any) -> None:
        super().__init__(spec, device, **parts)
        self.settings = settings

    @classmethod
    def without_parts(cls, folder: Path, name: str, device: torch.device) -> Self:
        """The backbone of a model in a local folder that the user calls so, with nothing loaded but its spec."""
        return cls(spec_of_folder(folder, name), device, settings_of_folder(folder))

    @staticmethod
    def load_tokenizer(folder: Path) -> Any:
        """CLIP's."""
        require_component("tokenizer", folder)
        require_tokenizer_files(folder / "tokenizer")
        file = folder / "text_encoder" / "config.json"
        is_here = os.path.lexists(file)
        vocabulary = read_config(folder, "text_encoder", ClipTextConfig).vocab_size if is_here else MOST_TOKENS
        return load_tokenizer(CLIPTokenizer, folder, vocabulary)

    @staticmethod
    def load_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
        """OpenCLIP's text tower."""
        config = CLIPTextConfig(**arguments(text_config_of_folder(folder)))
        return load_component(CLIPTextModel, "text_encoder", folder, dtype, config=config)

    @staticmethod
    def load_network(folder: Path, device: torch.device, dtype: torch.dtype) -> VideoCrafter2UNet:
        """Tensor by tensor onto the device, so that no second copy is ever in memory."""
        with loading("unet", folder):
            names = entries_of("unet", folder).keys()
            with torch.device("meta"):
                unet = VideoCrafter2UNet(unet_config_of(folder))
            wanted = unet.state_dict().keys()
            require_fitting("unet", folder, missing=sorted(wanted - names), left_over=sorted(names - wanted))
            state: dict[str, torch.Tensor] = {}
            for path in weight_files("unet", folder):
                with opened(path) as file:
                    state |= {name: file.get_tensor(name).to(device, dtype) for name in file.keys()}  # noqa: SIM118
            unet.load_state_dict(state, assign=True)
        require_finite("unet", folder, unet)
        return unet.eval().requires_grad_(False)

    def denoiser(self, config: SamplerConfig) -> VideoCrafter2Denoiser:
        """The UNet under the schedule and guidance scale of `config`.

        Raises:
            ConfigError: if the schedule has no such number of steps, or the solver cannot step through it.
        """
        assert self.network is not None, "loaded without the denoiser"
        guided_levels = (config.guidance_low_level, config.guidance_high_level)
        return VideoCrafter2Denoiser(
            self.network,
            schedule_of(config, self.settings),
            config.window,
            config.guidance_scale,
            self.settings.fps_condition,
            guided_levels,
            self.turn,
            frame_attention=config.frame_attention,
            frame_texts=config.frame_texts,
        )

    def frame_decoder(self) -> VideoCrafter2FrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return VideoCrafter2FrameDecoder(self.vae, self.turn)


def require_tokenizer_files(folder: Path) -> None:
    """Transformers would make a tokenizer up where there is none, and wait at a pipe.

    Raises:
        ModelError: if the folder holds none, or a file of it cannot be read.
    """
    there = {name for name in ("tokenizer.json", "vocab.json", "merges.txt") if os.path.lexists(folder / name)}
    for name in there:
        require_file(folder / name)
    if "tokenizer.json" not in there and len(there) < 2:
        raise ModelError(
            f"cannot load {str(folder)!r}: no tokenizer.json, nor vocab.json and merges.txt",
            hint="the folder was copied or downloaded incompletely",
        )
