"""What a run needs beyond its plan: an OUT that is its own, the model's files, and room for them."""

from __future__ import annotations

import os

import torch

from jobs.run.plan import Plan, run_record
from miga.backbones.loading import named_dtype
from miga.backbones.memory_plan import available_memory, check_machine_memory
from miga.backbones.registry import check_weights, footprint_of, load_backbone
from pipeline.records.run_folder import check_run
from pipeline.storage.open import open_storage


def check_out(plan: Plan) -> None:
    """Whether the run may write into OUT.

    Raises:
        OutputError: if it holds something else, or a run of another config.
    """
    check_run(open_storage(plan.out), run_record(plan))


def load_tokenizer_or_raise(plan: Plan) -> None:
    """Says why the model's files are not to be had, now that they are needed.

    Raises:
        ModelError: if its tokenizer cannot be loaded.
    """
    load_backbone(plan.config.model, revision=plan.config.revision, device="cpu", components=("tokenizer",))


def check_this_machine(plan: Plan) -> None:
    """What a run on this machine alone needs beyond its plan: the weights, whole, and room for them.

    On a cluster the workers look for themselves, before any video is begun. So do those with a GPU for its memory.

    Raises:
        ModelError: if weights are not to be had or broken, or do not fit, saying what would.
    """
    config = plan.config
    check_weights(config.model, config.revision, download=True)
    footprint, available = footprint_of(config.model, config.revision), available_memory()
    if footprint is None or torch.cuda.is_available() or available is None:
        return
    slots = int((os.cpu_count() or 1) // config.workers.cpus_per_actor)
    check_machine_memory(
        footprint,
        plan.spec,
        plan.sampler,
        config.workers.num_actors or max(1, min(2, slots)),
        available,
        named_dtype(config.dtype, "cpu"),
        getattr(torch, config.text_dtype),
        num_latents=plan.longest,
        num_videos=1 if config.workers.videos_per_actor == "auto" else config.workers.videos_per_actor,
    )
