"""What of a Wan model goes where on a GPU of so much memory, and why: known before anything is loaded.

Weights are counted, not estimated. So are the cache of the VAE's decoder and the latents in flight. What a call and a
decode take beside them was taken off the shapes of all tensors alive at once (tests/miga/backbones/test_wan_memory.py).

Bytes throughout; GB are 1e9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch

from miga.backbones.base import BackboneSpec
from miga.backbones.wan_spec import WanArchitecture, resized
from miga.config import SamplerConfig
from miga.errors import ModelError

CARDS_GB: Final = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""What cards are sold with."""
SOLD_BYTES: Final = 0.98 * 2**30
"""Of a "GB" that a card is sold with, what it reports: 23.6 of 24 on an RTX 4090, 79.2 of 80 on an H100."""
RESERVE_BYTES: Final = 1_000_000_000
"""CUDA's context, libraries' workspaces and what the allocator cannot use."""
SMALLER: Final = ((720, 1280), (480, 832), (384, 672), (320, 576), (256, 448))
"""Sizes that are proposed where one does not fit."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where the memory of a card goes.

    Attributes:
        card_bytes: what there is.
        transformer_bytes: its weights.
        vae_bytes: the VAE's weights, and the cache that it decodes one video with.
        queue_bytes: latents in flight, with the solver's history.
        activations_bytes: what a call of the network or a decode takes beside, whichever is more.
        dtype: of the transformer's arithmetic.
        fp8: whether the transformer's weights are stored in 8 bits and widened layer by layer.
        vae_dtype: of the VAE and its cache.
        text_bytes: what the text encoder takes where it is.
        reason: what was chosen, and why.
    """

    card_bytes: int
    transformer_bytes: int
    vae_bytes: int
    queue_bytes: int
    activations_bytes: int
    dtype: torch.dtype
    fp8: bool
    vae_dtype: torch.dtype
    text_bytes: int
    reason: str = ""

    @property
    def total_bytes(self) -> int:
        """All of it, with the reserve."""
        return self.transformer_bytes + self.vae_bytes + self.queue_bytes + self.activations_bytes + RESERVE_BYTES

    def to_dict(self) -> dict[str, str]:
        """For people."""
        return {
            "card": _gb(self.card_bytes),
            "transformer": f"{_gb(self.transformer_bytes)} in {'fp8' if self.fp8 else _name(self.dtype)}",
            "vae": f"{_gb(self.vae_bytes)} in {_name(self.vae_dtype)}, its cache included",
            "queue": _gb(self.queue_bytes),
            "activations": _gb(self.activations_bytes),
            "total": _gb(self.total_bytes),
            "text encoder": f"{_gb(self.text_bytes)} of the machine's memory",
            "reason": self.reason,
        }


def card_bytes(card_gb: float) -> int:
    """What a card that is sold with so many GB reports."""
    return round(card_gb * SOLD_BYTES)


def plan_memory(
    architecture: WanArchitecture,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    card: int,
    dtype: torch.dtype = torch.bfloat16,
    text_dtype: torch.dtype = torch.float32,
) -> MemoryPlan:
    """The first of these that fits: everything as it is; the VAE in bfloat16; the transformer in fp8; both.

    In that order, because the VAE's dtype costs no time and fp8 weights are rounded harder. VAE tiles are no choice:
    what is large is the cache between latents, and tiles together need as much of it.

    Args:
        architecture: of the model.
        spec: of the same model, at the size that is asked for.
        sampler: how many latents are in flight, and windows in a batch.
        card: bytes of the card.
        dtype: of the transformer.
        text_dtype: of the text encoder, which is on the CPU.

    Raises:
        ModelError: if none fits, saying what would.
    """
    plans = list(_plans(architecture, spec, sampler, card, dtype, text_dtype))
    for plan in plans:
        if plan.total_bytes <= card:
            return plan
    smallest = plans[-1].total_bytes
    cards = [gb for gb in CARDS_GB if card_bytes(gb) >= smallest]
    sizes = [size for size in SMALLER if _fits_at(size, architecture, spec, sampler, card, dtype)]
    fits = [f"a card of {cards[0]} GB"] if cards else []
    fits += [f"frames of {sizes[0][0]}x{sizes[0][1]}"] if sizes else []
    fits += ["sampler.windows_per_batch = 1"] if sampler.windows_per_batch > 1 else []
    raise ModelError(
        f"{spec.name!r} at {spec.height}x{spec.width} needs {_gb(smallest)} with everything made as small as it can be "
        f"(weights {_gb(plans[-1].transformer_bytes)}, VAE and its cache {_gb(plans[-1].vae_bytes)}, activations "
        f"{_gb(plans[-1].activations_bytes)}), and the card has {_gb(card)}",
        f"what would fit: {', or '.join(fits) or 'a smaller model'}",
    )


def _plans(
    architecture: WanArchitecture,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    card: int,
    dtype: torch.dtype,
    text_dtype: torch.dtype,
) -> Iterator[MemoryPlan]:
    """All choices, the best first."""
    cells = spec.latent_height * spec.latent_width
    tokens = sampler.windows_per_batch * sampler.window * architecture.tokens_per_latent(spec.height, spec.width)
    choices = ((False, torch.float32), (False, torch.bfloat16), (True, torch.float32), (True, torch.bfloat16))
    for fp8, vae_dtype in choices if dtype.itemsize == 2 else choices[:2]:
        plan = MemoryPlan(
            card_bytes=card,
            transformer_bytes=architecture.transformer_bytes(fp8=fp8, itemsize=dtype.itemsize),
            vae_bytes=vae_dtype.itemsize * (architecture.vae_parameters + cells * architecture.vae_cache_per_cell),
            queue_bytes=queue_bytes(spec, sampler),
            activations_bytes=max(
                tokens * activation_bytes_per_token(architecture, dtype),
                vae_dtype.itemsize * cells * architecture.vae_peak_per_cell,
            ),
            dtype=dtype,
            fp8=fp8,
            vae_dtype=vae_dtype,
            text_bytes=text_dtype.itemsize * architecture.text_parameters,
        )
        yield _with_reason(plan)


def _with_reason(plan: MemoryPlan) -> MemoryPlan:
    spare = plan.card_bytes - plan.total_bytes
    changes = [
        *(["the VAE is in bfloat16, which halves its cache"] if plan.vae_dtype != torch.float32 else []),
        *(["the transformer's weights are stored in fp8, which halves them"] if plan.fp8 else []),
    ]
    what = "; ".join(changes) + ", because it does not fit otherwise" if changes else "everything fits as it is"
    text = "the text encoder is on the CPU, in a process of its own"
    if spare > plan.text_bytes + RESERVE_BYTES:
        text += "; there is room for it too, with text_gpus in [workers]"
    return replace(plan, reason=f"{what}; {_gb(max(0, spare))} to spare; {text}")


def queue_bytes(spec: BackboneSpec, sampler: SamplerConfig) -> int:
    """Latents of Stage 1's queue and of Stage 2's wavefront in float32, with what the solver keeps of each.

    UniPC keeps three tensors a latent beside the latent itself; a pass holds the old latents beside the new.
    """
    in_flight = spec.num_latents(spec.default_num_frames)
    if sampler.method != "unified":
        in_flight = sampler.queue_length + (sampler.handoff_level - 1) * (sampler.window - 1)
    kept = 4 if sampler.solver == "unipc" else 1
    return in_flight * spec.latent_channels * spec.latent_height * spec.latent_width * 4 * (kept + 1)


def activation_bytes_per_token(architecture: WanArchitecture, dtype: torch.dtype) -> int:
    """The most that is alive at once for one token of a call, weights apart: in attention, or in the feed-forward."""
    width, ffn = architecture.width, architecture.ffn_width
    if dtype.itemsize == 2:
        return max(30 * width, 12 * width + 4 * ffn)
    return max(51 * width, 22 * width + 8 * ffn)


def _fits_at(
    size: tuple[int, int],
    architecture: WanArchitecture,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    card: int,
    dtype: torch.dtype,
) -> bool:
    if size[0] * size[1] >= spec.height * spec.width:
        return False
    smaller = resized(spec, architecture, *size)
    return any(plan.total_bytes <= card for plan in _plans(architecture, smaller, sampler, card, dtype, torch.float32))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
