"""What came of NarrLV's questions: as values, as a table, and what was not answered, row by row."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jobs.shared.options import write_out
from jobs.shared.table import format_table
from pipeline.evaluation.narrlv import SCORE_NAMES, NarrlvScores, mean_scores
from pipeline.evaluation.narrlv_run import VideoReport

_MOST_FAULTS: Final = 20


def result_values(reports: Sequence[VideoReport]) -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "suites": {
            suite: {
                "videos": len(each),
                **{name: {"mean": getattr(means, name), "videos": counts[name]} for name in SCORE_NAMES},
                "mean_of_the_three": _of_three(means),
                "void_questions": sum(report.num_void for report in each),
                "unusable_answers": sum(report.num_unusable for report in each),
                "missing_answers": sum(report.num_missing for report in each),
            }
            for suite, each in _by_suite(reports).items()
            for means, counts in [mean_scores([report.scores for report in each])]
        },
        "videos": [
            {
                "row": report.video.row.row,
                "id": report.video.row.id,
                "prompt": report.video.prompt.id,
                "suite": report.video.prompt.suite,
                **{name: getattr(report.scores, name) for name in SCORE_NAMES},
                "quality": report.quality,
                "questions": report.num_questions,
                "void_questions": report.num_void,
                "unusable_answers": report.num_unusable,
                "missing_answers": report.num_missing,
                "faults": dict(report.faults),
            }
            for report in reports
        ],
    }


def result_text(reports: Sequence[VideoReport]) -> str:
    """The table, and what was not answered, row by row."""
    rows = []
    for suite, each in _by_suite(reports).items():
        means, _ = mean_scores([report.scores for report in each])
        names = [name for name in SCORE_NAMES if getattr(means, name) is not None]
        row = {"prompts": suite, "videos": len(each)}
        rows.append(row | {_title(name): f"{getattr(means, name):.4f}" for name in names})
        if (together := _of_three(means)) is not None:
            rows[-1]["mean of the three"] = f"{together:.4f}"
        rows[-1]["void questions"] = f"{sum(r.num_void for r in each)} of {sum(r.num_questions for r in each)}"
    parts = [format_table(rows)]
    faulty = [report for report in reports if report.num_missing or report.num_unusable or report.faults]
    parts += [_fault_line(report) for report in faulty[:_MOST_FAULTS]]
    if len(faulty) > _MOST_FAULTS:
        parts.append(f"and {len(faulty) - _MOST_FAULTS} more rows")
    return "\n".join(parts)


def _fault_line(report: VideoReport) -> str:
    row = report.video.row
    text = f"row {row.row} ({row.id}): {report.num_void} of {report.num_questions} questions void, "
    text += f"{report.num_missing} samples not answered, {report.num_unusable} neither yes nor no"
    return text + (f"; last: {next(reversed(report.faults.values()))}" if report.faults else "")


def _title(name: str) -> str:
    return name.replace("_", " ")


def _by_suite(reports: Sequence[VideoReport]) -> dict[str, list[VideoReport]]:
    found: dict[str, list[VideoReport]] = defaultdict(list)
    for report in reports:
        found[report.video.prompt.suite].append(report)
    return found


def _of_three(means: NarrlvScores) -> float | None:
    """How the paper's single number is made of the three is not said; their mean is the natural guess."""
    three = [means.fidelity, means.coverage, means.coherence]
    return math.fsum(three) / 3 if None not in three else None  # type: ignore[arg-type]


def write_results(reports: Sequence[VideoReport], path: str) -> None:
    """Writes all values as JSON."""
    write_out(Path(path), json.dumps(result_values(reports), indent=1, ensure_ascii=False) + "\n")
