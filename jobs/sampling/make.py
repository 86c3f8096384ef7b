"""Plans and makes one video in this process.

All that can be wrong is found before weights are loaded. The text encoder is loaded, used and let go before the network
comes, and the model goes onto a GPU by the same memory plan as in a run; so what a run can load, this can.

The video is that of a run's row with the same prompt, seed, length and settings.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from jobs.run.plan import model_options, prompt_checker, resolve_settings, row_images
from miga.allocator import keep_heap_steady
from miga.backbones.base import Backbone, BackboneSpec
from miga.backbones.loading import named_dtype
from miga.backbones.memory_plan import MemoryPlan, available_memory, check_machine_memory, plan_memory
from miga.backbones.options import configure
from miga.backbones.registry import check_weights, footprint_of, load_backbone, simulates_gpus, weight_notes
from miga.config import SamplerConfig
from miga.cost import count_calls
from miga.errors import OutputError, UsageError, WorkerError
from miga.image_condition import pictures_of
from miga.pictures import Picture
from miga.video import Progress, make_video
from pipeline.config import RunConfig
from pipeline.storage.addresses import is_printable
from pipeline.video import Frames, VideoWriter

SUFFIX: Final = ".mp4"
_LONGEST: Final = ".{}.4194304.partial.mp4"
"""What a file is called while it is written, which must not be too long either."""

Say = Callable[[str], None]
OnCalls = Callable[[int, int], None]
"""Told of network calls made, and of how many there will be (more where self-reflection searches)."""


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """One video, checked and resolved, nothing of it done.

    Attributes:
        prompt: its prompt.
        negative_prompt: what guidance steers away from.
        out: the file.
        config: the settings; of its sections [workers] and [run] only what is said of memory means anything here.
        spec: the model.
        sampler: the sampler's settings.
        num_frames: its length.
        num_calls: network calls that it takes without any search.
        device: where it is made.
        image, last_image: pictures that it begins and ends with.
    """

    prompt: str
    negative_prompt: str
    out: Path
    config: RunConfig
    spec: BackboneSpec
    sampler: SamplerConfig
    num_frames: int
    num_calls: int
    device: torch.device
    image: Picture | None = None
    last_image: Picture | None = None


def plan_sample(
    prompt: str,
    out: str,
    config: RunConfig,
    *,
    negative_prompt: str | None = None,
    device: str | None = None,
    image: str | None = None,
    last_image: str | None = None,
    overwrite: bool = False,
) -> SamplePlan:
    """Checks everything that can be known before weights are loaded.

    Args:
        prompt: of the video.
        out: a local path that ends in .mp4.
        config: the settings.
        negative_prompt: None: the model's own.
        device: "cpu", "cuda" or "cuda:N"; None: a GPU if there is one.
        image: path or address of the picture that it begins with; None: none.
        last_image: the same of the picture that it ends with.
        overwrite: whether a file that is there is replaced.

    Raises:
        MigaError: naming what is wrong, where, and what to do.
    """
    file = _checked_out(out, overwrite)
    where = _device(device)
    if not prompt.strip():
        raise UsageError("the prompt is blank", "say what is to be seen")
    spec, sampler, num_frames = resolve_settings(config)
    images = row_images("prompt", spec, sampler)
    for column, name in (("image", image), ("last_image", last_image)):
        images.digest(column, name)
    if last_image is not None and image is None:
        raise UsageError("there is a last image, and no first one", "give --image too")
    negative = spec.negative_prompt if negative_prompt is None else negative_prompt
    _check_prompts((prompt, negative), config)
    if simulates_gpus(config.model):
        where = torch.device("cpu")
    _memory_plan(spec, sampler, config, where, num_frames)
    check_weights(config.model, config.revision, download=True)
    return SamplePlan(
        prompt=prompt,
        negative_prompt=negative,
        out=file,
        config=config,
        spec=spec,
        sampler=sampler,
        num_frames=num_frames,
        num_calls=count_calls(sampler, spec.num_latents(num_frames)).total,
        device=where,
        image=None if image is None else images.read(image),
        last_image=None if last_image is None else images.read(last_image),
    )


def make_sample(plan: SamplePlan, say: Say = lambda text: None, on_calls: OnCalls = lambda done, of: None) -> Any:
    """Makes the video; whatever goes wrong, or ends this process, no partial file is at its name.

    Args:
        plan: the video.
        say: told what is being done before the first call.
        on_calls: told of progress.

    Returns:
        What is to be said of it, by name.

    Raises:
        MigaError: if it cannot be made.
    """
    keep_heap_steady()
    started_s = time.monotonic()
    for note in weight_notes(plan.config.model, plan.config.revision):
        say(note)
    say(f"encoding the prompt with {plan.spec.name}")
    embedding, negative_embedding = _encoded(plan)
    say(f"loading the network onto {plan.device}")
    backbone = _loaded(plan)
    say(f"{plan.num_frames} frames of {plan.spec.width}x{plan.spec.height}: {plan.num_calls} network calls")
    last: list[Progress] = []
    fitted = [
        None if picture is None else picture.fitted(plan.spec.height, plan.spec.width)
        for picture in (plan.image, plan.last_image)
    ]
    pictures = pictures_of(backbone, *fitted)

    def frames() -> Iterator[Frames]:
        steps = make_video(
            backbone,
            plan.sampler,
            [embedding],
            negative_embedding,
            plan.spec.num_latents(plan.num_frames),
            plan.config.seed,
            pictures=pictures,
        )
        with closing(steps):  # type: ignore[type-var]  # a generator
            for step in steps:
                last[:] = [step]
                on_calls(step.num_calls, max(plan.num_calls, step.num_calls))
                if step.frames is not None:
                    yield step.frames

    settings = plan.config.video
    try:
        with VideoWriter(plan.out, fps=plan.spec.fps, settings=settings, num_frames=plan.num_frames) as writer:
            for chunk_FHWC in frames():
                writer.write(chunk_FHWC)
            made = writer.finish()
    except torch.OutOfMemoryError as error:
        raise WorkerError(
            f"the GPU ran out of memory: {str(error).splitlines()[0]}",
            "end what else uses the GPU, or take a smaller size; `miga generate --dry-run --card-gb` says what fits",
        ) from None
    return {
        "video": str(plan.out),
        "num_frames": made.num_frames,
        "duration_s": made.duration_s,
        "fps": plan.spec.fps,
        "width": made.width,
        "height": made.height,
        "bytes": made.bytes,
        "sha256": made.sha256,
        **({} if plan.image is None else {"image_sha256": plan.image.sha256}),
        "seed": plan.config.seed,
        "model": plan.spec.name,
        "profile": plan.sampler.profile,
        "network_calls": last[-1].num_calls,
        "seconds": round(time.monotonic() - started_s, 1),
    }


def _checked_out(out: str, overwrite: bool) -> Path:
    """The file to make, if it can be made there.

    Raises:
        UsageError: if it is no name of a local MP4.
        OutputError: if something is there, or the folder takes no file.
    """
    example = "name a local file that ends in .mp4, such as out.mp4"
    if "://" in out:
        raise UsageError(
            f"{out.partition('://')[0]}:// is no local file",
            f"{example}; `miga generate` writes to s3://, gs:// and az://",
        )
    if not out.strip() or not is_printable(out) or Path(out).suffix.lower() != SUFFIX:
        raise UsageError(f"{out!r} is no name of a video", example)
    file = Path(out)
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(file.with_name(_LONGEST.format(file.name)))
        is_there = os.path.lexists(file)
        if is_there and (file.is_dir() or not overwrite):
            hint = "name another file" if file.is_dir() else "name another file, or say --overwrite"
            raise OutputError(f"{file} is there already", hint)
        folder = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
        if not folder.is_dir():
            raise OutputError(f"{folder} is no folder", "name a file in one")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(f"{folder} cannot be written to", "name a file in a folder that can")
    except OSError as error:
        raise OutputError(f"{out}: {error.strerror or error}", "name another file") from None
    return file


def _device(name: str | None) -> torch.device:
    """The device that is asked for.

    Raises:
        UsageError: if there is none of that name.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name not in there and not (name == "cuda" and len(there) > 1):
        raise UsageError(f"there is no device {name!r} here", f"devices of this machine: {', '.join(there)}")
    return torch.device(name)


def _check_prompts(prompts: tuple[str, str], config: RunConfig) -> None:
    check = prompt_checker(config.model, config.revision)
    for text in prompts:
        reason = None if check is None or not text else check(text)
        if reason is not None:
            raise UsageError(f"the prompt {text[:60]!r} cannot be used: {reason}", "say it in other or fewer words")


def _memory_plan(
    spec: BackboneSpec, sampler: SamplerConfig, config: RunConfig, device: torch.device, num_frames: int
) -> MemoryPlan | None:
    """How the model is fitted onto the GPU for a video of so many frames; None on a CPU, or if nothing is known of it.

    Raises:
        ModelError: if it does not fit, saying what would.
    """
    footprint = footprint_of(config.model, config.revision)
    if footprint is None:
        return None
    text_dtype: torch.dtype = getattr(torch, config.text_dtype)
    dtype, num_latents = named_dtype(config.dtype, device.type), spec.num_latents(num_frames)
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device).total_memory
        return plan_memory(footprint, spec, sampler, card, dtype, text_dtype, num_latents=num_latents)
    if (available := available_memory()) is not None:
        check_machine_memory(footprint, spec, sampler, 1, available, dtype, text_dtype, num_latents=num_latents)
    return None


def _encoded(plan: SamplePlan) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings of prompt and negative prompt; the encoder is gone when this returns."""
    config = plan.config
    encoder = load_backbone(
        config.model,
        revision=config.revision,
        device=plan.device if config.workers.text_gpus > 0 else "cpu",
        dtype=getattr(torch, config.text_dtype),
        components=("text",),
    )
    embedding, negative = (encoder.encode_prompts([text])[0] for text in (plan.prompt, plan.negative_prompt))
    del encoder
    gc.collect()
    return embedding, negative


def _loaded(plan: SamplePlan) -> Backbone:
    config = plan.config
    memory = _memory_plan(plan.spec, plan.sampler, config, plan.device, plan.num_frames)
    backbone = load_backbone(
        config.model,
        revision=config.revision,
        device="cpu" if memory else plan.device,
        dtype=named_dtype(config.dtype, plan.device.type),
        components=("denoiser", "vae"),
    )
    configure(backbone, model_options(config), revision=config.revision, device=plan.device, memory=memory)
    return backbone
