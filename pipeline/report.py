"""One HTML page about a run, put beside its videos: opened with a double click, it asks no network and no server.

`render_report` is pure: manifest rows and the run's record in, the page's text out. What is said of the whole run is
written by the template; the cards are drawn by the page's own script, a batch at a time, from JSON embedded in the
page, so that a thousand videos open as fast as ten. `write_report` puts the page in place.

Links are relative wherever a video lies under the run's folder, so the folder can be moved or sent as it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from miga.outside_data import OutsideDataError, parse_json
from pipeline.storage.local import write_local

REPORT_NAME: Final = "report.html"

STAGES: Final = ("encode_text", "denoise", "decode", "encode_video", "upload")
"""The stages of a row that take a worker's time, in order; the manifest holds `<stage>_s` of each."""

_ASKED: Final = (
    "row",
    "id",
    "key",
    "negative_prompt",
    "profile",
    "num_frames",
    "num_latents",
    "fps",
    "height",
    "width",
)
_MADE: Final = ("bytes", "sha256", "network_calls", "queue_wait_s", "peak_memory_bytes", "device", "node", "attempt")
_SEEN: Final = ("consistency_latents", "searched_at", "corrected_at", "error_type", "created_at")
_LINKABLE: Final = frozenset({"s3", "gs", "https", "http"})
_MAX_EXACT_INT: Final = 2**53 - 1  # JavaScript's numbers are doubles: a 64-bit seed must travel as text
_HINT: Final = re.compile(r"\n\s*hint:\s*")
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_REMEDIES: Final = {
    "BadRowError": "Correct this row in a prompt file of its own and run that into a new OUT.",
    "NonFiniteError": "Try another seed or precision for this row, then run `miga retry-failed OUT`.",
}
_OTHER_REMEDY: Final = "Run the same command with --retry-failed to make this row once more."


def write_report(
    rows: Iterable[Mapping[str, Any]], run: Mapping[str, Any], folder: str | Path, *, out_uri: str | None = None
) -> Path:
    """Render the page and put it in place in one step, so that a reader never sees half of it.

    Args:
        rows: as for `render_report`.
        run: as for `render_report`.
        folder: local folder that is to hold the page: the run's own, or any folder for a run in object storage.
        out_uri: where the run is, if that is not `folder`.

    Returns:
        The path of the page.

    Raises:
        OutputError: if it cannot be written.
    """
    path = Path(folder) / REPORT_NAME
    page = render_report(rows, run, out_uri=os.fspath(folder) if out_uri is None else out_uri)
    with write_local(path) as file:
        file.write(page.encode())
    return path


def render_report(rows: Iterable[Mapping[str, Any]], run: Mapping[str, Any], *, out_uri: str) -> str:
    """The page, complete in itself but for the videos.

    Args:
        rows: manifest rows. Any column may be missing or null; besides the manifest's there may be `hint`,
            `latents_per_prompt` and `final_consistency_latents` (first latent of each chunk; evenly spread without).
        run: the run's record (`run.json`), shown whole.
        out_uri: folder or `s3://bucket/prefix` of the run; the page is meant to lie in it.
    """
    rows = list(rows)
    cards = [_card(row, position, out_uri) for position, row in enumerate(rows)]
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    style, script = (_source(environment, name) for name in ("report.css", "report.js"))
    return environment.get_template(REPORT_NAME).render(
        title=_title(run),
        facts=[(name, visible(run[name])) for name in _HEADLINE if run.get(name)],
        tiles=_tiles(totals(rows)),
        settings=[(name, visible(value)) for name, value in _flatten(_plain(run))],
        cards=cards,
        data=embedded_json({"cards": cards, "stages": STAGES}),
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        visible=visible,
    )


_HEADLINE: Final = ("model", "model_revision", "revision", "profile", "created_at", "version")


def _title(run: Mapping[str, Any]) -> str:
    prompts = run.get("prompts") or ""
    name = PurePosixPath(str(prompts.get("path", "") if isinstance(prompts, Mapping) else prompts)).name
    return visible(f"Videos of {name}" if name else "Videos of this run")


# --- totals -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Sums over a run. Seconds are a worker's own, so two workers for an hour count two hours.

    Attributes:
        video_s: seconds of finished video.
        work_s: seconds of all stages over the finished videos.
        num_evaluations: latent groups judged (`n_all` of the paper).
        num_searches: those that were searched (`n_eval`).
        num_corrections: those that were replaced (`n_corr`).
        on_gpu: whether every finished video names a device that is no CPU.
    """

    num_rows: int
    num_ok: int
    num_frames: int
    video_s: float
    network_calls: int
    denoise_s: float
    work_s: float
    bytes: int
    num_evaluations: int
    num_searches: int
    num_corrections: int
    on_gpu: bool

    @property
    def num_failed(self) -> int:
        """Rows that were quarantined."""
        return self.num_rows - self.num_ok

    @property
    def correction_rate(self) -> float | None:
        """R_corr: corrections per evaluation. Source: MIGA section 4.3."""
        return self.num_corrections / self.num_evaluations if self.num_evaluations else None

    @property
    def success_rate(self) -> float | None:
        """R_succ: corrections per search. Source: MIGA section 4.3."""
        return self.num_corrections / self.num_searches if self.num_searches else None


def totals(rows: Sequence[Mapping[str, Any]]) -> Totals:
    """Sum the manifest's figures over the rows that are ok; failed rows are counted only."""
    done = [row for row in rows if row.get("status") == "ok"]
    return Totals(
        num_rows=len(rows),
        num_ok=len(done),
        num_frames=int(sum(_number(row, "num_frames") for row in done)),
        video_s=sum(_video_s(row) for row in done),
        network_calls=int(sum(_number(row, "network_calls") for row in done)),
        denoise_s=sum(_number(row, "denoise_s") for row in done),
        work_s=sum(_number(row, f"{stage}_s") for row in done for stage in STAGES),
        bytes=int(sum(_number(row, "bytes") for row in done)),
        num_evaluations=sum(_count(row, "num_evaluations", "consistency") for row in done),
        num_searches=sum(_count(row, "num_searches", "searched_at") for row in done),
        num_corrections=sum(_count(row, "num_corrections", "corrected_at") for row in done),
        on_gpu=bool(done) and all(not str(row.get("device") or "cpu").lower().startswith("cpu") for row in done),
    )


def _number(row: Mapping[str, Any], column: str) -> float:
    value = row.get(column)
    return value if value is not None and math.isfinite(value) else 0.0


def _count(row: Mapping[str, Any], column: str, positions: str) -> int:
    value = row.get(column)
    return len(_list(row, positions)) if value is None else int(value)


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
    value = row.get(column)
    return [] if value is None else list(value)


def _prompts(row: Mapping[str, Any]) -> list[str]:
    value = row.get("prompts")
    return [value] if isinstance(value, str) else [str(prompt) for prompt in _list(row, "prompts")]


def _video_s(row: Mapping[str, Any]) -> float:
    """Seconds of the video: `duration_s`, or what frames and rate make where an older manifest lacks it."""
    given, fps = _number(row, "duration_s"), _number(row, "fps")
    return given or (_number(row, "num_frames") / fps if fps else 0.0)


class _Tile(NamedTuple):
    label: str
    explanation: str
    value: str
    unit: str = ""
    note: str = ""
    alarm: bool = False


def _tiles(t: Totals) -> list[_Tile]:
    failed = f"{t.num_failed:,} failed of {t.num_rows:,}"
    searches = f"{t.num_searches:,} searches in {t.num_evaluations:,} evaluations"
    return [
        _Tile("Videos", "Rows that became a video", f"{t.num_ok:,}", "ok", failed, alarm=t.num_failed > 0),
        _Tile("Video", "Playing time of all videos", *_hours(t.video_s), f"{t.num_frames:,} frames"),
        *_cost_tiles(t),
        _Tile(
            "Corrections",
            "Self-reflection: latents judged, searched where consistency fell, replaced where a candidate was better",
            f"{t.num_corrections:,}",
            note=searches if t.num_evaluations else "no self-reflection",
        ),
        _Tile(
            "R_corr",
            "Corrections per evaluation; R_succ: corrections per search",
            _percent(t.correction_rate),
            note=f"R_succ {_percent(t.success_rate)}",
        ),
    ]


def _cost_tiles(t: Totals) -> list[_Tile]:
    """What the videos took: dashes where there are none to share it out over."""
    num, unit = max(t.num_ok, 1), "GPU-hours" if t.on_gpu else "worker-hours"
    per_call = f"{t.denoise_s / t.network_calls:.3g} s a call" if t.network_calls else ""
    share = f"{t.denoise_s / t.work_s:.0%} of it denoising" if t.work_s else ""
    calls = f"{t.network_calls:,}"
    return [
        _Tile(
            "Network calls", "Windows; a guided call counts once", calls, "", f"{t.network_calls / num:,.0f} a video"
        ),
        _Tile("Denoising", "Summed over all workers", _significant(t.denoise_s / 3600), unit, per_call),
        _Tile("A video takes", "Mean over all stages, without waiting", *_duration(t.work_s / num), share),
        _Tile("Size", "MP4 files", *_bytes(t.bytes), " ".join(_bytes(t.bytes / num)) + " a video"),
    ]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _significant(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _duration(seconds: float) -> tuple[str, str]:
    return (f"{seconds:.3g}", "s") if seconds < 1000 else (f"{seconds:,.0f}", "s")


def _hours(seconds: float) -> tuple[str, str]:
    if seconds >= 3600:
        return f"{seconds / 3600:,.1f}", "hours"
    return (f"{seconds / 60:.1f}", "minutes") if seconds >= 60 else (f"{seconds:.1f}", "s")


def _bytes(number: float) -> tuple[str, str]:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g}", unit
        number /= 1000
    return f"{number:,.3g}", "TB"


# --- one row ----------------------------------------------------------------------------------------------------------


def _card(row: Mapping[str, Any], position: int, out_uri: str) -> dict[str, Any]:
    """What the page's script knows of a row: plain JSON values only."""
    status = "ok" if row.get("status") == "ok" else "failed"
    link = link_to(str(row.get("uri") or ""), out_uri)
    card = {column: _plain(row.get(column)) for column in (*_ASKED, *_MADE, *_SEEN)}
    scores, final = _list(row, "consistency"), _list(row, "final_consistency")
    judged = [score for score in (final or scores) if score is not None and math.isfinite(score)]
    error, remedy = _error_and_remedy(row) if status == "failed" else ("", "")
    return card | {
        "row": position if card["row"] is None else card["row"],
        "status": status,
        "prompts": _prompts(row),
        "spans": prompt_spans(row),
        "seed": None if row.get("seed") is None else str(row["seed"]),
        "video_s": _video_s(row),
        "timings": [_number(row, f"{stage}_s") for stage in STAGES],
        "consistency": _rounded(scores),
        "final_consistency": _rounded(final),
        "final_latents": _final_latents(row, len(final)),
        "mean_consistency": sum(judged) / len(judged) if judged else None,
        "uri": str(row.get("uri") or ""),
        "href": link.href,
        "playable": link.playable and status == "ok",
        "why": link.why,
        "error": error,
        "remedy": remedy,
        "metadata": _metadata(row.get("metadata")),
    }


class Link(NamedTuple):
    """How the page refers to a video: `href` is empty where a browser must not follow it, `why` says why none plays."""

    href: str
    playable: bool
    why: str


def link_to(uri: str, out_uri: str) -> Link:
    """How a page in `out_uri` refers to the video at `uri`: relative where it lies below, absolute elsewhere."""
    scheme = urlsplit(uri).scheme.lower() if "://" in uri else ""
    if not uri:
        return Link("", False, "The manifest names no file for this video.")
    if scheme not in ("", "file"):
        why = f"It lies in object storage ({scheme}://), which a page opened from disk cannot play."
        if scheme in ("http", "https"):
            why = "It lies on the web, and this page asks nothing of the network."
        return Link(quote(uri, safe=":/%?=&") if scheme in _LINKABLE else "", False, why)
    path, base = _local_path(uri), _local_path(out_uri)
    if not os.path.isabs(path):
        path = os.path.normpath(path)
        relative = path
    elif "://" in base:
        relative = os.path.pardir
    else:
        relative = os.path.relpath(path, os.path.abspath(base))
    if relative.split(os.sep, 1)[0] == os.path.pardir and os.path.isabs(path):
        return Link(Path(path).as_uri(), True, "")
    return Link("./" + quote(Path(relative).as_posix()), True, "")


def _local_path(uri: str) -> str:
    return os.path.normpath(unquote(urlsplit(uri).path)) if uri.lower().startswith("file://") else uri


def prompt_spans(row: Mapping[str, Any]) -> list[tuple[int, int, int, int]]:
    """For each prompt of several in turn: its first latent and the one after its last, and so for frames.

    Latents are shared out evenly, as `PromptTrack.spread` does; a latent but the first makes
    `(num_frames - 1) / (num_latents - 1)` frames, the first makes one (a causal video VAE).
    """
    prompts, latents, frames = _prompts(row), row.get("num_latents") or 0, row.get("num_frames") or 0
    if len(prompts) < 2 or not latents:
        return []
    each = row.get("latents_per_prompt") or max(Fraction(1), Fraction(latents, len(prompts)))
    bounds = [min(math.ceil(index * each), latents) for index in range(len(prompts))] + [latents]
    per_latent = (frames - 1) / (latents - 1) if latents > 1 else 1
    at = [round(1 + (bound - 1) * per_latent) if bound else 0 for bound in bounds]
    return [(*bounds[index : index + 2], *at[index : index + 2]) for index in range(len(prompts))]  # type: ignore[misc]


def _final_latents(row: Mapping[str, Any], num_chunks: int) -> list[float]:
    """Where each chunk of `final_consistency` stands: its given first latent, or its middle when evenly spread."""
    given = _list(row, "final_consistency_latents")
    if len(given) == num_chunks:
        return [float(latent) for latent in given]
    latents = row.get("num_latents") or num_chunks
    return [round((index + 0.5) * latents / num_chunks, 2) for index in range(num_chunks)]


def _rounded(scores: Iterable[Any]) -> list[float | None]:
    return [round(float(score), 5) if score is not None and math.isfinite(score) else None for score in scores]


def _error_and_remedy(row: Mapping[str, Any]) -> tuple[str, str]:
    """The message of a failed row and what to do; the errors of this project end in a hint of their own."""
    message, *hints = _HINT.split(str(row.get("error") or "No reason was recorded."), maxsplit=1)
    remedy = row.get("hint") or (hints[0] if hints else "")
    return message.strip(), str(remedy).strip() or _REMEDIES.get(str(row.get("error_type")), _OTHER_REMEDY)


def _metadata(value: Any) -> str:
    """The columns carried along, as indented JSON; empty where there are none."""
    if isinstance(value, str):
        try:
            value = parse_json(value, integers=None)
        except OutsideDataError:
            return str(value)
    return json.dumps(_plain(value), indent=1, ensure_ascii=False) if value else ""


# --- values into a page -----------------------------------------------------------------------------------------------


def embedded_json(value: Any) -> Markup:
    r"""JSON that may stand inside a `<script>` element whatever it holds: ASCII only, and no `<`, `>` or `&`.

    Control characters, U+2028 and lone surrogates are `\u` escapes; NaN and infinities have become null.
    """
    text = json.dumps(_plain(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))


def visible(value: Any) -> str:
    """A value as text in which nothing is hidden: control characters become their pictures (U+2400 onwards)."""
    if value is None:
        return "–"
    return _CONTROL.sub(lambda found: _picture(ord(found[0])), str(value))


def _picture(code: int) -> str:
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _plain(value: Any) -> Any:
    """Values as JSON has them; integers that JavaScript would round become text."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _MAX_EXACT_INT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as `a.b` lines; lists stay in one line."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _flatten(item, f"{prefix}.{key}" if prefix else key)]
    return [(visible(prefix), json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)]


def _source(environment: Environment, name: str) -> Markup:
    """A template file taken as it is, which must not end the element it is put into."""
    assert environment.loader is not None
    text = environment.loader.get_source(environment, name)[0]
    assert "</s" not in text
    return Markup("\n" + text)


def _csp_hash(source: str) -> str:
    """The page's own style and script are named by hash, so that no other can run, whatever a prompt holds."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
