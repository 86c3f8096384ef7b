"""Wan's transformer in training: its velocity, what of it learns, and what training takes of a card, from shapes.

Legend: B clips, F latents, C channels, H, W latent cells, L tokens, D channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import resolve_folder
from miga.backbones.wan.backbone import WanBackbone
from miga.backbones.wan.image import ImageReader
from miga.backbones.wan.padding import has_compact_padding
from miga.backbones.wan.per_latent import use_per_latent_timesteps
from miga.backbones.wan.spec import JSON_FILES, NUM_TEXT_TOKENS, WanArchitecture, load_architecture
from miga.errors import ModelError
from miga.training.lora import LoraLinear, add_lora

ENCODER_FOLDERS: Final = ("tokenizer/*", "text_encoder/*", "vae/*", "image_encoder/*")
FLOAT32: Final = 4
ADAM_COPIES: Final = 4
"""Of every weight that learns, in float32: itself, its gradient, the two moments of Adam."""
RESERVE_BYTES: Final = 4 * 10**9
"""For CUDA itself, its libraries' workspace and what lies between allocations."""


class WanVelocity:
    """The transformer's velocity as `miga.training.trainer.Predict`.

    Args:
        network: the transformer.
        autocast: what matrix products are computed in; None: in the weights' own type.
    """

    def __init__(self, network: WanTransformer3DModel, autocast: torch.dtype | None = None) -> None:
        self.network = network
        self._autocast = autocast

    def __call__(
        self,
        x_BCFHW: torch.Tensor,
        timestep_B: torch.Tensor,
        texts: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor] | None,
    ) -> torch.Tensor:
        """See `Predict`. Where the network reads pictures, texts are padded to the 512 tokens that it counts from."""
        network: Any = self.network
        device, dtype = x_BCFHW.device, network.dtype
        text_BLD = nn.utils.rnn.pad_sequence([text.float() for text in texts], batch_first=True)
        if not has_compact_padding(network):
            text_BLD = functional.pad(text_BLD, (0, 0, 0, NUM_TEXT_TOKENS - text_BLD.shape[1]))
        image = None if tokens is None else torch.stack(list(tokens)).to(device, dtype)
        is_cast = self._autocast is not None
        with torch.autocast(device.type, dtype=self._autocast) if is_cast else nullcontext():
            found: torch.Tensor = network(
                x_BCFHW.to(dtype), timestep_B, text_BLD.to(device, dtype), image, return_dict=False
            )[0]
        return found.float()


def prepare(
    network: WanTransformer3DModel,
    *,
    rank: int | None,
    alpha: float,
    seed: int,
    checkpointing: bool,
    holds: bool = False,
) -> dict[str, LoraLinear]:
    """Sets what learns: a LoRA of that rank, or everything.

    Args:
        network: changed in place.
        rank: of the LoRA; None: all weights learn, which then must be float32.
        alpha: of the LoRA.
        seed: of the LoRA.
        checkpointing: whether the activations inside blocks are computed anew for the gradient.
        holds: whether it is told a time step for every latent, for some are held clean.

    Returns:
        The LoRA's layers by name; none where everything learns.

    Raises:
        ModelError: if all weights are to learn in half precision.
    """
    if holds:
        use_per_latent_timesteps(network)
    if checkpointing:
        network.enable_gradient_checkpointing()
    network.train()
    if rank is not None:
        return add_lora(network, rank, alpha, seed)
    if network.dtype != torch.float32:
        raise ModelError(
            f"all weights of a model in {str(network.dtype).removeprefix('torch.')} cannot be trained: small steps "
            "would be lost to rounding",
            "load it in float32, or train a LoRA",
        )
    network.requires_grad_(True)
    return {}


# ---- what it takes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a card while a model is trained on one clip at a time.

    Attributes:
        num_tokens: of a clip.
        num_learning: weights that learn.
        weights: those that do not learn.
        learning: those that do, their gradients and Adam's moments, float32.
        block_inputs: what every block's input takes, kept for the gradient.
        inside_block: the most that is alive within one block, forwards and backwards.
        latents: of a clip: input, target, output and residual, float32.
        reserve: see `RESERVE_BYTES`.
    """

    num_tokens: int
    num_learning: int
    weights: int
    learning: int
    block_inputs: int
    inside_block: int
    latents: int
    reserve: int = RESERVE_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.learning + self.block_inputs + self.inside_block + self.latents + self.reserve


def lora_parameters(architecture: WanArchitecture, rank: int) -> int:
    """Weights of a LoRA on q, k, v, o of both attentions and both layers of the feed-forward."""
    width, ffn = architecture.width, architecture.ffn_width
    return architecture.num_layers * rank * (8 * 2 * width + 2 * (width + ffn))


def training_memory(
    architecture: WanArchitecture,
    spec: BackboneSpec,
    *,
    rank: int | None,
    itemsize: int = 2,
    batch: int = 1,
    offloads_inputs: bool = False,
) -> TrainingMemory:
    """What training takes at the spec's size, each block computed anew for the gradient, with fused attention.

    A block's own most is reached backwards: what autograd keeps of its second forward, and the gradients under way.

    Args:
        architecture: sizes of the transformer.
        spec: frames and window of a clip.
        rank: of a LoRA; None: all weights learn, in float32.
        itemsize: bytes of a frozen weight, and of an activation.
        batch: clips of a step.
        offloads_inputs: whether the blocks' inputs wait in the machine's memory, but for one.
    """
    num_tokens = batch * spec.window * architecture.tokens_per_latent(spec.height, spec.width)
    parameters = architecture.transformer_parameters
    learning = parameters if rank is None else lora_parameters(architecture, rank)
    frozen = 0 if rank is None else itemsize * parameters
    kept = 1 if offloads_inputs else architecture.num_layers
    num_channels = 5 * spec.latent_channels + spec.num_condition_channels
    latents = FLOAT32 * batch * spec.window * num_channels * spec.latent_height * spec.latent_width
    return TrainingMemory(
        num_tokens=num_tokens,
        num_learning=learning,
        weights=frozen,
        learning=ADAM_COPIES * FLOAT32 * learning,
        block_inputs=kept * num_tokens * architecture.width * itemsize,
        inside_block=num_tokens * block_bytes_per_token(architecture, rank, itemsize),
        latents=latents,
    )


def block_bytes_per_token(architecture: WanArchitecture, rank: int | None, itemsize: int) -> int:
    """The most that is alive of one block for one token while its gradient is computed.

    The numbers were taken off the shapes of all tensors alive at once (tests/miga/backbones/test_wan_training.py).
    """
    width, ffn = architecture.width, architecture.ffn_width
    kept = KEPT if architecture.image_width is None else KEPT + KEPT_IMAGE
    of_lora = 0 if rank is None else KEPT_LORA * rank
    head = architecture.channels * architecture.patch[0] * architecture.patch[1]
    in_float32 = int(FLOAT32 * (KEPT_WIDE * width + KEPT_HEAD * head))
    return in_float32 + itemsize * (kept * width + KEPT_FFN * ffn + of_lora)


KEPT: Final = 7
"""Numbers of the model's width, in the activations' type: a block's tensors that are kept, and gradients under way."""
KEPT_IMAGE: Final = 2
"""So many more where cross-attention reads pictures."""
KEPT_WIDE: Final = 9.25
"""The same in float32: normalisations, modulations and rotations are computed so."""
KEPT_FFN: Final = 4
"""Numbers of the feed-forward's width: before and behind the activation, and the gradients of both."""
KEPT_LORA: Final = 8
"""Numbers of a LoRA's rank."""
KEPT_HEAD: Final = 6
"""Numbers of a token's latents, in float32: velocity, target, residual, and gradients of the last layer."""


# ---- what is loaded --------------------------------------------------------------------------------------------------


def load_encoder(model: str, revision: str | None, device: torch.device) -> WanBackbone:
    """What clips are encoded with: VAE, text encoder and, where the network reads pictures, what reads them.

    Raises:
        ModelError: if it cannot be loaded.
    """
    folder = model_folder(model, revision, ENCODER_FOLDERS)
    backbone = WanBackbone.from_pretrained(folder, device=device, dtype=torch.float32, components=("text", "vae"))
    if load_architecture(folder).image_width is not None:
        backbone.image_reader = ImageReader.load(folder, device)
    return backbone


def load_transformer(
    model: str, revision: str | None, part: str, device: torch.device, dtype: torch.dtype
) -> WanTransformer3DModel:
    """One transformer of a model; `part` is its folder.

    Raises:
        ModelError: if it cannot be loaded.
    """
    folder = model_folder(model, revision, (f"{part}/*",))
    return WanBackbone.load_network(folder, device, dtype, part)


def model_folder(model: str, revision: str | None, files: Sequence[str] = ()) -> Path:
    """Where a model lies, with these of its files.

    Raises:
        ModelError: if it is not to be had.
    """
    return resolve_folder(model, revision, [*JSON_FILES, *files])


def parts_to_train(spec: BackboneSpec, expert: str | None) -> tuple[str, float, float]:
    """The folder of the transformer that is trained, and its time steps: from the first on, below the second.

    Raises:
        ModelError: if the model is of no kind that is trained, or the expert is to be named, or there is none.
    """
    if spec.image_input not in ("channels", "first_latent"):
        raise ModelError(
            f"{spec.name!r} was trained on text alone, and error recycling trains models that are shown pictures",
            "take one such as Wan-AI/Wan2.1-I2V-14B-480P-Diffusers, or of the embedded model what "
            "`python -m jobs.train_sprites_i2v` writes",
        )
    if spec.expert_boundary is None:
        if expert is not None:
            raise ModelError(f"{spec.name!r} has one transformer, and --expert names {expert!r}", "leave it out")
        return "transformer", 0.0, 1001.0
    if expert is None:
        raise ModelError(
            f"{spec.name!r} has two transformers, which are trained apart", "say --expert high, and then --expert low"
        )
    boundary = 1000.0 * spec.expert_boundary
    return ("transformer", boundary, 1001.0) if expert == "high" else ("transformer_2", 0.0, boundary)
