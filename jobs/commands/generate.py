"""`miga generate`: a video for every row of a prompt file."""

from __future__ import annotations

import argparse
from typing import Any, Final, get_args

from jobs.commands.common import (
    add_config_options,
    add_failed_rows_ok,
    add_model_options,
    add_sampler_options,
    default_of,
    model_settings,
    show_summary,
)
from pipeline.config import TrackerName
from pipeline.terminal import show, show_json

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga generate prompts.jsonl out/ --config wan --set sampler.num_steps=40",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "make a video for every row of a prompt file"
    generate = commands.add_parser("generate", help=text, description=text)
    generate.add_argument(
        "prompts", metavar="PROMPTS", help=".txt, .jsonl, .csv or .parquet; local, s3://, gs:// or az://"
    )
    generate.add_argument(
        "out", metavar="OUT", help="a folder, or s3://, gs:// or az://bucket/prefix; running again resumes"
    )
    add_config_options(generate.add_argument_group("config"))
    add_model_options(generate.add_argument_group("model"))

    videos = generate.add_argument_group("videos")
    add_sampler_options(videos)
    videos.add_argument("--num-frames", type=int, help="length of videos whose row names none (default: the model's)")
    videos.add_argument("--seed", type=int, help=f"from which rows without a seed get theirs {default_of('seed')}")
    videos.add_argument("--limit", type=int, help="make the first N rows only (default: all)")
    videos.add_argument(
        "--keep-latents", action="store_true", default=None, help="keep finished latents too, for `miga extend`"
    )

    workers = generate.add_argument_group("workers")
    workers.add_argument("--num-actors", type=int, help="backbone actors (default: one per GPU, or two on CPUs)")
    workers.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    workers.add_argument("--retry-failed", action="store_true", help="try rows again that were given up before")

    cost = generate.add_argument_group("cost beforehand")
    cost.add_argument("--dry-run", action="store_true", help="say what it would cost, and do nothing")
    cost.add_argument("--card-gb", type=float, metavar="GB", help="with --dry-run: what goes where on such a GPU")

    printed = generate.add_argument_group("what is printed")
    printed.add_argument("--json", action="store_true", help="print the summary for machines")
    printed.add_argument("--quiet", action="store_true", help="no progress")
    printed.add_argument(
        "--tracker",
        choices=get_args(TrackerName),
        help="where figures and sample videos are written (default: nowhere)",
    )
    add_failed_rows_ok(printed)
    generate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.run.check import check_out
    from jobs.run.estimate import dry_run, dry_run_lines
    from jobs.run.make import generate
    from jobs.run.plan import make_plan
    from jobs.shared.prompt_argument import refuse_prompt
    from jobs.shared.run_config import read_config

    refuse_prompt(options.prompts, options.out)
    config = read_config(
        options.config,
        options.settings,
        **model_settings(options),
        profile=options.profile,
        num_frames=options.num_frames,
        seed=options.seed,
        limit=options.limit,
        workers={"num_actors": options.num_actors},
        run={"keep_latents": options.keep_latents},
        logs={"tracker": options.tracker},
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
