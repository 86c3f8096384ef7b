"""What the page's script knows of a row: plain JSON values only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any, Final

from miga.outside_data import OutsideDataError, parse_json
from pipeline.report.gate import gate_of
from pipeline.report.links import Links
from pipeline.report.totals import STAGES, video_s
from pipeline.report.values import items, number, plain

_SCALARS: Final = (
    *("row", "id", "key", "negative_prompt", "profile", "num_frames", "num_latents", "fps", "height", "width"),
    *("bytes", "sha256", "network_calls", "queue_wait_s", "peak_memory_bytes", "device", "node", "attempt"),
    *("error_type", "created_at"),
)
_LISTS: Final = ("consistency_latents", "searched_at", "corrected_at")
_TIMES: Final = tuple(f"{stage}_s" for stage in STAGES)
_HINT: Final = re.compile(r"\n\s*hint:\s*")
_REMEDIES: Final = {
    "BadRowError": "Correct this row in a prompt file of its own and run that into a new OUT.",
    "NonFiniteError": "Try another seed or precision for this row, then run `miga retry-failed OUT`.",
}
_OTHER_REMEDY: Final = "Run the same command with --retry-failed to make this row once more."


def card(row: Mapping[str, Any], position: int, links: Links) -> dict[str, Any]:
    """All that the page shows of a row.

    Args:
        row: of the manifest; any column may be missing or null.
        position: counts the rows of the page, and stands in for a missing row number.
        links: of the page.
    """
    status = "ok" if row.get("status") == "ok" else "failed"
    uri = str(row.get("uri") or "")
    link = links.to(uri)
    values = {column: plain(row.get(column)) for column in _SCALARS}
    values |= {column: None if row.get(column) is None else _whole(row[column]) for column in _LISTS}
    scores, final = _rounded(items(row, "consistency")), _rounded(items(row, "final_consistency"))
    error, remedy = _error_and_remedy(row) if status == "failed" else ("", "")
    return values | {
        "row": position if values["row"] is None else values["row"],
        "status": status,
        "prompts": prompts_of(row),
        "spans": prompt_spans(row),
        "seed": None if row.get("seed") is None else str(row["seed"]),
        "video_s": round(video_s(row), 4),
        "timings": [round(number(row, time), 4) for time in _TIMES],
        "consistency": scores,
        "final_consistency": final,
        "final_latents": _final_latents(row, len(final)),
        "mean_consistency": mean_score(final or scores),
        "scores": _scores(row),
        "score": plain(row.get("score")),
        "gate": gate_of(row),
        "uri": uri,
        "href": link.href,
        "playable": link.playable and status == "ok",
        "why": link.why,
        "error": error,
        "remedy": remedy,
        "metadata": _metadata(row.get("metadata")),
    }


def prompts_of(row: Mapping[str, Any]) -> list[str]:
    """The prompts of a row, one or several in turn."""
    value = row.get("prompts")
    return [value] if isinstance(value, str) else [str(prompt) for prompt in items(row, "prompts")]


def prompt_spans(row: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """For each prompt of several in turn: its first latent and the one after its last, and so for frames.

    Latents are shared out evenly, as `PromptTrack.spread` does, unless the row says where prompts begin; a latent but
    the first makes `(num_frames - 1) / (num_latents - 1)` frames, the first makes one (a causal video VAE).
    """
    prompts, latents, frames = prompts_of(row), row.get("num_latents") or 0, row.get("num_frames") or 0
    if len(prompts) < 2 or not latents:
        return []
    per_latent = (frames - 1) / (latents - 1) if latents > 1 else 1
    if given := _first_frames(row, len(prompts)):
        bounds, at = [*(min(math.ceil(frame / per_latent), latents) for frame in given), latents], [*given, frames]
        return [(*bounds[index : index + 2], *at[index : index + 2]) for index in range(len(prompts))]  # type: ignore[misc]
    each = row.get("latents_per_prompt") or max(Fraction(1), Fraction(latents, len(prompts)))
    bounds = [min(math.ceil(index * each), latents) for index in range(len(prompts))] + [latents]
    at = [round(1 + (bound - 1) * per_latent) if bound else 0 for bound in bounds]
    return [(*bounds[index : index + 2], *at[index : index + 2]) for index in range(len(prompts))]  # type: ignore[misc]


def _first_frames(row: Mapping[str, Any], num_prompts: int) -> list[int]:
    """Frames at which prompts begin, where the row says so."""
    frames, times, fps = items(row, "prompt_frames"), items(row, "prompt_times"), row.get("fps") or 0
    found = [round(each) for each in frames] or [round(each * fps) for each in times]
    return found if len(found) == num_prompts else []


def _final_latents(row: Mapping[str, Any], num_chunks: int) -> list[float]:
    """Where each chunk of `final_consistency` stands: its given first latent, or its middle when evenly spread."""
    given = items(row, "final_consistency_latents")
    if len(given) == num_chunks:
        return [float(latent) for latent in given]
    latents = row.get("num_latents") or num_chunks
    return [round((index + 0.5) * latents / num_chunks, 2) for index in range(num_chunks)]


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Of an evaluation: measure → value."""
    given = row.get("scores") or {}
    return {str(name): round(value, 5) for name, value in given.items() if math.isfinite(value)}


def _whole(values: Iterable[Any]) -> list[Any]:
    """Positions as they are; anything else that stands there as JSON has it."""
    kept = list(values)
    return kept if all(type(value) is int and 0 <= value < 2**31 for value in kept) else [plain(v) for v in kept]


def _rounded(scores: list[Any]) -> list[float | None]:
    try:
        if math.isfinite(sum(scores)):  # all of them are
            return [round(score, 5) for score in scores]
    except TypeError:  # one is null
        pass
    return [round(float(score), 5) if score is not None and math.isfinite(score) else None for score in scores]


def mean_score(scores: Iterable[float | None]) -> float | None:
    """The mean of those that are numbers; None if none is."""
    finite = [score for score in scores if score is not None and math.isfinite(score)]
    return round(sum(finite) / len(finite), 6) if finite else None


def _error_and_remedy(row: Mapping[str, Any]) -> tuple[str, str]:
    """The message of a failed row and what to do; the errors of this project end in a hint of their own."""
    message, *hints = _HINT.split(str(row.get("error") or "No reason was recorded."), maxsplit=1)
    remedy = row.get("hint") or (hints[0] if hints else "")
    return message.strip(), str(remedy).strip() or _REMEDIES.get(str(row.get("error_type")), _OTHER_REMEDY)


def _metadata(value: Any) -> str:
    """The columns carried along, as indented JSON; empty where there are none."""
    if value == "{}":
        return ""
    if isinstance(value, str):
        try:
            value = parse_json(value, integers=None)
        except OutsideDataError:
            return str(value)
    return json.dumps(plain(value), indent=1, ensure_ascii=False) if value else ""
