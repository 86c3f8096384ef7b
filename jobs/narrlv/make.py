"""NarrLV's questions about a run: what they cost, put to a judge, and the scores."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from miga.errors import InputError, MigaError, UsageError
from pipeline.evaluation.line_log import LineLog, read_lines
from pipeline.evaluation.narrlv import NarrlvPrompt, read_prompts
from pipeline.evaluation.narrlv_run import (
    AskedVideo,
    Asker,
    Cost,
    Known,
    Quality,
    VideoReport,
    cost_of,
    header_line,
    match_videos,
    read_known,
    report_of,
    seen_frames,
)
from pipeline.evaluation.vision_judge import VisionJudge
from pipeline.figures import count
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import read_run
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

_FACTORY: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_MOST_SAID: Final = 10
_MOST_FAULTS: Final = 20


@dataclass(frozen=True, kw_only=True)
class NarrlvTask:
    """What is asked about which videos.

    Attributes:
        storage: of the run.
        videos: that were made of the prompts.
        path: of the file of answers.
        header: its first line.
    """

    storage: Storage
    videos: list[AskedVideo]
    path: str
    header: Mapping[str, Any]


def plan_narrlv(
    out: str, files: Sequence[str], path: str, judge: str, samples: int, say: Callable[[str], None]
) -> NarrlvTask:
    """Finds the videos of a run that were made of these prompt files.

    Raises:
        InputError: if a file is no prompt file of NarrLV.
        UsageError: if the run has no video of any of their prompts.
        OutputError: if there is no run.
    """
    prompts: list[NarrlvPrompt] = [prompt for file in files for prompt in read_prompts(file)]
    storage = open_storage(out)
    record = read_run(storage)
    videos, others = match_videos(Manifest(storage, record.settings.run.prompts_per_shard).read_rows(), prompts)
    for text in others[:_MOST_SAID]:
        say(text)
    if len(others) > _MOST_SAID:
        say(f"and {count(len(others) - _MOST_SAID)} more rows")
    if not videos:
        raise UsageError(
            f"{out} has no video of a prompt in these files",
            "make a prompt file of them (miga prompts narrlv FILE --out prompts.jsonl), then the run of that",
        )
    return NarrlvTask(storage=storage, videos=videos, path=path, header=header_line(judge, samples))


def known_cost(task: NarrlvTask) -> Cost:
    """What is still to be asked, without asking or writing anything."""
    known = read_known(read_lines(task.path).found, task.videos, task.header, task.path)
    return cost_of(task.videos, known, task.header["samples"])


def cost_text(cost: Cost, price: float | None, per_minute: float | None) -> str:
    """What is to be asked, for people.

    Args:
        cost: that.
        price: of a million tokens; None: not said.
        per_minute: calls that are begun in a minute.
    """
    text = (
        f"{count(cost.num_calls)} calls about {count(cost.num_questions)} questions on {count(cost.num_videos)} videos "
        f"with {count(cost.num_frames)} frames, about {count(cost.num_tokens)} tokens"
    )
    if price is not None:
        text += f", {price * cost.num_tokens / 1e6:,.2f} at {price:g} for a million"
    if per_minute:
        text += f"; {math.ceil(cost.num_calls / per_minute):,} min or more"
    return text + (f"; {count(cost.num_known)} answers are there already" if cost.num_known else "")


def ask_narrlv(
    task: NarrlvTask,
    judge: VisionJudge,
    quality: Quality | None,
    on_call: Callable[[], None],
    say: Callable[[str], None],
) -> list[VideoReport]:
    """Asks all that is open, and says what came of each video.

    Raises:
        JudgeRefusedError: if the judge answers nothing any more; what was answered is kept.
        OutputError: if an answer cannot be written.
    """
    samples = task.header["samples"]
    with LineLog(task.path) as log:
        for fault in log.lines.faults:
            say(f"{task.path}: {fault}")
        known = read_known(log.lines.found, task.videos, task.header, task.path)
        if not log.lines.found:
            log.append(task.header)
        Asker(task.storage, judge, log, known, samples, on_call).ask_all(task.videos)
    return [_report(task, video, known, quality) for video in task.videos]


def report_narrlv(task: NarrlvTask, quality: Quality | None) -> list[VideoReport]:
    """What the answers say that are there, without asking.

    Raises:
        InputError: if there are none.
    """
    lines = read_lines(task.path)
    if not lines.found:
        raise InputError(f"{task.path} holds no answers", "let a judge answer first: --judge")
    header = {**task.header, "judge": lines.found[0].values.get("judge")}
    known = read_known(lines.found, task.videos, header, task.path)
    return [_report(task, video, known, quality) for video in task.videos]


def _report(task: NarrlvTask, video: AskedVideo, known: Known, quality: Quality | None) -> VideoReport:
    value, faults = None, {}
    if quality is not None:
        try:
            value = quality(video.row, seen_frames(task.storage, video)[0])
        except MigaError as error:
            faults = {"quality": error.message}
    report = report_of(video, known, value, task.header["samples"])
    report.faults.update(faults)  # type: ignore[attr-defined]
    return report
