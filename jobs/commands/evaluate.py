"""`miga evaluate`: how good the videos of a run are, or those of a folder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobs.commands.common import add_failed_rows_ok, failure_line, say_unless
from miga.errors import UsageError
from pipeline.config import WorkersConfig
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = (
    "miga evaluate out/                                     # what needs no weights",
    "miga evaluate out/ --metrics vbench                    # VBench's seven quality dimensions",
    "miga evaluate videos/ --prompts prompts.jsonl --metrics imaging_quality --vbench-json results.json",
)
_STILL: Final = "a still image scores about 100 in all four parts of O.S.: look at dynamic degree beside it"


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "how good videos are: VBench, VBench-Long, drift"
    parser = commands.add_parser("evaluate", help=text, description=text)
    parser.add_argument("out", metavar="OUT", nargs="?", help="of a run, or a folder of MP4s; running again goes on")
    parser.add_argument(
        "--metrics",
        default="fast",
        help="names with commas between them; fast: what needs no weights; vbench: the seven quality dimensions",
    )
    parser.add_argument("--list", action="store_true", help="list metrics, the weights they need, and where those lie")
    parser.add_argument("--prompts", metavar="PATH", help="of a folder of MP4s: the prompt file that they were made of")
    parser.add_argument(
        "--weights",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="where weights lie: a file, a folder, or a hub name; may be repeated (default: in $MIGA_WEIGHTS)",
    )
    parser.add_argument("--limit", type=int, help="only the first so many videos")
    parser.add_argument("--num-actors", type=int, help="workers (default: one per GPU, else two)")
    parser.add_argument("--address", help="of a Ray cluster (default: the one this is started in, else a local one)")
    parser.add_argument(
        "--stalled-after",
        metavar="SECONDS",
        type=float,
        default=WorkersConfig().stalled_after_s,
        help="replace a worker whose video has come no further for so long (default: %(default)g)",
    )
    parser.add_argument("--retry-failed", action="store_true", help="try videos again that could not be evaluated")
    parser.add_argument("--vbench-json", metavar="FILE", help="write VBench's own result file too")
    parser.add_argument(
        "--semantic", metavar="FILE", help="a result file of VBench's: its semantic dimensions, for VBench's total"
    )
    add_failed_rows_ok(parser)
    parser.add_argument("--json", action="store_true", help="print for machines")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.evaluation.listing import listing
    from jobs.evaluation.make import Wanted, evaluate

    if options.list:
        found = listing(_places(options.weights))
        show_json(found) if options.json else show_text(_listing_text(found))
        return 0
    if options.out is None:
        raise UsageError("no OUT was given", "name a run or a folder of MP4s, or give --list")
    for name in ("limit", "num_actors"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value} is less than 1", "give 1 or more")
    if not options.stalled_after > 0:
        raise UsageError(f"--stalled-after {options.stalled_after:g} is not above 0", "give seconds, such as 1800")
    wanted = Wanted(
        out=options.out,
        metrics=options.metrics,
        prompts=options.prompts,
        weights=_places(options.weights),
        limit=options.limit,
        num_actors=options.num_actors,
        retry_failed=options.retry_failed,
        stalled_after_s=options.stalled_after,
        vbench_json=options.vbench_json,
        semantic=options.semantic,
    )
    say = say_unless(options.quiet or options.json)
    summary = evaluate(wanted, say, address=options.address, failed_rows_ok=options.failed_rows_ok)
    show_json(summary) if options.json else show_evaluation(summary)
    return int(summary["exit_status"])


def _places(options: Sequence[str]) -> dict[str, str]:
    places: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--weights {option!r} is not NAME=PATH", "such as --weights raft=raft-things.pth")
        places[name] = path
    return places


def _listing_text(found: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for metric in found:
        lines.append(f"{metric['metric']}: {metric['about']}")
        for weights in metric["weights"]:
            place = weights["path"] or f"missing; fetch it with: {weights['command']}"
            lines += [f"  {weights['name']}: {weights['source']}, {weights['licence']}", f"    {place}"]
    return "\n".join(lines)


def show_evaluation(summary: Mapping[str, Any]) -> None:
    """Prints what `evaluate` found, for people."""
    from jobs.shared.table import format_table

    show(
        f"{summary['videos'] - summary['failed']} of {summary['videos']} videos evaluated"
        + (f", {summary['evaluated_now']} of them now" if summary["evaluated_now"] != summary["videos"] else "")
        + (f"; {summary['without_video']} rows of the run have no video" if summary["without_video"] else "")
        + f", in {summary['seconds']:.0f} s"
    )
    show(*(f"  {failure_line(failure)}" for failure in summary["failures"]))
    show("", *format_table([_line(figure) for figure in summary["measures"]]).split("\n"), "")
    show(
        "mean: over videos, with 95 % by bootstrap; VBench: a data set's, as it has that; clips, videos: VBench-Long's",
        "mean over all clips (its own), and over videos of theirs; end-start: the last 15 % less the first; contrast:",
        "the same without its sign; drift error: video drift error over the sum of its weights",
    )
    for name, value in (("O.S.", "overall_score"), ("O.S. over VBench-Long's clips", "overall_score_long")):
        if summary[value] is not None:
            moves = summary["dynamic_degree_long" if value.endswith("long") else "dynamic_degree"]
            beside = "not measured (--metrics dynamic_degree)" if moves is None else f"{100 * moves:.1f}"
            show(f"{name}: {100 * summary[value]:.2f}; dynamic degree: {beside}", f"  {_STILL}")
    for name in ("quality", "semantic", "total"):
        if summary[name] is not None:
            show(f"VBench's {name} score: {100 * summary[name]:.2f}")
    if summary["non_commercial"]:
        show(f"made with weights that forbid commercial use: {', '.join(summary['non_commercial'])}")
    show(f"results: {summary['results']}")
    if summary["page"]:
        show(f"page, the worst first: {summary['page']}")


def _line(figure: Mapping[str, Any]) -> dict[str, Any]:
    low, high = figure["interval"]
    name = figure["measure"] + (" (non-commercial)" if figure["is_non_commercial"] else "")

    def shown(value: float | None, digits: int = 4) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return {
        "metric": name,
        "mean": "-" if not figure["count"] else f"{figure['mean']:.4f} [{low:.4f}, {high:.4f}]",
        "VBench": "-" if not figure["count"] else f"{figure['vbench']:.4f}",
        "clips": shown(figure["over_clips"]),
        "videos": shown(figure["over_videos"]),
        "end-start": shown(figure["change"]),
        "contrast": shown(figure["contrast"]),
        "drift error": shown(figure["drift_error"]),
        "ends' cosine": shown(figure["ends_cosine"]),
        "have it": f"{figure['count']} of {figure['count'] + figure['missing']}",
    }
