"""What Wan and VideoCrafter2 share as backbones: loaded in parts, told by text what to show, moved and made to fit.

Legend: L tokens of a prompt, D channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from miga.backbones.base import BackboneSpec, Component, Condition, Denoiser, FrameDecoder
from miga.backbones.loading import device_and_dtype, load_component, resolve_folder
from miga.backbones.text import TextEncoder
from miga.backbones.turns import Turn, Turns
from miga.config import SamplerConfig
from miga.errors import BadRowError


class PretrainedBackbone(ABC):
    """See `miga.backbones.base.Backbone`. Made by `from_pretrained`; parts that were not loaded are None.

    Attributes:
        json_files: what a spec is read from, and what lies beside it.
        network_folder: where the network's files are.
        text_class, vae_class: of the parts that are loaded alike.
        network: denoises.
        decodes_beside: whether latents are decoded while the network is called, whoever asks for either.
        turn: what a forward of the network and the decoding of a latent wait for.
    """

    json_files: ClassVar[tuple[str, ...]]
    network_folder: ClassVar[str]
    text_class: ClassVar[type[TextEncoder]]
    vae_class: ClassVar[Any]
    decodes_beside: bool = True
    turn: Turn = nullcontext

    def __init__(
        self,
        spec: BackboneSpec,
        device: torch.device,
        text: TextEncoder | None = None,
        network: Any = None,
        vae: Any = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.text = text
        self.network = network
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
            name_or_dir: a folder in diffusers' layout, or a name on the hub.
            revision: commit, branch or tag on the hub.
            dtype: of network and text encoder, but for the modules they keep in float32; by default bfloat16 on a GPU,
                float32 on a CPU. The VAE stays in float32.
            device: by default the GPU, where there is one.
            components: parts to load.

        Raises:
            ModelError: if the model is missing, incomplete, broken or of another kind.
        """
        device, dtype = device_and_dtype(device, dtype)
        folders = cls._folders(components)
        folder = resolve_folder(name_or_dir, revision, [*cls.json_files, *(f"{name}/*" for name in folders)])
        backbone = cls.without_parts(folder, str(name_or_dir), device)
        if "tokenizer" in folders:
            encoder = cls.load_text_encoder(folder, dtype).to(device) if "text_encoder" in folders else None
            backbone.text = cls.text_class(cls.load_tokenizer(folder), encoder)
        if cls.network_folder in folders:
            backbone.network = cls.load_network(folder, device, dtype)
        if "vae" in folders:
            backbone.vae = load_component(cls.vae_class, "vae", folder, torch.float32).to(device)
        backbone.load_more(folder, dtype, components)
        return backbone

    def load_more(self, folder: Path, dtype: torch.dtype, components: Sequence[Component]) -> None:
        """Loads what only some models of the family have."""
        return

    @classmethod
    def _folders(cls, components: Sequence[Component]) -> list[str]:
        """Folders of the files that the parts are made of."""
        of_component: dict[Component, tuple[str, ...]] = {
            "tokenizer": ("tokenizer",),
            "text": ("tokenizer", "text_encoder"),
            "denoiser": (cls.network_folder,),
            "vae": ("vae",),
        }
        return list(dict.fromkeys(folder for component in components for folder in of_component[component]))

    @classmethod
    @abstractmethod
    def without_parts(cls, folder: Path, name: str, device: torch.device) -> Self:
        """The backbone of a model in a local folder that the user calls so, with nothing loaded but its spec."""

    @staticmethod
    @abstractmethod
    def load_tokenizer(folder: Path) -> Any:
        """One of transformers'."""

    @staticmethod
    @abstractmethod
    def load_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
        """One of transformers', on the CPU."""

    @staticmethod
    @abstractmethod
    def load_network(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
        """The network, on the device."""

    @abstractmethod
    def denoiser(self, config: SamplerConfig) -> Denoiser:
        """The network under the schedule and guidance scale of `config`."""

    @abstractmethod
    def frame_decoder(self) -> FrameDecoder:
        """A decoder at the start of a video; several may be open at once."""

    def to(self, device: torch.device) -> None:
        """Moves what is loaded."""
        self.device = device
        for module in (self.network, self.vae, self.text.encoder if self.text else None):
            if module is not None:
                module.to(device)

    def save_memory(self, *, fp8: bool, vae_dtype: torch.dtype, decodes_beside: bool = True) -> None:
        """Makes it fit where it would not; denoisers and decoders are to be made afterwards.

        Args:
            fp8: whether the network's large weights are kept in 8 bits and widened layer by layer.
            vae_dtype: of the VAE and its cache.
            decodes_beside: whether latents are decoded while the network is called; else they take turns.
        """
        self.decodes_beside = decodes_beside
        self.turn = nullcontext if decodes_beside else Turns().taken
        if self.network is not None and fp8:
            self.network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=self.network.dtype)
        if self.vae is not None and vae_dtype != self.vae.dtype:
            self.vae.to(vae_dtype)

    def check_prompt(self, prompt: str) -> None:
        """Finds a bad prompt by the tokenizer alone.

        Raises:
            BadRowError: if it is blank, or longer than the model reads.
        """
        assert self.text is not None, "loaded without the tokenizer"
        self.text.check(prompt)

    def check_prompts(self, prompts: Sequence[str]) -> list[BadRowError | None]:
        """What `check_prompt` says of each of many."""
        assert self.text is not None, "loaded without the tokenizer"
        return self.text.check_many(prompts)

    def encode_prompts(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """One text embedding `[L, D]` per prompt, float32 on the CPU.

        Raises:
            BadRowError: if a prompt is longer than the model reads.
        """
        assert self.text is not None, "loaded without the text encoder"
        return self.text.encode(prompts)

    def condition(self, prompt_embedding: torch.Tensor, negative_embedding: torch.Tensor) -> Condition:
        """The two embeddings on the backbone's device; the denoiser pads, stacks and casts them."""
        return prompt_embedding.to(self.device), negative_embedding.to(self.device)
