"""`miga simulate`: a run on clusters of any size, under a virtual clock."""

from __future__ import annotations

import argparse
from typing import Any, Final

from miga.sharing import SHARES
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = ("miga simulate --gpus 64 512 --preemptions-per-node-hour 0.05",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    simulate = commands.add_parser("simulate", help="a run on clusters of any size, under a virtual clock")
    simulate.add_argument("--gpus", type=int, nargs="+", default=[1000], help="sizes of clusters (default: 1000)")
    simulate.add_argument("--gpus-per-node", type=int, default=8, help="that go and come together (default: 8)")
    simulate.add_argument("--speeds", nargs="+", default=[], metavar="SPEED[:WEIGHT]", help="of nodes (default: 1)")
    simulate.add_argument("--videos", type=int, help="rows of the prompt file (default: 5 a GPU)")
    simulate.add_argument(
        "--num-frames",
        nargs="+",
        default=[],
        metavar="FRAMES[:WEIGHT]",
        help="lengths of videos (default: the model's)",
    )
    simulate.add_argument("--family", default="wan", help="of the model, such as videocrafter2 (default: wan)")
    simulate.add_argument("--profile", default="paper", help="how to sample: see `miga profiles` (default: paper)")
    simulate.add_argument("--call-s", type=float, default=1.4, help="seconds of one call at speed 1 (default: 1.4)")
    simulate.add_argument(
        "--search-rate", type=float, default=0.2, help="share of evaluations that start a search (default: 0.2)"
    )
    simulate.add_argument("--kills-per-gpu-hour", type=float, default=0.0, help="deaths of workers (default: 0)")
    simulate.add_argument("--preemptions-per-node-hour", type=float, default=0.0, help="of nodes (default: 0)")
    simulate.add_argument("--notice-s", type=float, default=30.0, help="of a preemption; 0: none (default: 30)")
    simulate.add_argument(
        "--checkpoint-every-s", type=float, nargs="+", default=[120.0], help="of a video; inf: none (default: 120)"
    )
    simulate.add_argument("--load-s", type=float, default=60.0, help="of a worker's start (default: 60)")
    simulate.add_argument("--upload-s", type=float, default=5.0, help="of a video (default: 5)")
    simulate.add_argument(
        "--share", choices=SHARES, default="windows", help="what idle workers take of others' videos (default: windows)"
    )
    simulate.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    simulate.add_argument("--out", metavar="FOLDER", help="write plots and figures there")
    simulate.add_argument(
        "--ledger-rows", type=int, metavar="N", help="no cluster: time the ledger over N rows whose videos take no time"
    )
    simulate.add_argument("--json", action="store_true", help="print for machines")
    simulate.add_argument("--quiet", action="store_true", help="no progress")
    simulate.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.shared.table import format_table
    from jobs.simulation.ledger_speed import bench_ledger
    from jobs.simulation.outcomes import as_json, check_out, outcome_table, write_plots
    from jobs.simulation.scenarios import make_scenarios, simulate_all

    if options.ledger_rows is not None:
        rows = [row for size in options.gpus for row in bench_ledger(options.ledger_rows, size)]
        show_json(rows) if options.json else show_text(format_table(rows))
        return 0
    scenarios = make_scenarios(
        gpus=options.gpus,
        checkpoints_every_s=options.checkpoint_every_s,
        family=options.family,
        profile=options.profile,
        num_frames=options.num_frames,
        speeds=options.speeds,
        videos=options.videos,
        gpus_per_node=options.gpus_per_node,
        call_s=options.call_s,
        search_rate=options.search_rate,
        kills_per_gpu_hour=options.kills_per_gpu_hour,
        preemptions_per_node_hour=options.preemptions_per_node_hour,
        notice_s=options.notice_s,
        load_s=options.load_s,
        upload_s=options.upload_s,
        share=options.share,
        seed=options.seed,
    )
    if options.out:
        check_out(options.out)
    outcomes = simulate_all(scenarios, quiet=options.quiet)
    files = write_plots(outcomes, options.out, quiet=options.quiet) if options.out else []
    if options.json:
        show_json({"runs": [as_json(outcome) for outcome in outcomes], "files": files})
    else:
        show_text(outcome_table(outcomes))
        show(*files)
    return 0
