"""What a run costs before anything of it has been measured: calls, seconds, bytes, and where a model goes on a GPU.

Seconds of a call are its floating-point operations over a rate.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from jobs.run.plan import Plan
from miga.backbones.base import BackboneSpec
from miga.backbones.loading import named_dtype
from miga.backbones.memory_plan import CARDS_GB, RESERVE_BYTES, MemoryPlan, card_bytes, plan_memory
from miga.backbones.registry import experts_of_levels, footprint_of, require_footprint
from miga.config import SamplerConfig
from miga.cost import count_calls, forwards_worth
from miga.errors import ModelError
from pipeline.figures import count, duration, size
from pipeline.rows import BadRow, first_frames
from pipeline.scheduling.estimate import CostModel, estimate_run
from pipeline.terminal import on_one_line

GPU_FLOPS = 400e12
"""Achieved rate assumed of a GPU: about half of what an H100 does in dense bfloat16 matrix products."""
CPU_FLOPS = 100e9
"""Achieved rate assumed of a CPU core in float32: what the embedded model reached on one (docs/benchmarks.md)."""
BITS_PER_PIXEL = 0.1
"""Size of H.264 video at constant quality: footage of ordinary motion takes about this."""
READ_AHEAD = 1000
"""Rows whose prompts are judged together."""
LARGE = 1e12
"""Operations a forward from which on a model is taken to run on GPUs."""


def dry_run(plan: Plan, num_workers: int, card_gb: float | None = None) -> dict[str, Any]:
    """What the run would cost; nothing is written, no weights are loaded.

    Args:
        plan: the run.
        num_workers: backbone actors.
        card_gb: memory of a GPU as it is sold; with it, what goes where on it.

    Raises:
        ModelError: if the model does not fit that card, saying what would.
    """
    longest = plan.longest
    memory = None if card_gb is None else memory_on(plan, card_gb, longest)  # before minutes of reading: it may not fit
    lengths: Counter[int] = Counter()
    num_other_calls = 0
    bad: list[dict[str, Any]] = []
    for row in plan.rows(read_ahead=READ_AHEAD):
        if isinstance(row, BadRow):
            bad.append({"row": row.index, "id": row.id, "error": row.error})
        else:
            lengths[row.num_frames] += 1
            starts = tuple(map(plan.spec.latent_at, first_frames(row, plan.spec.fps)))
            num_other_calls += plan.sampler.num_switch_calls(
                plan.spec.num_latents(row.num_frames), len(row.prompts), starts
            )
            num_other_calls -= 0 if row.image is None else plan.sampler.num_calls_for_picture

    costs = estimate(plan.spec, plan.sampler, lengths, num_workers, len(bad))
    for name in ("network_calls", "network_calls_max", "network_forwards", "network_forwards_max"):
        costs[name] += num_other_calls
    return {
        "model": plan.spec.name,
        "size": f"{plan.spec.height}x{plan.spec.width}",
        "profile": plan.sampler.profile,
        "shortest_frames": min(lengths, default=None),
        "longest_frames": max(lengths, default=None),
        **costs,
        "retries": _retries(plan, costs),
        "bad": bad,
        "concern": plan.sampler.concern(plan.spec.num_latents(max(lengths))) if lengths else "",
        "prompts_are_judged": plan.check_prompt is not None,
        **_at_once(plan, memory),
        **_cards(plan, longest),
        **({} if memory is None else {"memory": {**memory.to_dict(), "bytes": memory.to_bytes()}}),
        **({} if memory is None else {"memory_explained": memory_sentences(memory)}),
    }


def _retries(plan: Plan, costs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What it comes to at most, where every row needs all tries that `[quality]` allows; None where there is one."""
    quality = plan.config.quality
    if not (quality.is_asked and quality.retries):
        return None
    tries = 1 + quality.retries
    return {
        "tries": tries,
        "network_calls_max": tries * costs["network_calls_max"],
        "network_forwards_max": tries * costs["network_forwards_max"],
        "estimated_hours_max": tries * costs["estimated_hours_max"],
        "estimated_bytes_max": tries * costs["estimated_bytes"],
    }


def _at_once(plan: Plan, memory: MemoryPlan | None) -> dict[str, int | str]:
    """How many videos an actor makes at once, where it may be several: of "auto" the number only on a given card."""
    asked = plan.config.workers.videos_per_actor
    if asked == 1:
        return {}
    return {"videos_per_actor": asked if memory is None else memory.num_videos}


def _cards(plan: Plan, num_latents: int | None) -> dict[str, int | None]:
    """The smallest card that holds a model which runs on GPUs, and the smallest that holds it as it is."""
    if plan.spec.forward_flops <= LARGE or footprint_of(plan.config.model, plan.config.revision) is None:
        return {}
    smallest = plain = None
    for card in CARDS_GB:
        try:
            memory = memory_on(plan, card, num_latents)
        except ModelError:
            continue
        smallest = smallest or card
        if memory.is_plain:
            plain = card
            break
    return {"smallest_card_gb": smallest, "plain_card_gb": plain}


def memory_sentences(memory: MemoryPlan) -> list[str]:
    """What goes where on a card, for people."""
    network = f"The network's weights take {size(memory.transformer_bytes)} in {memory.weights_name}"
    network += ": half of what they are, each layer widened while it is used." if memory.fp8 else "."
    decoding = (
        "Latents are decoded while the network is called"
        if memory.decodes_beside
        else "Latents are decoded in turn with the network's calls, which changes no frame"
    )
    text = (
        "on this card, in a process of its own"
        if memory.text_on_card
        else "in the machine's memory, not on the card, in a process that encodes every distinct prompt once"
    )
    spare = memory.card_bytes - memory.total_bytes
    length, one, of_them = "however long the video is", "a video", ""
    if memory.num_videos > 1:
        length, one = "however long the videos are", "each video"
        of_them = f" of {count(memory.num_videos)} videos"
    if memory.num_latents is not None:
        length = f"those of a video of {count(memory.num_latents)} latents, all in one window"
    grows = "" if memory.num_latents is None else ", in proportion to the video's length"
    return [
        network,
        f"The VAE takes {size(memory.vae_bytes)} in {memory.vae_name}, its cache for {one} in decoding included.",
        f"Latents in the making{of_them} take {size(memory.queue_bytes)}, {length}.",
        *([f"Keys and values{of_them} take {size(memory.cache_bytes)}, {length}."] * bool(memory.cache_bytes)),
        f"Calls and decoding take up to {size(memory.activations_bytes)} while they last{grows}. {decoding}.",
        f"The text encoder ({size(memory.text_bytes)}) is {text}.",
        f"With {size(RESERVE_BYTES)} a process for CUDA itself that is {size(memory.total_bytes)} of the card's "
        f"{size(memory.card_bytes)}: {size(spare)} to spare.",
        f"Why so: {memory.reason}.",
    ]


def dry_run_lines(found: Mapping[str, Any], most_bad: int = 20) -> list[str]:
    """What `dry_run` found, for people."""
    shortest, longest = found["shortest_frames"], found["longest_frames"]
    each = "" if shortest is None else f" of {count(shortest)}" + (f" to {count(longest)}" * (longest != shortest))
    videos = f"{count(found['videos'])}{each and each + ' frames'}, {found['size']}"
    calls, calls_max = found["network_calls"], found["network_calls_max"]
    searches = f"; {count(calls_max)} if every search that may run does" if calls_max > calls else ""
    hours, hours_max = found["estimated_hours"] * 3600, found["estimated_hours_max"] * 3600
    basis = found["basis"]
    table = [
        ("model", f"{found['model']}, profile {found['profile']}"),
        ("videos", f"{videos}: {duration(found['video_seconds'])} of video"),
        ("calls", f"{count(calls)} of the network, {count(found['network_forwards'])} forwards{searches}"),
        ("time", duration(hours) + (f" to {duration(hours_max)}" if hours_max > hours else "")),
        ("", f"at {basis['estimated_hours']}"),
        ("files", f"{size(found['estimated_bytes'])} of MP4, at {basis['estimated_bytes']}"),
    ]
    if (most := found["retries"]) is not None:
        text = f"{count(most['network_calls_max'])} calls, {duration(most['estimated_hours_max'] * 3600)} and "
        text += f"{size(most['estimated_bytes_max'])} at most, if every row needs all "
        text += f"{most['tries']} tries of [quality]"
        table.append(("retries", text))
    if (at_once := found.get("videos_per_actor")) is not None:
        table.append(("at once", _of_videos(at_once)))
    if "smallest_card_gb" in found:
        table.append(("GPU", _of_cards(found["smallest_card_gb"], found["plain_card_gb"])))
    lines = [f"{name:<7} {text}" for name, text in table]
    if "memory_explained" in found:
        lines += ["", "On that card:", *(f"  {sentence}" for sentence in found["memory_explained"])]
    if not found["prompts_are_judged"]:
        lines += ["", "Prompts were not counted in tokens: the model's tokenizer is not here, and the hub not reached."]
    if found["concern"]:
        lines += ["", f"Mind: {found['concern']}."]
    if bad := found["bad"]:
        lines += ["", f"{count(len(bad))} row{'s' * (len(bad) > 1)} cannot be made, and will be quarantined:"]
        lines += [f"  row {row['row']}: {on_one_line(row['error'])}" for row in bad[:most_bad]]
        if len(bad) > most_bad:
            lines.append(f"  and {count(len(bad) - most_bad)} more: --json names them all")
    return lines


def _of_videos(at_once: int | str) -> str:
    if at_once == "auto":
        return "as many videos an actor, in step, as its GPU has memory for: --card-gb says how many (on a CPU: one)"
    return f"{count(int(at_once))} video{'s' * (at_once != 1)} an actor, in step; the time above is that of one by one"


def _of_cards(smallest: int | None, plain: int | None) -> str:
    if smallest is None:
        return f"no card of up to {CARDS_GB[-1]} GB holds it: --card-gb {CARDS_GB[-1]} says what would fit"
    as_it_is = "" if plain in (None, smallest) else f"; as it is from {plain} GB on"
    return f"a card of {smallest} GB or more{as_it_is} (--card-gb {smallest} says what goes where)"


def memory_on(plan: Plan, card_gb: float, num_latents: int | None = None) -> MemoryPlan:
    """Where the run's model would go on a card that is sold with so many GB.

    Args:
        plan: the run.
        card_gb: of the card.
        num_latents: of its longest video, where memory grows with that; None: of the model's default length.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    config = plan.config
    return plan_memory(
        require_footprint(config.model, config.revision),
        plan.spec,
        plan.sampler,
        card_bytes(card_gb),
        named_dtype(config.dtype, "cuda"),
        getattr(torch, config.text_dtype),
        text_on_card=config.workers.text_gpus > 0,
        num_latents=num_latents,
        num_videos=config.workers.videos_per_actor,
    )


def estimate(
    spec: BackboneSpec,
    sampler: SamplerConfig,
    videos_by_num_frames: Mapping[int, int],
    num_workers: int,
    bad_rows: int = 0,
) -> dict[str, Any]:
    """What `estimate_run` says of videos of a model, so many of each length."""

    experts = experts_of_levels(spec, sampler)

    def calls_of(num_frames: int) -> tuple[int, int]:
        calls = count_calls(sampler, spec.num_latents(num_frames))
        return calls.total, calls.most

    def forwards_of(num_frames: int) -> tuple[int, int]:
        calls = count_calls(sampler, spec.num_latents(num_frames), experts)
        return calls.forwards, calls.most_forwards

    def work_of(num_frames: int) -> float:
        work = forwards_worth(sampler, spec, spec.num_latents(num_frames))
        assert work is not None
        return work

    cost = cost_model(spec, sampler, num_workers)
    whole_windows = sampler.work(1) is None
    return estimate_run(
        videos_by_num_frames, calls_of, cost, forwards_of=forwards_of, work_of=None if whole_windows else work_of,
        bad_rows=bad_rows,
    )  # fmt: skip


def cost_model(spec: BackboneSpec, sampler: SamplerConfig, num_workers: int) -> CostModel:
    """The cost of a model's calls, by the size of its network alone; of a shorter window by its share of a whole one.

    A call is one with guidance, where there is any: `CallCount.forwards` says how many calls go without.
    """
    num_forwards = 1 if sampler.guidance_scale == 1 else 2
    flops = spec.forward_flops * sampler.window / spec.window
    is_large = spec.forward_flops > LARGE
    rate, where = (GPU_FLOPS, "a GPU at 400 TFLOP/s") if is_large else (CPU_FLOPS, "a CPU core at 100 GFLOP/s")
    return CostModel(
        seconds_per_call=num_forwards * flops / rate,
        forwards_per_call=num_forwards,
        bytes_per_second=spec.height * spec.width * spec.fps * BITS_PER_PIXEL / 8,
        fps=spec.fps,
        num_workers=num_workers,
        time_basis=f"{num_forwards} x {flops / 1e9:.4g} GFLOP, {where}; not measured",
        size_basis=f"{BITS_PER_PIXEL} bit a pixel; not measured",
    )


@functools.cache
def expected_calls(config: SamplerConfig, num_latents: int) -> float:
    """Network calls of a video, where every second evaluation that may start a search does."""
    calls = count_calls(config, num_latents)
    return (calls.total + calls.most) / 2
