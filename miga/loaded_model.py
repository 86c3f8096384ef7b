"""A model in one process: where its parts are held, by the plan that a run makes too, and prompts to embeddings.

The text encoder is loaded by itself. Where a card's memory is planned it lies in the machine's memory: it goes to the
card to encode if there is room for it beside the weights that are there, and comes back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.family import Family, ModelOptions
from miga.backbones.loading import device_and_dtype
from miga.backbones.memory_plan import (
    TEXT_ELSEWHERE,
    Footprint,
    MemoryPlan,
    as_held,
    available_memory,
    check_call_memory,
    check_machine_memory,
    plan_memory,
    too_long,
)
from miga.backbones.options import configure, configured_spec
from miga.backbones.registry import family_of, load_backbone, simulates_gpus
from miga.config import SamplerConfig
from miga.errors import ModelError, UsageError

NUM_KEPT: Final = 64
"""Embeddings that are kept for prompts that come again: at most 8 MB each of Wan's."""
CPU: Final = torch.device("cpu")
DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TEXT_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Placing:
    """How a model is to be held.

    Attributes:
        device: where it computes.
        dtype: of the network's arithmetic.
        text_dtype: of the text encoder.
        text_stays: whether the text encoder stays on the card between prompts.
    """

    device: torch.device
    dtype: torch.dtype
    text_dtype: torch.dtype = torch.float32
    text_stays: bool = False


@dataclass
class LoadedModel:
    """A backbone, and what encodes its prompts.

    Attributes:
        backbone: the network and the VAE.
        text: encodes prompts; the backbone itself where that was loaded whole.
        placing: how it is held.
        revision: of a hub name, as it was asked for.
        memory: what of it goes where on the card; None without one, or where nothing is known of the model's parts.
    """

    backbone: Backbone
    text: Backbone
    placing: Placing
    revision: str | None = None
    memory: MemoryPlan | None = None
    _family: Family | None = None
    _rounded: MemoryPlan | None = None
    _kept: OrderedDict[str, torch.Tensor] = field(default_factory=OrderedDict)

    @classmethod
    def of(cls, backbone: Backbone) -> LoadedModel:
        """One that the user has built."""
        dtype = getattr(getattr(backbone, "network", None), "dtype", None)
        placing = Placing(
            device=backbone.device, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32, text_stays=True
        )
        return cls(backbone, backbone, placing)

    @classmethod
    def load(
        cls,
        name: str,
        revision: str | None,
        options: ModelOptions,
        placing: Placing,
        spec: BackboneSpec,
        config: SamplerConfig,
    ) -> LoadedModel:
        """Loads a model. On a card it is first seen how it fits, and it is made so before it takes the card's memory.

        Args:
            name: of the model.
            revision: of a hub name.
            options: what it is to become.
            placing: how it is to be held.
            spec: of it under the options.
            config: the sampler's settings, which latents in flight follow from.

        Raises:
            ModelError: if it cannot be loaded, or the card or the machine has too little memory, saying what would fit.
        """
        device = CPU if simulates_gpus(name) else placing.device
        placing = replace(placing, device=device)
        family = family_of(name, revision)
        footprint = family.footprint(name, revision)
        if footprint is None:  # nothing to plan with: it is loaded whole, where it is to be
            backbone = load_backbone(name, revision=revision, device=device, dtype=placing.dtype)
            configure(backbone, options, revision=revision)
            return cls(backbone, backbone, placing, revision)
        memory = _planned(footprint, spec, config, placing)
        backbone = load_backbone(
            name,
            revision=revision,
            device=CPU if memory else device,
            dtype=placing.dtype,
            components=("denoiser", "vae"),
        )
        configure(backbone, options, revision=revision, device=device, memory=memory)
        where = device if memory is None or placing.text_stays else CPU
        text = load_backbone(name, revision=revision, device=where, dtype=placing.text_dtype, components=("text",))
        return cls(backbone, text, placing, revision, memory, family, memory)

    @property
    def family(self) -> Family:
        """Whose model it is."""
        if self._family is None:
            self._family = family_of(self.backbone.spec.name, self.revision)
        return self._family

    def let_text_go(self) -> None:
        """Has the text encoder leave the card between prompts, where it is apart from the backbone."""
        if self.text is self.backbone:
            return
        self.placing = replace(self.placing, text_stays=False)
        if self.memory is not None:
            self.memory = replace(self.memory, text_on_card=False)
            self._move_text(CPU)

    def move(self, device: torch.device, config: SamplerConfig) -> None:
        """Moves the model; to a card as a plan for that card says.

        Raises:
            ModelError: if it does not fit there, saying what would; or it cannot be moved.
        """
        if device == self.placing.device:
            return
        placing = replace(self.placing, device=device)
        spec = self.backbone.spec
        footprint = self.family.footprint(spec.name, self.revision)
        memory = None if footprint is None else _planned(footprint, spec, config, placing)
        to_do = memory
        if memory is not None and self._rounded is not None:  # what was rounded once stays so
            held = self._rounded
            narrow = held.vae_dtype if held.vae_dtype.itemsize < memory.vae_dtype.itemsize else memory.vae_dtype
            memory = replace(memory, vae_dtype=narrow, fp8=memory.fp8 or held.fp8)
            to_do = replace(memory, fp8=memory.fp8 and not held.fp8)
        self.family.configure(self.backbone, ModelOptions(), [], device=device, memory=to_do)
        if self.backbone.device != device:
            raise ModelError(
                f"{spec.name!r} cannot be moved to {device}: nothing is known of its parts",
                f"load it there: from_pretrained(..., device={str(device)!r})",
            )
        self.placing, self.memory, self._rounded = placing, memory, memory or self._rounded
        if self.text is not self.backbone:
            self._move_text(device if memory is None or placing.text_stays else CPU)

    def sized(self, height: int | None, width: int | None) -> Backbone:
        """The backbone for frames of another size, of the same weights.

        Raises:
            ModelError: if the model cannot make that size.
        """
        spec = self.backbone.spec
        options = ModelOptions(
            height=None if height in (None, spec.height) else height,
            width=None if width in (None, spec.width) else width,
        )
        if options == ModelOptions():
            return self.backbone
        other = copy.copy(self.backbone)
        configure(other, options, revision=self.revision)
        return other

    def require_room(self, spec: BackboneSpec, config: SamplerConfig, num_latents: int | None = None) -> None:
        """Whether other settings than those it was loaded for fit into the card, the model held as it is.

        Args:
            spec: of the model at the size that is asked for.
            config: the settings.
            num_latents: of the video, where a call shows all of it; None: of the model's default length.

        Raises:
            ModelError: if not.
        """
        if self.memory is None:
            self._require_machine(spec, config, num_latents)
            return
        footprint, held_as = self.family.require_footprint(spec.name, self.revision), self.memory

        def needed_for(length: int | None) -> MemoryPlan:
            return as_held(held_as, footprint, spec, config, length)

        needed = needed_for(num_latents)
        if needed.total_bytes > needed.card_bytes and needed.num_latents is not None:
            raise too_long(
                spec, needed.num_latents, needed.total_bytes, needed.card_bytes,
                lambda length: needed_for(length).total_bytes <= held_as.card_bytes,
            )  # fmt: skip
        if needed.total_bytes > needed.card_bytes:
            raise ModelError(
                f"a video of {spec.height}x{spec.width} in {config.num_steps} steps needs "
                f"{needed.total_bytes / 1e9:.1f} GB as the model is held now, and the card has "
                f"{needed.card_bytes / 1e9:.1f} GB",
                f"say so when it is loaded, so that it is held otherwise: from_pretrained(..., height={spec.height}, "
                f"width={spec.width}, sampler={{'num_steps': {config.num_steps}}})",
            )

    def _require_machine(self, spec: BackboneSpec, config: SamplerConfig, num_latents: int | None) -> None:
        """The same without a card, of a video whose calls show all of it: others take what they took when loaded."""
        if not config.one_window or num_latents is None or self.placing.device.type != "cpu" or self._family is None:
            return
        footprint, available = self._family.footprint(spec.name, self.revision), available_memory()
        if footprint is not None and available is not None:
            check_call_memory(footprint, spec, config, available, self.placing.dtype, num_latents)

    def fuse(self, lora: str) -> None:
        """Adds a LoRA to the network's weights; `lora` is `FILE_OR_NAME[:scale]`.

        Raises:
            ModelError: if the model or its file does not allow that.
        """
        options = ModelOptions(lora=(lora,))
        configured_spec(self.backbone.spec, options, self.revision)  # refuses before a weight is changed
        if self._rounded is not None and self._rounded.fp8:
            raise ModelError(
                "the network's weights are stored in fp8 already, too coarse to add a LoRA to",
                f"name it when the model is loaded: from_pretrained(..., lora={lora!r})",
            )
        configure(self.backbone, options, revision=self.revision)

    def check_prompt(self, prompt: str) -> None:
        """Finds a prompt that the text encoder cannot take.

        Raises:
            BadRowError: if it is blank or too long.
        """
        self.text.check_prompt(prompt)

    def encode(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        """One embedding per prompt, on the CPU; each distinct prompt of late is encoded once.

        Raises:
            BadRowError: if a prompt is too long.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if new:
            self._kept.update(zip(new, self._encoded(new), strict=True))
        found = []
        for prompt in prompts:
            self._kept.move_to_end(prompt)
            found.append(self._kept[prompt])
        while len(self._kept) > NUM_KEPT:
            self._kept.popitem(last=False)
        return found

    def _encoded(self, prompts: Sequence[str]) -> list[torch.Tensor]:
        visits = self.text is not self.backbone and self.memory is not None and not self.placing.text_stays
        if not visits or self.memory is None or not self.memory.has_room_to_encode:
            return self.text.encode_prompts(prompts)
        try:
            self._move_text(self.placing.device)
            return self.text.encode_prompts(prompts)
        except torch.OutOfMemoryError:  # something else is on the card
            self._move_text(CPU)
            return self.text.encode_prompts(prompts)
        finally:
            self._move_text(CPU)
            if self.placing.device.type == "cuda":
                torch.cuda.empty_cache()

    def _move_text(self, device: torch.device) -> None:
        if self.text.device != device:
            self.family.configure(self.text, ModelOptions(), [], device=device, memory=None)


def _planned(footprint: Footprint, spec: BackboneSpec, config: SamplerConfig, placing: Placing) -> MemoryPlan | None:
    """Where the model goes on its card; None without a card.

    Raises:
        ModelError: if card or machine has too little memory, saying what would fit.
    """
    card = card_memory(placing.device)
    if card is None:
        available = available_memory()
        if placing.device.type == "cpu" and available is not None:
            check_machine_memory(
                footprint, spec, config, 1, available, placing.dtype, placing.text_dtype, process_bytes=0
            )
        return None

    def plan(text_on_card: bool) -> MemoryPlan:
        return plan_memory(footprint, spec, config, card, placing.dtype, placing.text_dtype, text_on_card=text_on_card)

    try:
        planned = plan(placing.text_stays)
    except ModelError as error:
        hint = error.hint.replace(TEXT_ELSEWHERE, "text_gpus = 0").replace(
            "sampler.windows_per_batch = 1", 'sampler = {"windows_per_batch": 1}'
        )
        raise ModelError(error.message, hint) from None
    available = available_memory()
    if placing.text_stays or available is None or planned.text_bytes <= available:
        return planned
    fits = ['text_dtype = "bfloat16"'] if planned.text_bytes // placing.text_dtype.itemsize * 2 <= available else []
    with contextlib.suppress(ModelError):
        fits += ["text_gpus = 1, which leaves it on the card"] if plan(True) else []
    raise ModelError(
        f"the text encoder of {spec.name!r} takes {planned.text_bytes / 1e9:.1f} GB in {placing.text_dtype}, and this "
        f"machine has {available / 1e9:.1f} GB of memory left beside the card",
        f"what would fit: {', or '.join(fits) or 'a machine with more memory'}",
    )


def card_memory(device: torch.device) -> int | None:
    """Bytes of a card; None of what is no card."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else None


def parse_device(device: Any) -> torch.device:
    """The device that was asked for; None: the GPU, where there is one.

    Raises:
        UsageError: if there is no such device here.
    """
    if device is None:
        return device_and_dtype(None, None)[0]
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"device {device!r} is none that PyTorch knows", 'take "cuda", "cuda:1" or "cpu"') from error
    if found.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"device {device!r} was asked for, and PyTorch finds no GPU here",
                "leave it out to compute on the CPU; `python -c 'import torch; print(torch.version.cuda)'` prints None "
                "where PyTorch was installed without CUDA",
            )
        if found.index is None:
            return torch.device("cuda", torch.cuda.current_device())
        if found.index >= torch.cuda.device_count():
            raise UsageError(f"device {device!r} was asked for, and there are {torch.cuda.device_count()} GPUs", "")
    return found


def parse_dtype(dtype: Any, name: str, known: dict[str, torch.dtype]) -> torch.dtype | None:
    """The dtype that was asked for, as PyTorch's or by its name; None where that is left open.

    Raises:
        UsageError: if it is none of the known.
    """
    if dtype is None or dtype == "auto":
        return None
    found = known.get(dtype) if isinstance(dtype, str) else dtype
    if found not in known.values():
        raise UsageError(f"{name} {dtype!r} cannot be", f"take one of {', '.join(f'torch.{each}' for each in known)}")
    return found
