"""VideoCrafter2: the backbone, loaded whole or in parts from a folder that `miga convert` wrote.

`spec.py` what is known before loading · `checkpoint.py` the published file's tensors · `convert.py` that file to a
folder · `text.py` prompts to embeddings · `unet.py` the network · `schedule.py` its noise · `denoiser.py` its calls ·
`vae.py` latents to frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from miga.backbones.base import BackboneSpec, Component
from miga.backbones.loading import (
    check_files,
    load_component,
    loading,
    require_all,
    require_finite,
    require_weights,
    resolve_folder,
)
from miga.backbones.text import TextBackbone
from miga.backbones.videocrafter2.denoiser import VideoCrafter2Denoiser
from miga.backbones.videocrafter2.schedule import schedule_of
from miga.backbones.videocrafter2.spec import (
    JSON_FILES,
    PUBLISHED,
    Settings,
    load_spec,
    settings_of_folder,
    spec_of_folder,
    unconverted,
    unet_config_of,
)
from miga.backbones.videocrafter2.text import VideoCrafter2TextEncoder
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.backbones.videocrafter2.vae import VideoCrafter2FrameDecoder
from miga.config import SamplerConfig

__all__ = ["VideoCrafter2Backbone", "load_spec"]

FOLDERS: Final[dict[str, tuple[str, ...]]] = {
    "tokenizer": ("tokenizer",),
    "text": ("tokenizer", "text_encoder"),
    "denoiser": ("unet",),
    "vae": ("vae",),
}

UNET_FILE: Final = "diffusion_pytorch_model.safetensors"


class VideoCrafter2Backbone(TextBackbone):
    """See `miga.backbones.base.Backbone`. Made by `from_pretrained`; parts that were not loaded are None."""

    def __init__(
        self,
        spec: BackboneSpec,
        settings: Settings,
        device: torch.device,
        text: VideoCrafter2TextEncoder | None = None,
        unet: VideoCrafter2UNet | None = None,
        vae: AutoencoderKL | None = None,
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.device = device
        self.text = text
        self.unet = unet
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
    ) -> Self:
        """Loads the parts asked for, and downloads no others.

        Args:
            name_or_dir: a converted folder, or the hub name of one.
            revision: commit, branch or tag on the hub.
            dtype: of UNet and text encoder; by default bfloat16 on a GPU, float32 on a CPU. The VAE stays in float32.
            device: by default the GPU, where there is one.
            components: parts to load.

        Raises:
            ModelError: if the model is missing, incomplete, broken, of another kind, or not converted yet.
        """
        if str(name_or_dir) in PUBLISHED and not Path(name_or_dir).is_dir():
            raise unconverted(str(name_or_dir))
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        subfolders = [subfolder for component in components for subfolder in FOLDERS[component]]
        folder = resolve_folder(name_or_dir, revision, [*JSON_FILES, *(f"{name}/*" for name in subfolders)])
        backbone = cls(spec_of_folder(folder, str(name_or_dir)), settings_of_folder(folder), device)
        if "tokenizer" in subfolders:
            words = _load_tokenizer(folder)
            encoder = load_component(CLIPTextModel, "text_encoder", folder, dtype) if "text" in components else None
            backbone.text = VideoCrafter2TextEncoder(words, encoder.to(device) if encoder else None)
        if "unet" in subfolders:
            backbone.unet = _load_unet(folder, dtype, device)
        if "vae" in subfolders:
            backbone.vae = load_component(AutoencoderKL, "vae", folder, torch.float32).to(device)
        return backbone

    @property
    def network(self) -> VideoCrafter2UNet | None:
        """The UNet."""
        return self.unet

    def denoiser(self, config: SamplerConfig) -> VideoCrafter2Denoiser:
        """The UNet under the schedule and guidance scale of `config`.

        Raises:
            ConfigError: if the schedule has no such number of steps, or the solver cannot step through it.
        """
        assert self.unet is not None, "loaded without the denoiser"
        guided_levels = (config.guidance_low_level, config.guidance_high_level)
        return VideoCrafter2Denoiser(
            self.unet,
            schedule_of(config, self.settings),
            config.window,
            config.guidance_scale,
            self.settings.fps_condition,
            guided_levels,
            self.turn,
        )

    def frame_decoder(self) -> VideoCrafter2FrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return VideoCrafter2FrameDecoder(self.vae, self.turn)


def _load_unet(folder: Path, dtype: torch.dtype, device: torch.device) -> VideoCrafter2UNet:
    """Tensor by tensor onto the device, so that no second copy is ever in memory."""
    with loading("unet", folder):
        check_files("unet", folder)
        require_weights("unet", folder)
        with torch.device("meta"):
            unet = VideoCrafter2UNet(unet_config_of(folder))
        wanted = unet.state_dict()
        with safe_open(folder / "unet" / UNET_FILE, framework="pt") as file:
            names = set(file.keys())
            require_all("unet", folder, wanted.keys() - names, left_over=names - wanted.keys())
            state = {name: file.get_tensor(name).to(device, dtype) for name in sorted(names)}
        unet.load_state_dict(state, assign=True)
    require_finite("unet", folder, unet)
    return unet.eval().requires_grad_(False)


def _load_tokenizer(folder: Path) -> Any:
    with loading("tokenizer", folder):
        require_tokenizer_files(folder / "tokenizer")
        return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


def require_tokenizer_files(folder: Path) -> None:
    """Transformers would make a tokenizer up where there is none.

    Raises:
        FileNotFoundError: if the folder holds none.
    """
    if not (folder / "tokenizer.json").exists() and not (
        (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    ):
        raise FileNotFoundError("no tokenizer.json, nor vocab.json and merges.txt")
