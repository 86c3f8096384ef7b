"""What of a model goes where, on a GPU or in a machine of so much memory, and why: known before anything is loaded.

Weights are counted, not estimated. So are the cache of the VAE's decoder and the latents in flight. What a call and a
decode take beside them was taken off the shapes of all tensors alive at once (`Footprint`).

Bytes throughout; GB are 1e9.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, Protocol

import torch

from miga.backbones.base import BackboneSpec
from miga.config import SamplerConfig
from miga.cost import most_latents_held
from miga.errors import ModelError
from miga.sharing import MOST_VIDEOS

CARDS_GB: Final = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
"""What cards are sold with."""
SOLD_BYTES: Final = 0.98 * 2**30
"""Of a "GB" that a card is sold with, what it reports: 23.6 of 24 on an RTX 4090, 79.2 of 80 on an H100."""
RESERVE_BYTES: Final = 1_000_000_000
"""CUDA's context, libraries' workspaces and what the allocator cannot use."""
PROCESS_BYTES: Final = 900_000_000
"""Of a worker's process before it holds a model: Python, PyTorch, diffusers, and what it shares with no other."""
SMALLER: Final = ((720, 1280), (480, 832), (384, 640), (320, 512), (256, 448))
"""Sizes that are proposed where one does not fit."""
VIDEOS: Final = "videos_per_actor"
"""In [workers]: how many videos are made at once."""
TEXT_ELSEWHERE: Final = "text_gpus = 0 in [workers]"
"""What leaves the text encoder off the card, as a config says it."""


class Footprint(Protocol):
    """The sizes of a model's parts, as memory follows from them.

    Attributes:
        can_store_fp8: whether the network's weights may be held in 8 bits.
        vae_parameters, text_parameters: weights of the VAE and of the text encoder.
        vae_cache_per_cell, vae_peak_per_cell: numbers that decoding one latent at a time keeps per latent cell, and
            the most that it needs beside while it works.
    """

    @property
    def can_store_fp8(self) -> bool: ...  # noqa: D102
    @property
    def vae_parameters(self) -> int: ...  # noqa: D102
    @property
    def text_parameters(self) -> int: ...  # noqa: D102
    @property
    def vae_cache_per_cell(self) -> int: ...  # noqa: D102
    @property
    def vae_peak_per_cell(self) -> int: ...  # noqa: D102

    def transformer_bytes(self, *, fp8: bool = False, itemsize: int = 2) -> int:
        """Of the network's weights."""
        ...

    def window_bytes(self, spec: BackboneSpec, num_latents: int, dtype: torch.dtype) -> int:
        """The most that is alive at once in a call over one window of so many latents, weights apart."""
        ...

    def resized(self, spec: BackboneSpec, height: int, width: int) -> BackboneSpec:
        """The spec for frames of another size.

        Raises:
            ModelError: if the model cannot make that size.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where the memory of a card goes.

    Attributes:
        card_bytes: what there is.
        transformer_bytes: weights of the network, a transformer or a UNet.
        vae_bytes: the VAE's weights, and the cache that it decodes each video with.
        queue_bytes: latents in flight, with the solver's history.
        activations_bytes: what a call of the network and a decode take beside: both, or in turn the larger.
        dtype: of the network's arithmetic.
        fp8: whether its weights are stored in 8 bits and widened layer by layer.
        vae_dtype: of the VAE and its cache.
        decodes_beside: whether latents are decoded while the network is called; else the two take turns.
        one_expert: whether, of a model's two networks, one is on the card at a time; the other waits in the machine's
            memory.
        text_bytes: what the text encoder takes where it is.
        cache_bytes: keys and values that a causal method keeps, of all videos.
        text_dtype: of the text encoder.
        text_on_card: whether it is on this card too, in a process of its own.
        num_latents: length of video that the plan is for, where memory grows with it; None where it does not.
        num_videos: that are made at once, in step.
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
    decodes_beside: bool = True
    cache_bytes: int = 0
    one_expert: bool = False
    text_dtype: torch.dtype = torch.float32
    text_on_card: bool = False
    num_latents: int | None = None
    num_videos: int = 1
    reason: str = ""

    @property
    def own_bytes(self) -> int:
        """What the backbone's process takes, without the reserve."""
        return self.transformer_bytes + self.vae_bytes + self.queue_bytes + self.cache_bytes + self.activations_bytes

    @property
    def total_bytes(self) -> int:
        """All that is on the card, with a reserve for each process."""
        return self.own_bytes + RESERVE_BYTES + (self.text_bytes + RESERVE_BYTES if self.text_on_card else 0)

    @property
    def has_room_to_encode(self) -> bool:
        """Whether the text encoder fits beside the weights while nothing is computed: it may come and go."""
        kept = self.transformer_bytes + self.vae_bytes + RESERVE_BYTES
        return self.text_on_card or kept + self.text_bytes <= self.card_bytes

    @property
    def is_plain(self) -> bool:
        """Whether nothing was made smaller, or put in turn, to fit."""
        return not self.fp8 and self.vae_dtype == torch.float32 and self.decodes_beside and not self.one_expert

    @property
    def weights_name(self) -> str:
        """What the network's weights are stored as."""
        return "fp8" if self.fp8 else _name(self.dtype)

    @property
    def vae_name(self) -> str:
        """What the VAE's weights are stored as."""
        return _name(self.vae_dtype)

    def to_bytes(self) -> dict[str, int]:
        """For machines."""
        return {
            "card": self.card_bytes,
            "transformer": self.transformer_bytes,
            "vae": self.vae_bytes,
            "queue": self.queue_bytes,
            **({"cache": self.cache_bytes} if self.cache_bytes else {}),
            "activations": self.activations_bytes,
            "text encoder": self.text_bytes,
            "total": self.total_bytes,
        }

    def to_dict(self) -> dict[str, str]:
        """For people."""
        where = "of the card" if self.text_on_card else "of the machine's memory"
        return {
            "card": _gb(self.card_bytes),
            "transformer": f"{_gb(self.transformer_bytes)} in {'fp8' if self.fp8 else _name(self.dtype)}",
            "vae": f"{_gb(self.vae_bytes)} in {_name(self.vae_dtype)}, its cache included",
            "queue": _gb(self.queue_bytes),
            **({"cache": _gb(self.cache_bytes)} if self.cache_bytes else {}),
            "activations": _gb(self.activations_bytes),
            "decoding": "beside the network" if self.decodes_beside else "takes turns with the network",
            "text encoder": f"{_gb(self.text_bytes)} in {_name(self.text_dtype)}, {where}",
            "total": _gb(self.total_bytes),
            "reason": self.reason,
        }


def card_bytes(card_gb: float) -> int:
    """What a card that is sold with so many GB reports."""
    return round(card_gb * SOLD_BYTES)


def plan_memory(
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    card: int,
    dtype: torch.dtype = torch.bfloat16,
    text_dtype: torch.dtype = torch.float32,
    *,
    text_on_card: bool = False,
    num_latents: int | None = None,
    num_videos: int | Literal["auto"] = 1,
) -> MemoryPlan:
    """The first of these that fits: everything as it is; the VAE in bfloat16; the transformer in fp8; both.

    In that order, because the VAE's dtype costs no time and fp8 weights are rounded harder. Of a model with two
    networks, one at a time is on the card before fp8 is thought of: that costs moving them, and rounds nothing. Of
    each, latents are decoded beside the network's calls if there is room for both at once, else in turn with them,
    which changes no result. VAE tiles are no choice: what is large is the cache between latents, and tiles together
    need as much of it.

    Args:
        architecture: of the model.
        spec: of the same model, at the size that is asked for.
        sampler: how many latents are in flight, and windows in a batch.
        card: bytes of the card.
        dtype: of the network.
        text_dtype: of the text encoder.
        text_on_card: whether the text encoder shares the card (`text_gpus` in [workers]).
        num_latents: of the longest video, where a call shows all of it; None: of the model's default length.
        num_videos: made at once, in step; "auto": as many as fit beside a model that is held as for one.

    Raises:
        ModelError: if none fits, saying what would.
    """
    if num_videos == "auto":
        one = plan_memory(
            architecture, spec, sampler, card, dtype, text_dtype, text_on_card=text_on_card, num_latents=num_latents
        )
        most = most_videos(architecture, spec, sampler, one, num_latents)
        return as_held(one, architecture, spec, sampler, num_latents, most)
    length = _length(spec, sampler, num_latents)

    def plans_for(
        spec: BackboneSpec,
        text_dtype: torch.dtype,
        text_on_card: bool,
        length: int | None = length,
        num_videos: int = num_videos,
    ) -> list[MemoryPlan]:
        return list(_plans(architecture, spec, sampler, card, dtype, text_dtype, text_on_card, length, num_videos))

    plans = plans_for(spec, text_dtype, text_on_card)
    for plan in plans:
        if plan.total_bytes <= card:
            return plan
    smallest = plans[-1]
    cards = [gb for gb in CARDS_GB if card_bytes(gb) >= smallest.total_bytes]
    fits = [f"a card of {cards[0]} GB"] if cards else []
    fits = (
        _fewer_videos(
            num_videos,
            lambda count: plans_for(spec, text_dtype, text_on_card, num_videos=count)[-1].total_bytes <= card,
        )
        + fits
    )
    if text_on_card and text_dtype.itemsize > 2 and plans_for(spec, torch.bfloat16, True)[-1].total_bytes <= card:
        fits.append('text_dtype = "bfloat16"')
    if text_on_card and plans_for(spec, text_dtype, False)[-1].total_bytes <= card:
        fits.append(f"{TEXT_ELSEWHERE}, which leaves the text encoder in the machine's memory")
    for size in _smaller_sizes(architecture, spec):
        if plans_for(size, text_dtype, text_on_card)[-1].total_bytes <= card:
            fits.append(f"frames of {size.height}x{size.width}")
            break
    fits += ["sampler.windows_per_batch = 1"] if sampler.windows_per_batch > 1 and not sampler.one_window else []
    if length is not None:
        fits = (
            _shorter(
                spec, length, lambda count: plans_for(spec, text_dtype, text_on_card, count)[-1].total_bytes <= card
            )
            + fits
        )
    raise ModelError(
        f"{_what(spec, length, num_videos)} needs {_gb(smallest.total_bytes)} with everything made as small as it can "
        f"be ({_parts(smallest)}), and the card has {_gb(card)}",
        f"what would fit: {', or '.join(fits) or 'a smaller model'}",
    )


def most_videos(
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    held: MemoryPlan,
    num_latents: int | None = None,
) -> int:
    """How many videos fit at once on a card beside a model that is held as for one: nothing is made smaller for more.

    Args:
        architecture: of the model.
        spec: of the same model, at the size that is asked for.
        sampler: the settings.
        held: the plan for one video.
        num_latents: of the longest video, where a call shows all of it.
    """

    def fits(num_videos: int) -> bool:
        plan = as_held(held, architecture, spec, sampler, num_latents, num_videos)
        return plan.total_bytes <= held.card_bytes

    return next((count for count in range(MOST_VIDEOS, 1, -1) if fits(count)), 1)


def _length(spec: BackboneSpec, sampler: SamplerConfig, num_latents: int | None) -> int | None:
    """Latents that memory is planned for where it grows with a video's length; None where it does not."""
    if not sampler.one_window:
        return None
    return spec.num_latents(spec.default_num_frames) if num_latents is None else num_latents


def _what(spec: BackboneSpec, length: int | None, num_videos: int = 1) -> str:
    at_once = f"making {num_videos} videos at once of " if num_videos > 1 else ""
    frames = "" if length is None else f"{spec.num_frames(length)} frames in one window of "
    return f"{at_once}{frames}{spec.name!r} at {spec.height}x{spec.width}"


def _parts(plan: MemoryPlan) -> str:
    """What takes the memory of a card, in words."""
    parts = {
        "weights": plan.transformer_bytes,
        "VAE and its cache": plan.vae_bytes,
        "keys and values": plan.cache_bytes,
        "activations": plan.activations_bytes,
        "text encoder": plan.text_bytes if plan.text_on_card else 0,
    }
    return ", ".join(f"{name} {_gb(count)}" for name, count in parts.items() if count)


def _fewer_videos(num_videos: int, fits: Callable[[int], bool]) -> list[str]:
    """The most videos at once below a number that fit, in words; nothing if none do."""
    most = next((count for count in range(num_videos - 1, 0, -1) if fits(count)), 0)
    return [f"{VIDEOS} = {most}"] if most else []


def _shorter(spec: BackboneSpec, length: int, fits: Callable[[int], bool]) -> list[str]:
    """The longest video that fits, in words; nothing if none does.

    Args:
        spec: of the model.
        length: latents that do not.
        fits: whether so many do; the more, the less.
    """
    least, most = 0, length
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    if not least:
        return []
    return [f"videos of at most {spec.num_frames(least)} frames ({least} latents), since memory grows with the length"]


def as_held(
    plan: MemoryPlan,
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    num_latents: int | None = None,
    num_videos: int = 1,
) -> MemoryPlan:
    """What videos of another size, length or number, or by other settings, take of a model held as a plan says."""
    length, dtypes = _length(spec, sampler, num_latents), (plan.dtype, plan.text_dtype)
    plans = _plans(architecture, spec, sampler, plan.card_bytes, *dtypes, plan.text_on_card, length, num_videos)
    held = (plan.fp8, plan.one_expert, plan.vae_dtype, plan.decodes_beside)
    return next(each for each in plans if (each.fp8, each.one_expert, each.vae_dtype, each.decodes_beside) == held)


def check_machine_memory(
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    num_actors: int,
    available: int,
    dtype: torch.dtype = torch.float32,
    text_dtype: torch.dtype = torch.float32,
    *,
    process_bytes: int = PROCESS_BYTES,
    num_latents: int | None = None,
    num_videos: int = 1,
) -> None:
    """Whether a machine without a GPU holds a run: every actor the whole model, and one process the text encoder.

    Actors decode beside the network's calls there too.

    Args:
        architecture: of the model.
        spec: of the same model, at the size that is asked for.
        sampler: how many latents are in flight, and windows in a batch.
        num_actors: backbone actors on the machine.
        available: bytes that it has left.
        dtype: of the network.
        text_dtype: of the text encoder.
        process_bytes: of each of those processes before it holds anything; 0 where this one, which is there, holds all.
        num_latents: of the longest video, where a call shows all of it; None: of the model's default length.
        num_videos: that each actor makes at once.

    Raises:
        ModelError: if it does not, saying what would.
    """
    length = _length(spec, sampler, num_latents)

    def needed(
        num_actors: int,
        dtype: torch.dtype,
        text_dtype: torch.dtype,
        length: int | None = length,
        num_videos: int = num_videos,
    ) -> int:
        plan = next(_plans(architecture, spec, sampler, available, dtype, text_dtype, False, length, num_videos))
        return num_actors * (plan.own_bytes + process_bytes) + plan.text_bytes + process_bytes

    wanted = needed(num_actors, dtype, text_dtype)
    if wanted <= available:
        return
    plan = next(_plans(architecture, spec, sampler, available, dtype, text_dtype, False, length, num_videos))
    half = torch.bfloat16
    dtypes = {
        (): (dtype, text_dtype),
        ('text_dtype = "bfloat16"',): (dtype, half),
        ('dtype = "bfloat16"',): (half, text_dtype),
        ('dtype = "bfloat16"', 'text_dtype = "bfloat16"'): (half, half),
    }
    fits = _fewer_videos(num_videos, lambda count: needed(num_actors, dtype, text_dtype, num_videos=count) <= available)
    best = 0
    for changes, (network, text) in dtypes.items():
        most = next((count for count in range(num_actors, 0, -1) if needed(count, network, text) <= available), 0)
        if most > best:
            fits.append(" and ".join([*changes, *([f"num_actors = {most}"] if most < num_actors else [])]))
            best = most
    if length is not None:
        fits += _shorter(spec, length, lambda count: needed(num_actors, dtype, text_dtype, count) <= available)
    least = needed(1, half, half)
    model = _what(spec, length)
    is_one = not process_bytes  # all in this process
    least_of = "all of it in bfloat16" if is_one else "even one actor in bfloat16"
    subject, each = (f"{model} needs", "itself") if is_one else (f"{num_actors} actors of {model} need", "each")
    raise ModelError(
        f"{subject} {_gb(wanted)} of memory ({each} "
        f"{_gb(plan.own_bytes + process_bytes)}: weights {_gb(plan.transformer_bytes)}, VAE {_gb(plan.vae_bytes)}, "
        f"activations {_gb(plan.activations_bytes)}; the text encoder {_gb(plan.text_bytes)}), and this machine has "
        f"{_gb(available)} left",
        f"what would fit: {', or '.join(fits)}"
        if fits
        else f"{least_of} needs {_gb(least)}: take a machine with "
        "a GPU, one with more memory, or a smaller model or size",
    )


def check_call_memory(
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    available: int,
    dtype: torch.dtype,
    num_latents: int,
) -> None:
    """Whether a machine that holds the model already has room for a video whose calls show all of it.

    Args:
        architecture: of the model.
        spec: of the same model, at the size that is asked for.
        sampler: of such a method.
        available: bytes that the machine has left.
        dtype: of the network.
        num_latents: of the video.

    Raises:
        ModelError: if it has not, with the longest video that it has room for.
    """

    def needed(length: int) -> int:
        return architecture.window_bytes(spec, length, dtype) + queue_bytes(spec, sampler, length)

    if needed(num_latents) > available:
        raise too_long(spec, num_latents, needed(num_latents), available, lambda length: needed(length) <= available)


def too_long(
    spec: BackboneSpec, num_latents: int, needed: int, available: int, fits: Callable[[int], bool]
) -> ModelError:
    """What is said of a video that is too long for the memory, with the longest that is not.

    Args:
        spec: of the model.
        num_latents: of the video.
        needed: bytes that it needs.
        available: bytes that there are.
        fits: whether a video of so many latents does.
    """
    found = [*_shorter(spec, num_latents, fits), "frames of a smaller size"]
    return ModelError(
        f"{_what(spec, num_latents)} need {_gb(needed)} of memory, and there are {_gb(available)}",
        f"what would fit: {', or '.join(found)}",
    )


def available_memory() -> int | None:
    """Bytes that this machine, or the container that this process is in, has left; None where that is not known."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found.append(int(Path(most).read_text()) - int(Path(used).read_text()) + _cached(Path(most).parent))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(found, default=None)


def _cached(group: Path) -> int:
    """Bytes of files that a group has read, and gives back when memory is asked for."""
    for line in (group / "memory.stat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return int(count)
    return 0


def _plans(
    architecture: Footprint,
    spec: BackboneSpec,
    sampler: SamplerConfig,
    card: int,
    dtype: torch.dtype,
    text_dtype: torch.dtype,
    text_on_card: bool,
    length: int | None,
    num_videos: int,
) -> Iterator[MemoryPlan]:
    """All choices, the best first; for videos of `length` latents where memory grows with that.

    Of several videos in step a call shows them all, and one is decoded at a time.
    """
    cells = spec.latent_height * spec.latent_width
    stores = (False, True) if dtype.itemsize == 2 and architecture.can_store_fp8 else (False,)
    num_windows = num_videos * (1 if sampler.one_window else sampler.windows_per_batch)
    cache_cells = num_videos * cells * architecture.vae_cache_per_cell
    call_bytes = num_windows * architecture.window_bytes(spec, sampler.latents_per_call(length), dtype)
    num_experts = getattr(architecture, "num_experts", 1)
    alone = (False, True) if num_experts > 1 else (False,)
    dtypes = (torch.float32, torch.bfloat16)
    for fp8, one_expert, vae_dtype, beside in itertools.product(stores, alone, dtypes, (True, False)):
        decode_bytes = vae_dtype.itemsize * cells * architecture.vae_peak_per_cell
        network_bytes = architecture.transformer_bytes(fp8=fp8, itemsize=dtype.itemsize)
        plan = MemoryPlan(
            card_bytes=card,
            transformer_bytes=network_bytes // num_experts if one_expert else network_bytes,
            vae_bytes=vae_dtype.itemsize * (architecture.vae_parameters + cache_cells),
            queue_bytes=num_videos * queue_bytes(spec, sampler, length),
            cache_bytes=num_videos * _cache_bytes(architecture, spec, sampler, dtype),
            activations_bytes=call_bytes + decode_bytes if beside else max(call_bytes, decode_bytes),
            dtype=dtype,
            fp8=fp8,
            vae_dtype=vae_dtype,
            decodes_beside=beside,
            one_expert=one_expert,
            text_bytes=text_dtype.itemsize * architecture.text_parameters,
            text_dtype=text_dtype,
            text_on_card=text_on_card,
            num_latents=length,
            num_videos=num_videos,
        )
        yield replace(plan, reason=_reason(plan, architecture))


def _reason(plan: MemoryPlan, architecture: Footprint) -> str:
    spare = plan.card_bytes - plan.total_bytes
    changes = [
        *(["the VAE is in bfloat16, which halves what it takes"] if plan.vae_dtype != torch.float32 else []),
        *(["one of the two transformers is on the card at a time, and they trade places"] if plan.one_expert else []),
        *(["the transformer's weights are stored in fp8, which halves them"] if plan.fp8 else []),
        *(["decoding takes turns with the network, which changes no frame"] if not plan.decodes_beside else []),
    ]
    what = "; ".join(changes) + ", because it does not fit otherwise" if changes else "everything fits as it is"
    return f"{what}; {_gb(max(0, spare))} to spare; {_where_text_is(plan, architecture, spare)}"


def _where_text_is(plan: MemoryPlan, architecture: Footprint, spare: int) -> str:
    if plan.text_on_card:
        return "the text encoder is on this card, in a process of its own"
    text = "the text encoder is on the CPU, in a process of its own"
    for dtype in (plan.text_dtype, torch.bfloat16):
        if spare >= dtype.itemsize * architecture.text_parameters + RESERVE_BYTES:
            return f"{text}; there is room for it too in {_name(dtype)}, with text_gpus in [workers]"
    return f"{text}: there is no room for it here"


def queue_bytes(spec: BackboneSpec, sampler: SamplerConfig, num_latents: int | None = None) -> int:
    """Latents in the making in float32, as many as a video of any length has, with what the solver keeps of each.

    Of videos that are one window, as many as one of `num_latents` has.

    UniPC keeps three tensors a latent beside the latent itself; a pass holds the old latents beside the new.
    """
    kept = 4 if sampler.solver == "unipc" else 1
    return (
        most_latents_held(sampler, num_latents)
        * spec.latent_channels
        * spec.latent_height
        * spec.latent_width
        * 4
        * (kept + 1)
    )


def _cache_bytes(architecture: Footprint, spec: BackboneSpec, sampler: SamplerConfig, dtype: torch.dtype) -> int:
    """Keys and values of one video, where the method keeps any."""
    bytes_of = getattr(architecture, "cache_bytes", None)  # not every network can keep them
    return bytes_of(spec, sampler.num_cached, dtype) if sampler.num_cached and bytes_of is not None else 0


def _smaller_sizes(architecture: Footprint, spec: BackboneSpec) -> Iterator[BackboneSpec]:
    """The spec at the usual sizes below its own that the model can make, the largest first."""
    for height, width in SMALLER:
        if height * width < spec.height * spec.width:
            try:
                yield architecture.resized(spec, height, width)
            except ModelError:
                continue


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
