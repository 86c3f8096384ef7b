"""The `miga` command.

Exit status: 0 all rows made; 3 some rows quarantined; 2 wrong usage or input; 1 the run itself failed, or a run that is
looked at has faults.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any, Final

from jobs.bench.cli import add_benches
from jobs.upkeep import add_upkeep
from miga import __version__
from miga.errors import InputError, MigaError, ModelError, OutputError, UsageError
from miga.sharing import SHARES
from pipeline.addresses import without_secrets
from pipeline.terminal import say, show, show_json, show_text

TRACEBACK_VARIABLE: Final = "MIGA_TRACEBACK"

Command = Callable[[argparse.Namespace], int]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; errors become one message and an exit status."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        options = build_parser().parse_args(arguments)
        command: Command = options.command
        return command(options)
    except MigaError as error:
        say(f"miga: {error}")
        return 2 if isinstance(error, UsageError | InputError | OutputError | ModelError) else 1
    except KeyboardInterrupt:
        say("miga: stopped; the same command goes on from here")
        return 1
    except Exception as error:  # a fault of this program: said in a sentence all the same
        say(f"miga: {unexpected(error)}")
        return 1


def unexpected(error: Exception) -> MigaError:
    """What a user is told of an exception that should have been one of the project's own."""
    trace = without_secrets("".join(traceback.format_exception(error)))
    about = f"unexpected {type(error).__name__}: {without_secrets((str(error) or 'no message').splitlines()[0])}"
    ask = "this is a fault of miga, not yours: please report it with"
    if os.environ.get(TRACEBACK_VARIABLE):
        return MigaError(about, f"{ask} this traceback\n{trace}")
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="miga-traceback-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(trace)
    except OSError:  # no room, or no such folder
        return MigaError(about, f"{ask} the traceback, which {TRACEBACK_VARIABLE}=1 in the environment prints")
    return MigaError(about, f"{ask} its traceback, {file.name}")


class Parser(argparse.ArgumentParser):
    """Prints as all commands do."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file is sys.stdout:
            show_text(message.removesuffix("\n"))
        elif message:
            say(message.removesuffix("\n"))


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(prog="miga", description="Datasets of long videos from short-clip video models.", epilog=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_ablate(commands)
    _add_status_and_report(commands)
    add_upkeep(commands, _print_summary)
    _add_extend(commands)
    _add_convert(commands)
    _add_profiles(commands)
    _add_plan(commands)
    _add_simulate(commands)
    add_benches(commands.add_parser("bench", help="figures of the embedded model on this machine"))
    return parser


def _add_generate(commands: Any) -> None:
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
    generate.add_argument("--dry-run", action="store_true", help="say what it would cost, and do nothing")
    generate.add_argument("--card-gb", type=float, metavar="GB", help="with --dry-run: what goes where on such a GPU")
    generate.add_argument("--json", action="store_true", help="print the summary for machines")
    generate.add_argument("--quiet", action="store_true", help="no progress")
    generate.set_defaults(command=_generate)


def _generate(options: argparse.Namespace) -> int:
    from jobs.generate import check_out, dry_run, generate, make_plan
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
        _show(dry_run(plan, config.workers.num_actors or 1, options.card_gb), options.json)
        return 0
    summary = generate(plan, address=options.address, quiet=options.quiet, retry_failed=options.retry_failed)
    if options.json:
        show_json(summary)
    else:
        _print_summary(summary)
    return int(summary["exit_status"])


def _add_ablate(commands: Any) -> None:
    ablate = commands.add_parser("ablate", help="settings of the sampler side by side: the paper's tables")
    ablate.add_argument("prompts", metavar="PROMPTS", help="as for generate; every row must be one that can be made")
    ablate.add_argument("out", metavar="OUT", help="a folder or s3://bucket/prefix; running again resumes")
    ablate.add_argument("--grid", help="a TOML file of settings and tables (default: jobs/configs/ablate.toml)")
    ablate.add_argument("--config", help="a TOML file, as for generate; its [sampler] holds for all settings")
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
    ablate.add_argument("--dry-run", action="store_true", help="say what each setting would cost, and do nothing")
    ablate.add_argument("--json", action="store_true", help="print for machines")
    ablate.add_argument("--quiet", action="store_true", help="no progress")
    ablate.set_defaults(command=_ablate)


def _ablate(options: argparse.Namespace) -> int:
    from jobs.ablate import ablate, check_out, cost_table, dry_run, plan_ablation, tables_text
    from pipeline.config import load_config, override

    config = override(
        load_config(options.config),
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
    summary = ablate(plan, address=options.address, quiet=options.quiet)
    show_json(summary) if options.json else show_text(tables_text(summary, options.out))
    return int(summary["exit_status"])


def _print_summary(summary: dict[str, Any]) -> None:
    show(
        f"{summary['ok']} of {summary['videos']} videos made"
        + (f", {summary['failed']} quarantined (their reasons are in the manifest)" if summary["failed"] else "")
        + (f", {summary['already_done']} of them before" if summary["already_done"] else "")
        + f", in {summary['seconds']:.0f} s"
    )
    show(f"videos:   {summary['out']}/video/")
    for uri in summary["manifest"]:
        show(f"manifest: {uri}")
    if summary["report"]:
        show(f"page:     {summary['report']}")


def _add_status_and_report(commands: Any) -> None:
    for name, command, help_text in (
        ("status", _status, "how far a run is"),
        ("report", _report, "write the page of a run: report.html"),
    ):
        inspect = commands.add_parser(name, help=help_text)
        inspect.add_argument("out", metavar="OUT")
        inspect.add_argument("--json", action="store_true", help="print for machines")
        inspect.set_defaults(command=command)
    commands.choices["report"].add_argument("--to", metavar="FOLDER", help="where the page goes (default: OUT)")


def _status(options: argparse.Namespace) -> int:
    from jobs.inspect_run import status

    _show(status(options.out), options.json)
    return 0


def _report(options: argparse.Namespace) -> int:
    from jobs.generate import make_report
    from pipeline.storage import open_storage

    page = make_report(open_storage(options.out), options.to)
    _show({"page": str(page)}, options.json)
    return 0


def _add_extend(commands: Any) -> None:
    text = "a longer video of a row whose latents were kept ([run] keep_latents = true)"
    extend = commands.add_parser("extend", help=text, description=text)
    extend.add_argument("out", metavar="OUT")
    extend.add_argument("key", metavar="KEY", help="the row's, from the manifest; its beginning is enough")
    extend.add_argument("--num-frames", type=int, required=True, help="length of the longer video")
    extend.add_argument("--model", help="where it lies now; to be said where run.json names code or a download")
    extend.add_argument(
        "--trust", action="store_true", help="take all that run.json names: it is your own, or known to you"
    )
    extend.add_argument("--json", action="store_true", help="print the new row for machines")
    extend.add_argument("--quiet", action="store_true", help="no progress")
    extend.set_defaults(command=_extend)


def _extend(options: argparse.Namespace) -> int:
    from jobs.extend import extend_shown

    row = extend_shown(
        options.out,
        options.key,
        options.num_frames,
        model=options.model,
        trust=options.trust,
        quiet=options.quiet or options.json,
    )
    show_json(json.loads(row.to_json())) if options.json else show(f"{row.num_frames} frames: {row.uri}")
    return 0


def _add_convert(commands: Any) -> None:
    convert = commands.add_parser("convert", help="VideoCrafter2's model.ckpt to a folder that --model takes")
    convert.add_argument("checkpoint", metavar="CKPT", help="model.ckpt; no code in it is ever run")
    convert.add_argument("out", metavar="OUT_DIR", help="the folder to make; it must not exist")
    convert.add_argument("--tokenizer", help="CLIP's: a folder, or a hub name (default: openai/clip-vit-large-patch14)")
    convert.add_argument("--json", action="store_true", help="print for machines")
    convert.set_defaults(command=_convert)


def _convert(options: argparse.Namespace) -> int:
    from jobs.convert import convert

    _show(convert(options.checkpoint, options.out, options.tokenizer), options.json)
    return 0


def _add_plan(commands: Any) -> None:
    plan = commands.add_parser("plan", help="draw what a profile does, pass by pass")
    plan.add_argument("--profile", default="paper", metavar="NAME[:FIELD=VALUE,...]", help="default: paper")
    plan.add_argument("--against", metavar="NAME[:FIELD=VALUE,...]", help="another profile, drawn beside it")
    plan.add_argument("--model", default="sprites", help="as `miga generate` takes it (default: sprites)")
    plan.add_argument("--num-frames", type=int, help="length of the video (default: the model's)")
    plan.add_argument("--out", required=True, metavar="FILE", help="ends in .html or .svg; it is replaced")
    plan.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> int:
    from jobs.plan import draw

    texts = [options.profile, *([options.against] if options.against else [])]
    for drawing in draw(options.model, texts, options.num_frames, options.out):
        show(f"{drawing.title}: {drawing.num_latents} latents, {drawing.count.total} calls")
    show(f"drawn: {options.out}")
    return 0


def _add_simulate(commands: Any) -> None:
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
    simulate.add_argument("--family", choices=("wan", "videocrafter2"), default="wan", help="of the model")
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
    simulate.set_defaults(command=_simulate)


def _simulate(options: argparse.Namespace) -> int:
    from jobs.bench.table import format_table
    from jobs.simulate import (
        as_json,
        bench_ledger,
        check_out,
        make_scenarios,
        outcome_table,
        simulate_all,
        write_plots,
    )

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


def _add_profiles(commands: Any) -> None:
    profiles = commands.add_parser("profiles", help="the profiles side by side, for a model")
    profiles.add_argument("--model", default="sprites")
    profiles.add_argument("--json", action="store_true", help="print for machines")
    profiles.set_defaults(command=_profiles)


def _profiles(options: argparse.Namespace) -> int:
    from jobs.profiles import profile_table, profiles_as_dict
    from miga.backbones.registry import load_spec

    spec = load_spec(options.model)
    show_json(profiles_as_dict(spec), indent=2) if options.json else show_text(profile_table(spec))
    return 0


def _show(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(values)
        return
    width = max(len(name) for name in values)
    for name, value in values.items():
        if isinstance(value, dict):
            show(f"{name}:", *(f"  {key}: {item}" for key, item in value.items()))
        else:
            show(f"{name:<{width}}  {value:.4g}" if isinstance(value, float) else f"{name:<{width}}  {value}")


if __name__ == "__main__":
    raise SystemExit(main())
