"""Error-recycling fine-tuning (SVI) of a Wan image-to-video model: `python -m jobs.train_svi MODEL DATA OUT`.

DATA is a folder of clips with captions, the OUT of a run, or a folder of encoded clips. OUT gets the LoRA (or with
--full a model's folder), `progress.jsonl`, `curves.png`, and the state of training; the same command goes on with it.
"""

from __future__ import annotations

import argparse

import torch

from actors.runtime import ray_session
from jobs.training.make import Machines, encode, train
from jobs.training.plan import VARIANTS, TrainingPlan, plan_training, variant_settings
from miga.errors import MigaError
from miga.training.erft import RecyclingSettings
from miga.training.error_bank import REPLACEMENTS
from miga.training.trainer import BANK_DTYPES, TrainingSettings
from pipeline.config import WorkersConfig
from pipeline.figures import size
from pipeline.terminal import show


def main(arguments: list[str] | None = None) -> int:
    """Encodes, trains, and says where the result is."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        plan = _plan(options)
        _show(plan, _machines(options, plan, has_gpus=torch.cuda.is_available()))
        if options.dry_run:
            return 0
        num_encoders = options.encoders or options.processes
        workers = WorkersConfig(
            num_actors=max(options.processes, num_encoders if plan.sources else 1),
            cpus_per_actor=options.cpus,
            gpus_per_actor=None if options.device == "auto" else float(options.device == "cuda"),
        )
        plan.out.mkdir(parents=True, exist_ok=True)
        with ray_session(workers, options.address) as slots:
            machines = _machines(options, plan, has_gpus=slots.gpus > 0)
            encode(plan, machines, show)
            result = train(plan, machines, show)
        show(f"trained: {result}")
        return 0
    except MigaError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.train_svi", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a folder in diffusers' layout, or a hub name")
    parser.add_argument("data", metavar="DATA", help="a folder of videos with captions, an OUT, or encoded clips")
    parser.add_argument("out", metavar="OUT", help="a folder; all machines must see it")
    what = parser.add_argument_group("what is trained")
    what.add_argument("--revision", help="of the model on the hub")
    what.add_argument("--expert", choices=("high", "low"), help="of a model with two transformers, which one")
    what.add_argument("--variant", choices=tuple(VARIANTS), default="film", help="published settings (default: film)")
    what.add_argument(
        "--condition", action="append", default=[], metavar="NAME[=SHARE]",
        help="what clips are shown instead: film-5, shot-1, pro-1, none, ...; may be given again",
    )  # fmt: skip
    what.add_argument("--lora-rank", type=int, default=128)
    what.add_argument("--lora-alpha", type=float, help="(default: the rank)")
    what.add_argument("--full", action="store_true", help="train all weights, in float32, instead of a LoRA")
    what.add_argument("--height", type=int, help="of frames (default: the model's)")
    what.add_argument("--width", type=int)
    what.add_argument("--caption", default="", help="of videos that have none")
    of = TrainingSettings
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int, required=True, help="until which it is trained")
    how.add_argument("--learning-rate", type=float, default=of.learning_rate)
    how.add_argument("--weight-decay", type=float, default=of.weight_decay)
    how.add_argument("--batch", type=int, default=of.batch, help="clips of a step, of every process")
    how.add_argument("--seed", type=int, default=of.seed)
    how.add_argument("--shift", type=float, default=of.shift, help="of the noise levels (default: %(default)s)")
    errors = parser.add_argument_group("errors")
    errors.add_argument(
        "--error-scale", type=float, help="what injected errors are multiplied by (default: 1); watch their ratio"
    )
    errors.add_argument("--p-clean", type=float, help="share of steps without errors; 1 is the control")
    for name in ("noise", "condition", "latent", "store-clean"):
        errors.add_argument(f"--p-{name}", type=float, help="(default: the variant's)")
    errors.add_argument("--error-latents", type=int, help="latents of the condition that get errors (default: 3)")
    errors.add_argument("--error-spread", type=float, help="m of factors from 1 - m to 1 + m (default: 0)")
    errors.add_argument("--grids", type=int, default=of.num_grids, help="of the bank (default: %(default)s)")
    errors.add_argument("--bank-samples", type=int, default=of.capacity, help="of a grid, at most")
    errors.add_argument("--bank-gb", type=float, help="of a process's whole bank, at most")
    errors.add_argument("--bank-dtype", choices=tuple(BANK_DTYPES), default=of.bank_dtype)
    errors.add_argument("--replacement", choices=REPLACEMENTS, default=of.replacement, help="what a full grid drops")
    errors.add_argument("--two-banks", action="store_true", help="noise and latents apart, as published")
    errors.add_argument("--gather-steps", type=int, default=of.num_gathered, help="in which all share their errors")
    where = parser.add_argument_group("where")
    where.add_argument("--processes", type=int, default=1, help="that train together (default: 1)")
    where.add_argument("--encoders", type=int, help="workers that encode clips (default: as many)")
    where.add_argument("--address", help="of a Ray cluster (default: a Ray of its own)")
    where.add_argument("--cpus", type=float, default=1.0, help="CPU slots of each")
    where.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    where.add_argument("--threads", type=int, default=1, help="of each process")
    where.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto", help="of frozen weights")
    where.add_argument("--no-checkpointing", action="store_true", help="keep all activations: faster, more memory")
    where.add_argument("--save-every", type=int, default=100)
    where.add_argument("--log-every", type=int, default=10)
    where.add_argument("--measure-every", type=int, default=100, help="steps; 0: what is handed over is not measured")
    where.add_argument("--measure-steps", type=int, default=8, help="of the clip that is sampled for that")
    where.add_argument("--dry-run", action="store_true", help="check, say what it takes, and end")
    return parser


def _plan(options: argparse.Namespace) -> TrainingPlan:
    mixture, recycling = variant_settings(
        options.variant,
        options.condition,
        p_clean=options.p_clean,
        p_noise=options.p_noise,
        p_condition=options.p_condition,
        p_latent=options.p_latent,
        p_store_clean=options.p_store_clean,
        num_condition_latents=options.error_latents,
        scale=options.error_scale,
        spread=options.error_spread,
    )
    settings = TrainingSettings(
        mixture=mixture,
        recycling=RecyclingSettings(**recycling),
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        batch=options.batch,
        seed=options.seed,
        shift=options.shift,
        num_grids=options.grids,
        capacity=options.bank_samples,
        bank_bytes=None if options.bank_gb is None else int(options.bank_gb * 1e9),
        bank_dtype=options.bank_dtype,
        replacement=options.replacement,
        two_banks=options.two_banks,
        num_gathered=options.gather_steps,
    )
    return plan_training(
        options.model,
        options.data,
        options.out,
        revision=options.revision,
        expert=options.expert,
        height=options.height,
        width=options.width,
        caption=options.caption,
        settings=settings,
        rank=None if options.full else options.lora_rank,
        alpha=options.lora_alpha,
        num_steps=options.steps,
        num_processes=options.processes,
    )


def _machines(options: argparse.Namespace, plan: TrainingPlan, *, has_gpus: bool) -> Machines:
    device = options.device if options.device != "auto" else ("cuda" if has_gpus else "cpu")
    dtype = options.dtype if options.dtype != "auto" else ("bfloat16" if device == "cuda" else "float32")
    is_full = plan.rank is None
    return Machines(
        device=device,
        cpus=options.cpus,
        gpus=1.0 if device == "cuda" else 0.0,
        num_threads=options.threads,
        num_encoders=options.encoders or options.processes,
        dtype="float32" if is_full else dtype,
        autocast="bfloat16" if is_full and device == "cuda" else "",
        checkpointing=not options.no_checkpointing,
        save_every=max(1, options.save_every),
        log_every=max(1, options.log_every),
        measure_every=max(0, options.measure_every),
        measure_steps=max(1, options.measure_steps),
    )


def _show(plan: TrainingPlan, machines: Machines) -> None:
    memory = plan.memory(itemsize=2 if machines.dtype == "bfloat16" else 4)
    learning = "all weights" if plan.rank is None else f"a LoRA of rank {plan.rank}"
    show(
        f"model   {plan.spec.name}, {plan.part}: {learning}, {memory.num_learning / 1e6:,.1f} million",
        f"clips   {len(plan.sources)} videos" if plan.sources else f"clips   encoded, in {plan.clips}",
        f"memory  {size(memory.total)} of a card, from shapes: weights {size(memory.weights)}, what learns "
        f"{size(memory.learning)}, blocks' inputs {size(memory.block_inputs)}, inside one {size(memory.inside_block)}, "
        f"a reserve of {size(memory.reserve)}",
        f"bank    at most {size(plan.bank_bytes)} of a process's memory",
    )


if __name__ == "__main__":
    raise SystemExit(main())
