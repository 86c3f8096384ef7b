"""`miga narrlv`: whether videos tell all parts of their prompts, by NarrLV's questions and a judge."""

from __future__ import annotations

import argparse
import os
import threading
from typing import Any, Final

from jobs.commands.common import say_unless
from pipeline.terminal import show, show_json, show_text

GROUP: Final = "measure"
EXAMPLES: Final = (
    "miga narrlv out/ prompt_suit_v4_scene_attribute_tna_2.json --judge http://localhost:8000/v1 "
    "--judge-model Qwen/Qwen2.5-VL-72B-Instruct --dry-run",
    "miga narrlv out/ prompt_suit_v4_*_tna_[234].json --judge Qwen/Qwen2.5-VL-7B-Instruct",
    "miga narrlv out/ prompt_suit_v4_scene_attribute_tna_2.json --report",
)
ANSWERS: Final = "narrlv.jsonl"
_MOST_BETWEEN: Final = 500


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "ask a judge whether videos tell all parts of their prompts (NarrLV)"
    narrlv = commands.add_parser("narrlv", help=text, description=text)
    narrlv.add_argument("out", metavar="OUT", help="of the run")
    narrlv.add_argument("files", metavar="FILE", nargs="+", help="NarrLV's prompt files that the run was made of")
    narrlv.add_argument(
        "--judge",
        metavar="URL_OR_MODEL",
        help="an OpenAI-compatible endpoint, or a folder or hub name of a vision-language model of transformers",
    )
    narrlv.add_argument("--judge-model", metavar="NAME", help="the model's name at the endpoint")
    narrlv.add_argument(
        "--key-from", metavar="VARIABLE", default="OPENAI_API_KEY",
        help="environment variable that holds the endpoint's key (default: OPENAI_API_KEY)",
    )  # fmt: skip
    narrlv.add_argument("--answers", metavar="FILE.jsonl", default=ANSWERS,
                        help=f"where answers are; none is asked for twice (default: {ANSWERS})")  # fmt: skip
    narrlv.add_argument("--samples", type=int, default=5, help="answers to each question (default: 5)")
    narrlv.add_argument("--at-once", type=int, default=4, metavar="N", help="calls at the same time (default: 4)")
    narrlv.add_argument("--per-minute", type=float, metavar="N", help="calls in a minute (default: no limit)")
    narrlv.add_argument("--timeout", type=float, default=120.0, metavar="S", help="of a call (default: 120)")
    narrlv.add_argument("--tries", type=int, default=5, metavar="N", help="calls for one answer (default: 5)")
    narrlv.add_argument(
        "--repetition-penalty", type=float, default=1.05, metavar="X",
        help="1 leaves it out, for services that do not know it (default: 1.05)",
    )  # fmt: skip
    narrlv.add_argument(
        "--quality", metavar="FILE_OR_FUNCTION",
        help="quality of first frames, 1 to 5: JSON lines of row and quality, or package.module:function",
    )  # fmt: skip
    narrlv.add_argument("--price", type=float, metavar="X", help="of a million tokens, for the cost that is shown")
    narrlv.add_argument("--results", metavar="FILE.json", help="all scores go there, video by video")
    narrlv.add_argument("--dry-run", action="store_true", help="show what it would cost, and ask nothing")
    narrlv.add_argument("--report", action="store_true", help="score the answers that are there, and ask nothing")
    narrlv.add_argument("--json", action="store_true", help="print for machines")
    narrlv.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.narrlv.judges import judge_name, no_judge, open_judge
    from jobs.narrlv.make import ask_narrlv, cost_text, known_cost, plan_narrlv, report_narrlv
    from jobs.narrlv.quality import quality_from
    from jobs.narrlv.results import result_text, result_values, write_results
    from miga.errors import UsageError

    for name, least in (("samples", 1), ("at_once", 1), ("tries", 1), ("timeout", 0.001), ("per_minute", 0.001)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise UsageError(f"--{name.replace('_', '-')} {value} cannot be", f"give {least} or more")
    if options.judge is None and not options.report:
        raise UsageError("--judge names who answers, and is missing", "an endpoint or a model; or --report")
    quality = None if options.quality is None else quality_from(options.quality)
    say_it = say_unless(options.json)
    task = plan_narrlv(
        options.out,
        options.files,
        options.answers,
        judge_name(options.judge, options.judge_model),
        options.samples,
        say_it,
    )
    if options.report:
        reports = report_narrlv(task, quality)
    else:
        cost = known_cost(task)
        if options.dry_run:
            if options.json:
                show_json(vars(cost))
            else:
                show(cost_text(cost, options.price, options.per_minute))
            return 0
        say_it(cost_text(cost, options.price, options.per_minute))
        judge = (
            open_judge(
                options.judge,
                options.judge_model,
                key=os.environ.get(options.key_from, ""),
                at_once=options.at_once,
                per_minute=options.per_minute,
                timeout_s=options.timeout,
                tries=options.tries,
                repetition_penalty=options.repetition_penalty,
            )
            if cost.num_calls
            else no_judge()
        )
        reports = ask_narrlv(task, judge, quality, _Progress(cost.num_calls, options.json), say_it)
    if options.results is not None:
        write_results(reports, options.results)
    if options.json:
        show_json(result_values(reports))
    else:
        show_text(result_text(reports))
    return 0


class _Progress:
    """Says after every so many calls how many have ended."""

    def __init__(self, total: int, is_quiet: bool) -> None:
        self._total, self._say = total, say_unless(is_quiet)
        self._step = max(1, min(_MOST_BETWEEN, total // 20))
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._done += 1
            done = self._done
        if done % self._step == 0 or done == self._total:
            self._say(f"{done:,} of {self._total:,} calls")
