"""VideoCrafter2: the backbone, loaded whole or in parts from a folder that `miga convert` wrote.

`spec.py` what is known before loading · `checkpoint.py` the published file's tensors · `convert.py` that file to a
folder · `text.py` prompts to embeddings · `unet.py` the network · `denoiser.py` its calls · `vae.py` latents to frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from transformers import CLIPTextModel, CLIPTokenizer

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import check_files, loading, named, require_complete, require_finite, resolve_folder
from miga.backbones.videocrafter2.denoiser import VideoCrafter2Condition, VideoCrafter2Denoiser
from miga.backbones.videocrafter2.spec import (
    CONVERT_HINT,
    JSON_FILES,
    PUBLISHED,
    Settings,
    load_spec,
    settings_of_folder,
    spec_of_folder,
    unet_config_of,
)
from miga.backbones.videocrafter2.text import VideoCrafter2TextEncoder
from miga.backbones.videocrafter2.unet import VideoCrafter2UNet
from miga.backbones.videocrafter2.vae import VideoCrafter2FrameDecoder
from miga.backbones.wan import Component
from miga.config import SamplerConfig
from miga.errors import ConfigError, ModelError
from miga.schedule import NUM_TRAIN_TIMESTEPS, NoiseSchedule, ddim_schedule, ddim_signal_scale

__all__ = ["VideoCrafter2Backbone", "load_spec"]

FOLDERS: Final[dict[str, tuple[str, ...]]] = {
    "tokenizer": ("tokenizer",),
    "text": ("tokenizer", "text_encoder"),
    "denoiser": ("unet",),
    "vae": ("vae",),
}

UNET_FILE: Final = "diffusion_pytorch_model.safetensors"


class VideoCrafter2Backbone:
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
            raise ModelError(
                f"{str(name_or_dir)!r} is published as a pickle, model.ckpt, which is never loaded here as it is",
                hint=f"download model.ckpt from the hub, then {CONVERT_HINT}",
            )
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        subfolders = [subfolder for component in components for subfolder in FOLDERS[component]]
        folder = resolve_folder(name_or_dir, revision, [*JSON_FILES, *(f"{name}/*" for name in subfolders)])
        backbone = cls(spec_of_folder(folder, str(name_or_dir)), settings_of_folder(folder), device)
        if "tokenizer" in subfolders:
            encoder = _load(CLIPTextModel, "text_encoder", folder, dtype, device) if "text" in components else None
            backbone.text = VideoCrafter2TextEncoder(_load_tokenizer(folder), encoder)
        if "unet" in subfolders:
            backbone.unet = _load_unet(folder, dtype, device)
        if "vae" in subfolders:
            backbone.vae = _load(AutoencoderKL, "vae", folder, torch.float32, device)
        return backbone

    def check_prompt(self, prompt: str) -> None:
        """Finds a bad prompt by the tokenizer alone.

        Raises:
            BadRowError: if it is blank, or longer than the model reads.
        """
        assert self.text is not None, "loaded without the tokenizer"
        self.text.check(prompt)

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """One text embedding `[77, channels]` per prompt, float32 on the CPU, its padding included.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.text is not None, "loaded without the text encoder"
        return self.text.encode(prompts)

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> VideoCrafter2Condition:
        """The two embeddings on the backbone's device; the denoiser stacks and casts them."""
        return prompt_embedding.to(self.device), negative_embedding.to(self.device)

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
        )

    def frame_decoder(self) -> VideoCrafter2FrameDecoder:
        """A decoder at the start of a video; several may be open at once."""
        assert self.vae is not None, "loaded without the VAE"
        return VideoCrafter2FrameDecoder(self.vae)


def schedule_of(config: SamplerConfig, settings: Settings) -> NoiseSchedule:
    """VideoCrafter2's noise schedule, with the factor for the base clip if `settings` ask for it.

    Raises:
        ConfigError: if the schedule has no such number of steps, or the solver cannot step through it.
    """
    if config.solver == "unipc":
        raise ConfigError(
            "sampler.solver = 'unipc' cannot step through VideoCrafter2's schedule, whose last step changes nothing",
            "take 'ddim' (with eta 1 as published, or 0), or 'euler'",
        )
    schedule = _ddim(config.num_steps, settings)
    return replace(schedule, base_clip_scale=ddim_signal_scale(schedule)) if settings.use_scale else schedule


_STRIDED: Final = {
    -(-NUM_TRAIN_TIMESTEPS // (NUM_TRAIN_TIMESTEPS // asked)): asked
    for asked in range(1, NUM_TRAIN_TIMESTEPS // 2 + 1)
    if (NUM_TRAIN_TIMESTEPS - 1) % (NUM_TRAIN_TIMESTEPS // asked)
}
"""Numbers of steps that the strided spacing can make, and how many to ask it for (67: 66, as 64 makes)."""


def _ddim(num_steps: int, settings: Settings) -> NoiseSchedule:
    if settings.spacing == "linspace":
        try:
            return ddim_schedule(num_steps)
        except ValueError as error:
            raise ConfigError(f"sampler.num_steps = {num_steps} cannot be: {error}", "take another number") from error
    if num_steps not in _STRIDED:
        nearest = sorted(_STRIDED, key=lambda count: abs(count - num_steps))[:2]
        raise ConfigError(
            f"sampler.num_steps = {num_steps} cannot be with spacing 'strided', which takes every n-th of "
            f"{NUM_TRAIN_TIMESTEPS} time steps",
            f"the nearest are {nearest[0]} and {nearest[1]}",
        )
    return ddim_schedule(_STRIDED[num_steps], "strided")


def _load(kind: Any, component: str, folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    with loading(component, folder):
        check_files(component, folder)
        model, info = kind.from_pretrained(
            folder / component, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    require_complete(component, folder, info)
    require_finite(component, folder, model)
    return model.to(device).eval().requires_grad_(False)


def _load_unet(folder: Path, dtype: torch.dtype, device: torch.device) -> VideoCrafter2UNet:
    """Tensor by tensor onto the device, so that no second copy is ever in memory."""
    with loading("unet", folder):
        check_files("unet", folder)
        with torch.device("meta"):
            unet = VideoCrafter2UNet(unet_config_of(folder))
        wanted = unet.state_dict()
        with safe_open(folder / "unet" / UNET_FILE, framework="pt") as file:
            names = set(file.keys())
            for what, strange in (("lacks", wanted.keys() - names), ("has no place for", names - wanted.keys())):
                if strange:
                    raise ModelError(
                        f"the checkpoint in {str(folder / 'unet')!r} {what} {named(sorted(strange))}",
                        hint="weights and config.json do not belong together: convert the checkpoint again",
                    )
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
