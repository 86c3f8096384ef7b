"""The commands for a run that is there: verify, repair, gc, retry-failed, export."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from pipeline.run_folder import read_run
from pipeline.storage import open_storage
from pipeline.terminal import say, show, show_json

_MAX_FAULTS_SHOWN = 50


def add_upkeep(commands: Any, show_summary: Callable[[dict[str, Any]], None]) -> None:
    """Adds the commands and their options.

    Args:
        commands: what argparse's `add_subparsers` gave.
        show_summary: prints the summary of a `generate`.
    """
    verify = _command(commands, "verify", _verify, "whether OUT holds what its run promises")
    verify.add_argument("--quick", action="store_true", help="read no video: leave its SHA-256 and frames unchecked")
    verify.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    verify.add_argument("--trust", action="store_true", help="read the prompt file wherever run.json says it lies")
    verify.add_argument("--quiet", action="store_true", help="no progress")

    repair = _command(commands, "repair", _repair, "put a run's records right from what is there; no video is made")
    repair.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    repair.add_argument("--trust", action="store_true", help="read the prompt file wherever run.json says it lies")
    repair.add_argument("--quick", action="store_true", help="believe videos whose size is right")
    repair.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    repair.add_argument(
        "--yes", action="store_true", help="do it without asking; it is needed where nobody can be asked"
    )
    repair.add_argument("--quiet", action="store_true", help="no progress")

    gc = _command(commands, "gc", _gc, "remove what no row of a run refers to")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    gc.add_argument("--sidecars", action="store_true", help="also those that a sealed, full shard has made needless")
    gc.add_argument("--verbose", action="store_true", help="print the path of everything that goes")

    retry = _command(commands, "retry-failed", _retry_failed, "make the rows again that a run gave up")
    retry.add_argument("--prompts", metavar="PATH", help="where the prompt file lies now, if it was moved")
    retry.add_argument("--model", help="the run's, where run.json names code or what would be downloaded")
    retry.add_argument(
        "--trust", action="store_true", help="take all that run.json names: it is your own, or known to you"
    )
    retry.add_argument("--num-actors", type=int, help="backbone actors (default: as the run)")
    retry.add_argument("--address", help="of a Ray cluster (default: RAY_ADDRESS, else a local Ray)")
    retry.add_argument("--quiet", action="store_true", help="no progress")
    retry.set_defaults(show_summary=show_summary)

    export = _command(commands, "export", _export, "the dataset as training code and dataset libraries take it")
    export.add_argument("dest", metavar="DEST", help="a new folder or s3://bucket/prefix; running again goes on")
    export.add_argument("--format", choices=("parquet", "webdataset", "hf", "csv"), default="parquet")
    export.add_argument(
        "--videos", choices=("copy", "link", "reference"), default="copy", help="hard links need the same disk"
    )
    export.add_argument("--status", choices=("ok", "failed", "all"), default="ok", help="of the rows (default: ok)")
    export.add_argument("--min-consistency", type=float, metavar="SCORE", help="least mean score of a video")
    export.add_argument("--quiet", action="store_true", help="no progress")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], help_text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    parser.add_argument("out", metavar="OUT", help="of the run")
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.set_defaults(command=run)
    return parser


def _say(is_quiet: bool) -> Callable[[str], None]:
    return (lambda text: None) if is_quiet else say


def _verify(options: argparse.Namespace) -> int:
    from pipeline.trust import prompts_of
    from pipeline.verify import verify

    storage = open_storage(options.out)
    recorded = read_run(storage).prompts.path
    found = verify(
        storage,
        prompts=prompts_of(recorded, storage.root, named=options.prompts, is_trusted=options.trust),
        quick=options.quick,
        say=_say(options.quiet or options.json),
    )
    values = found.to_dict()
    if options.json:
        show_json(values)
        return 0 if found.is_sound else 1
    for fault in found.faults[:_MAX_FAULTS_SHOWN]:
        show(f"{fault.where}: {fault.what}", f"  to do: {fault.remedy}")
    if len(found.faults) > _MAX_FAULTS_SHOWN:
        show(f"… and {len(found.faults) - _MAX_FAULTS_SHOWN} more; --json prints all")
    counts = {name: value for name, value in values.items() if isinstance(value, int) and not isinstance(value, bool)}
    show(", ".join(f"{value} {name.replace('_', ' ')}" for name, value in counts.items()))
    if found.counts["shards_of_another_place"]:
        show("some of manifest/ names where OUT was before it was moved: `miga repair OUT` writes the addresses anew")
    if found.is_sound:
        show("sound as far as looked at: no video was read" if found.is_quick else "sound")
    else:
        show(f"{len(found.faults)} faults")
    return 0 if found.is_sound else 1


def _gc(options: argparse.Namespace) -> int:
    from pipeline.collect_garbage import collect_garbage

    garbage = collect_garbage(
        open_storage(options.out),
        dry_run=options.dry_run,
        sidecars=options.sidecars,
        note=show if options.verbose and not options.json else lambda path: None,
        say=_say(options.json),
    )
    values = garbage.to_dict(options.dry_run)
    if options.json:
        show_json(values)
        return 0
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(garbage.files.items()))
    verb = "would go" if options.dry_run else "removed"
    show(f"{verb}: {kinds or 'nothing'} ({garbage.bytes:,} bytes)")
    return 0


def _repair(options: argparse.Namespace) -> int:
    from pipeline.repair import Repairs, repair

    can_ask = sys.stdin.isatty() and not options.json
    is_dry = options.dry_run or not (options.yes or can_ask)

    def agreed(repairs: Repairs) -> bool:
        if options.yes:
            return True
        _print_steps(repairs)
        return input("do this? [y/N] ").strip().lower() in ("y", "yes")

    storage = open_storage(options.out)
    repairs = repair(
        storage,
        prompts=options.prompts or (read_run(storage).prompts.path if options.trust else None),
        quick=options.quick,
        dry_run=is_dry,
        agreed=agreed,
        say=_say(options.quiet or options.json),
    )
    is_right = not repairs.left and (repairs.is_done or not repairs.steps)
    if options.json:
        show_json(repairs.to_dict())
        return 0 if is_right else 1
    if options.yes or is_dry:
        _print_steps(repairs)
    for text in repairs.left:
        show(f"left: {text}")
    if not repairs.steps:
        show("there is nothing to do" + (" that could be done" if repairs.left else ""))
    elif repairs.is_done:
        show("done; a copy of what was replaced is in aside/")
        if repairs.to_make:
            show(f"{len(repairs.to_make)} rows are to be made anew: run the same `miga generate` command again")
    else:
        show("nothing was changed" + ("" if options.dry_run or can_ask else ": --yes does it"))
    return 0 if is_right else 1


def _print_steps(repairs: Any) -> None:
    for text in repairs.steps:
        show(text)


def _retry_failed(options: argparse.Namespace) -> int:
    from jobs.retry_failed import retry_failed

    summary = retry_failed(
        options.out,
        prompts=options.prompts,
        model=options.model,
        trust=options.trust,
        num_actors=options.num_actors,
        address=options.address,
        quiet=options.quiet,
    )
    if options.json:
        show_json(summary)
    else:
        options.show_summary(summary)
    return int(summary["exit_status"])


def _export(options: argparse.Namespace) -> int:
    from pipeline.export import ExportOptions, export

    chosen = ExportOptions(
        format=options.format, videos=options.videos, status=options.status, min_consistency=options.min_consistency
    )
    summary = export(open_storage(options.out), open_storage(options.dest), chosen, _say(options.quiet or options.json))
    if options.json:
        show_json(summary)
        return 0
    left = {name.removeprefix("left_out_"): n for name, n in summary.items() if name.startswith("left_out_") and n}
    show(f"{summary['rows']} rows, {summary['bytes']:,} bytes of video")
    if left:
        show("left out: " + ", ".join(f"{count} {why}" for why, count in left.items()))
    for file in summary["files"]:
        show(file)
    return 0
