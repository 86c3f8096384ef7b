"""`miga ablate`: settings of the sampler side by side."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import add_config_options, add_failed_rows_ok
from pipeline.terminal import show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = ("miga ablate prompts.jsonl ablation/ --tables 3,4 --seeds 2 --dry-run",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    ablate = commands.add_parser("ablate", help="settings of the sampler side by side: the paper's tables")
    ablate.add_argument("prompts", metavar="PROMPTS", help="as for generate; every row must be one that can be made")
    ablate.add_argument(
        "out", metavar="OUT", help="a folder, or s3://, gs:// or az://bucket/prefix; running again resumes"
    )
    ablate.add_argument("--grid", help="a TOML file of settings and tables (default: jobs/configs/ablate.toml)")
    add_config_options(ablate, "as for generate; its [sampler] holds for all settings")
    ablate.add_argument("--model", help="as for generate")
    ablate.add_argument("--revision", help="of a hub name")
    ablate.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the network")
    ablate.add_argument("--num-frames", type=int, help="length of videos whose row names none")
    ablate.add_argument("--seeds", type=int, metavar="K", help="make each prompt K times, with seeds 0 to K-1")
    ablate.add_argument("--limit", type=int, help="the first N prompts only")
    ablate.add_argument(
        "--features", help="sprites, frames, or image models that consistency is judged by: NAME[,NAME]"
    )
    ablate.add_argument("--tables", metavar="A,B", help="names of tables to make (default: all)")
    ablate.add_argument("--num-actors", type=int, help="as for generate")
    ablate.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    add_failed_rows_ok(ablate)
    ablate.add_argument("--dry-run", action="store_true", help="say what each setting would cost, and do nothing")
    ablate.add_argument("--json", action="store_true", help="print for machines")
    ablate.add_argument("--quiet", action="store_true", help="no progress")
    ablate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.ablation.estimate import cost_table, dry_run
    from jobs.ablation.make import ablate
    from jobs.ablation.plan import check_out, plan_ablation
    from jobs.ablation.tables import tables_text
    from jobs.shared.prompt_argument import refuse_prompt
    from jobs.shared.run_config import read_config

    refuse_prompt(options.prompts, options.out)
    config = read_config(
        options.config,
        options.settings,
        model=options.model,
        revision=options.revision,
        dtype=options.dtype,
        num_frames=options.num_frames,
        limit=options.limit,
        workers={"num_actors": options.num_actors},
    )
    plan = plan_ablation(
        options.prompts,
        options.out,
        config,
        grid=options.grid,
        tables=[name.strip() for name in options.tables.split(",")] if options.tables else None,
        num_seeds=options.seeds,
        features=options.features,
    )
    check_out(plan)
    if options.dry_run:
        costs = dry_run(plan, config.workers.num_actors or 1)
        show_json(costs) if options.json else show_text(cost_table(costs))
        return 0
    summary = ablate(plan, address=options.address, quiet=options.quiet, failed_rows_ok=options.failed_rows_ok)
    show_json(summary) if options.json else show_text(tables_text(summary, options.out))
    return int(summary["exit_status"])
