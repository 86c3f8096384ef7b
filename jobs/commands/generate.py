"""`miga generate`: a video for every row of a prompt file."""

from __future__ import annotations

import argparse
from typing import Any

from jobs.commands.common import add_failed_rows_ok, show_summary
from pipeline.terminal import show, show_json


def add(commands: Any) -> None:
    """Adds the command and its options."""
    generate = commands.add_parser("generate", help="make a video for every row of a prompt file")
    generate.add_argument("prompts", metavar="PROMPTS", help=".txt, .jsonl, .csv or .parquet; local or s3://")
    generate.add_argument("out", metavar="OUT", help="a folder or s3://bucket/prefix; running again resumes")
    generate.add_argument("--config", help="a TOML file; options given here win over it")
    generate.add_argument("--model", help="sprites (embedded), a folder, a hub name, or package.module:factory")
    generate.add_argument("--revision", help="of a hub name")
    generate.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the network")
    generate.add_argument("--lora", action="append", metavar="FILE_OR_NAME[:SCALE]", help="fused in; may be repeated")
    generate.add_argument("--height", type=int, help="pixels of a frame (default: the model's)")
    generate.add_argument("--width", type=int, help="pixels of a frame (default: the model's)")
    generate.add_argument("--attention", metavar="BACKEND", help="diffusers' attention backend (default: PyTorch's)")
    generate.add_argument("--compile", action="store_true", default=None, help="compile the network's blocks")
    generate.add_argument("--profile", help="how to sample: see `miga profiles`")
    generate.add_argument("--num-frames", type=int, help="length of videos whose row names none")
    generate.add_argument("--seed", type=int, help="from which rows without a seed get theirs")
    generate.add_argument("--limit", type=int, help="make the first N rows only")
    generate.add_argument("--num-actors", type=int, help="backbone actors (default: one per GPU, or two on CPUs)")
    generate.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    generate.add_argument("--retry-failed", action="store_true", help="try rows again that were given up before")
    generate.add_argument(
        "--keep-latents", action="store_true", default=None, help="keep finished latents too, for `miga extend`"
    )
    add_failed_rows_ok(generate)
    generate.add_argument("--dry-run", action="store_true", help="say what it would cost, and do nothing")
    generate.add_argument("--card-gb", type=float, metavar="GB", help="with --dry-run: what goes where on such a GPU")
    generate.add_argument("--json", action="store_true", help="print the summary for machines")
    generate.add_argument("--quiet", action="store_true", help="no progress")
    generate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.check import check_out
    from jobs.run.estimate import dry_run, dry_run_lines
    from jobs.run.make import generate
    from jobs.run.plan import make_plan
    from pipeline.config import load_config, override

    config = override(
        load_config(options.config),
        model=options.model,
        revision=options.revision,
        dtype=options.dtype,
        lora=options.lora,
        height=options.height,
        width=options.width,
        attention=options.attention,
        compile=options.compile,
        profile=options.profile,
        num_frames=options.num_frames,
        seed=options.seed,
        limit=options.limit,
        workers={"num_actors": options.num_actors},
        run={"keep_latents": options.keep_latents},
    )
    plan = make_plan(options.prompts, options.out, config)
    check_out(plan)
    if options.dry_run:
        found = dry_run(plan, config.workers.num_actors or 1, options.card_gb)
        show_json(found) if options.json else show(*dry_run_lines(found))
        return 0
    summary = generate(
        plan,
        address=options.address,
        quiet=options.quiet,
        retry_failed=options.retry_failed,
        failed_rows_ok=options.failed_rows_ok,
    )
    if options.json:
        show_json(summary)
    else:
        show_summary(summary)
    return int(summary["exit_status"])
