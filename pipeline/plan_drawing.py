"""The picture of a video's plan: the queue pass by pass, as an SVG, and a page around one or two of them.

A row is a pass, its squares are the latents that the pass sees, at their places in the video; the colour is the noise
level. Below them lie the windows: thin where a window only looks, thick where it keeps what comes out, dots for
guidance latents put before it. Nothing here knows a method: all of it is read off the plan (`miga/plan.py`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from miga.backbones.base import BackboneSpec
from miga.base_clip import PART
from miga.config import SamplerConfig
from miga.cost import CallCount, count_calls
from miga.errors import UsageError
from miga.plan import PlannedAdvance, PlannedEvaluation, PlannedPass, plan_video
from miga.profiles import profiles
from miga.windows import Window

MOST_LATENTS: Final = 5000
"""Of a video that is drawn: its plan is walked to the end."""
FIRST_ROWS, LAST_ROWS = 44, 16
"""Rows of a plan that are drawn, from its beginning and from its end; those of the base clip come on top."""
BASE_ROWS: Final = 2

_CELL, _ROW, _LANE, _GAP = 8, 9, 4, 5
_LEFT, _RIGHT, _TOP = 176, 96, 42
_LEGEND: Final = 96
_RAMP: Final = ((253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))
"""From clean to noise: bright to dark, told apart in print and by the colour-blind (the map viridis)."""


@dataclass(frozen=True)
class Row:
    """What one row shows.

    Attributes:
        number: of the pass, from 1; passes of one advance share it.
        planned: the pass, or several of the same latents whose windows ran one after the other.
        times: how often it is made (candidates and beams do the same side by side).
        in_place: whether each window sees what the ones before it wrote.
        leaving: index in the video of the latents that leave this part of the method with it.
        evaluation: what is judged after it.
        finished: index in the video of the latents that are handed out clean with it.
    """

    number: int
    planned: PlannedPass
    times: int = 1
    in_place: bool = False
    leaving: range = range(0)
    evaluation: PlannedEvaluation | None = None
    finished: range = range(0)

    @property
    def places(self) -> range:
        """Index in the video of its latents."""
        return range(self.planned.first, self.planned.first + len(self.planned.levels))


@dataclass(frozen=True)
class Drawing:
    """Everything that is drawn of one profile on one model.

    Attributes:
        title, summary: the profile, and what it is in words.
        config: its settings.
        num_latents, num_frames: of the video.
        count: its calls.
        first, last: the rows drawn, from the beginning and from the end.
        num_left_out: rows between them.
        num_base_left_out: rows of the base clip beyond those drawn of it.
    """

    title: str
    summary: str
    config: SamplerConfig
    num_latents: int
    num_frames: int
    count: CallCount
    first: tuple[Row, ...]
    last: tuple[Row, ...]
    num_left_out: int
    num_base_left_out: int


def draw_plan(spec: BackboneSpec, config: SamplerConfig, num_frames: int) -> Drawing:
    """Looks at the plan of a video of `num_frames`.

    Raises:
        UsageError: if the model makes no such video, or it is too long to be drawn.
    """
    try:
        num_latents = spec.num_latents(num_frames)
    except ValueError as error:
        raise UsageError(f"--num-frames: {error}", "give one of these lengths") from error
    if num_latents > MOST_LATENTS:
        most = spec.num_frames(MOST_LATENTS)
        raise UsageError(
            f"--num-frames {num_frames} is too long a video to be drawn", f"give at most {most}: what comes repeats"
        )
    rows = _linked(_rows(plan_video(config, num_latents)))
    first: list[Row] = []
    num_base, left_out, last = 0, 0, deque[Row](maxlen=LAST_ROWS)
    for row in rows:
        is_base = row.planned.part == PART
        num_base += is_base
        if is_base and num_base > BASE_ROWS:
            continue
        if len(first) < FIRST_ROWS + min(num_base, BASE_ROWS):
            first.append(row)
            continue
        left_out += len(last) == LAST_ROWS
        last.append(row)
    known = profiles().get(config.profile)
    return Drawing(
        config.profile,
        known.summary if known else "",
        config,
        num_latents,
        num_frames,
        count_calls(config, num_latents),
        tuple(first),
        tuple(last),
        left_out,
        max(0, num_base - BASE_ROWS),
    )


def _rows(plan: Iterable[PlannedAdvance]) -> Iterator[Row]:
    """A row for every pass; what is done to the same latents one after the other, or several times, is one."""
    for number, advance in enumerate((each for each in plan if each.passes), 1):
        rows: list[Row] = []
        for planned in advance.passes:
            last = rows[-1] if rows else None
            if last is not None and planned == last.planned:
                rows[-1] = replace(last, times=last.times + 1)
            elif last is not None and _goes_on(last.planned, planned):
                windows = (*last.planned.windows, *planned.windows)
                rows[-1] = replace(last, planned=replace(last.planned, windows=windows), in_place=True)
            else:
                rows.append(Row(number, planned))
        rows[-1] = replace(rows[-1], finished=advance.finished)
        if advance.evaluations:
            rows[0] = replace(rows[0], evaluation=advance.evaluations[-1])
        yield from rows


def _goes_on(before: PlannedPass, planned: PlannedPass) -> bool:
    """Whether it is the next window of a pass in place."""
    same = (before.part, before.first, len(before.levels)) == (planned.part, planned.first, len(planned.levels))
    return same and len(planned.windows) == 1 and before.windows[-1].keep_stop == planned.windows[0].keep_start


def _linked(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, each with the latents that its part of the method has no longer in the part's next pass."""
    waiting: deque[Row] = deque()
    for row in rows:
        for at, earlier in enumerate(waiting):
            alike = earlier.planned.part == row.planned.part and earlier.number != row.number
            if alike and not earlier.leaving and earlier.places.start < row.places.start <= earlier.places.stop:
                kept = any(other.places.start <= earlier.places.start for other in itertools.islice(waiting, at + 1, None)
                           if other.planned.part == row.planned.part)  # fmt: skip
                if not kept:
                    waiting[at] = replace(earlier, leaving=range(earlier.places.start, row.places.start))
        waiting.append(row)
        while waiting and waiting[0].number < row.number - 1:
            yield waiting.popleft()
    yield from waiting


def to_svg(drawings: Sequence[Drawing]) -> str:
    """One picture of one or more plans side by side; the same bytes for the same plans."""
    parts, at, height = [], 0.0, 0.0
    for drawing in drawings:
        body, wide, high = _picture(drawing)
        parts.append(f'<g transform="translate({at:g} 0)" data-profile="{escape(drawing.title)}">{body}</g>')
        at, height = at + wide + 24, max(height, high)
    width = at - 24
    styles = "".join(
        f".n{number}-{level}{{fill:{_colour(level / drawing.config.num_steps)}}}"
        for number, drawing in enumerate(drawings)
        for level in range(drawing.config.num_steps + 1)
    )
    for number in range(len(drawings)):
        parts[number] = parts[number].replace('class="n-', f'class="n{number}-')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img" font-family="sans-serif" font-size="9">'
        f"<title>{escape(' and '.join(each.title for each in drawings))}: the plan of a video</title>"
        f"<style>{styles}.beyond{{opacity:.3}}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def to_page(drawings: Sequence[Drawing], model: str) -> str:
    """A page of its own with the picture, what it shows in words, and the numbers."""
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("plan.html").render(
        drawings=drawings,
        model=model,
        pictures=[Markup(to_svg([drawing])) for drawing in drawings],
        numbers=_numbers(drawings),
    )


def _numbers(drawings: Sequence[Drawing]) -> list[tuple[str, list[Any]]]:
    """Name → of every plan."""
    counts = [drawing.count for drawing in drawings]
    rows: list[tuple[str, list[Any]]] = [
        ("frames", [drawing.num_frames for drawing in drawings]),
        ("latents", [drawing.num_latents for drawing in drawings]),
        ("calls of the network, searches apart", [count.total for count in counts]),
        ("of these in the base clip", [count.base_clip for count in counts]),
        ("forwards, two where a call is under classifier-free guidance", [count.forwards for count in counts]),
        ("calls a latent", [f"{d.count.total / d.num_latents:.1f}" for d in drawings]),
        ("evaluations of self-reflection", [count.num_evaluations for count in counts]),
        ("calls of one search", [count.per_search for count in counts]),
        ("latents that the longest pass drawn sees", [max(len(r.places) for r in d.first + d.last) for d in drawings]),
    ]
    return rows


def _colour(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _picture(drawing: Drawing) -> tuple[str, float, float]:
    """SVG elements of one plan, and their width and height."""
    panels = [panel for panel in (drawing.first, drawing.last) if panel]
    spans = [_span(panel) for panel in panels]
    width = _LEFT + _RIGHT + _CELL * max(len(span) for span in spans)
    width = max(width, 620)
    out = [
        _text(0, 14, drawing.title, size=14, bold=True),
        _text(0, 28, f"{drawing.num_frames} frames, {drawing.num_latents} latents, {drawing.count.total} calls"),
    ]
    y = float(_TOP)
    out.append(_legend(y, drawing.config.num_steps))
    y += _LEGEND
    for number, (panel, span) in enumerate(zip(panels, spans, strict=True)):
        if number and drawing.num_left_out:
            out.append(_text(_LEFT, y + 12, f"⋮ {drawing.num_left_out} rows like these are left out", size=10))
            y += 24
        body, high = _panel(panel, span, drawing)
        out.append(f'<g transform="translate(0 {y:g})">{body}</g>')
        y += high
    return "".join(out), width, y + 8


def _span(panel: Sequence[Row]) -> range:
    return range(min(row.places.start for row in panel), max(row.places.stop for row in panel))


def _legend(y: float, num_steps: int) -> str:
    squares = "".join(
        f'<rect x="{_LEFT + 6 * step}" y="{y:g}" width="6" height="9" fill="{_colour(step / 20)}"/>'
        for step in range(21)
    )
    lines = [
        (
            f"each row is a pass, each square a latent at its place in the video, from clean to noise (level {num_steps})",
            "",
        ),
        ("a window: it sees the thin part, and keeps what comes out of the thick one", "window"),
        ("the same under classifier-free guidance: two forwards", "guided"),
        ("guidance latents, put before a window; its own begins at the thin part", "dots"),
        ("latents that leave for the next part of the method, or are clean", "leaving"),
        ("self-reflection: the judged tail, and what it is compared with", "judged"),
    ]
    out = [squares]
    for number, (words, mark) in enumerate(lines):
        at = y + 13 * number
        out.append(_mark(mark, at))
        out.append(_text(_LEFT + 136, at + 8, words))
    return "".join(out)


def _mark(kind: str, y: float) -> str:
    x = _LEFT + 20
    if kind in ("window", "guided", "dots"):
        colour = "#c2410c" if kind == "guided" else "#333"
        dots = "".join(f'<circle cx="{x - 4 - 8 * n}" cy="{y + 5:g}" r="1.6" fill="{colour}"/>' for n in range(2))
        bar = f'<path d="M{x} {y + 5:g}h96" stroke="{colour}"/><path d="M{x + 16} {y + 5:g}h48" stroke="{colour}" stroke-width="3"/>'
        return (dots if kind == "dots" else "") + bar
    if kind == "leaving":
        return _down(x, y + 2, 3)
    if kind == "judged":
        return f'<path d="M{x} {y + 5:g}h32" stroke="#2563eb" stroke-width="2" stroke-dasharray="3 2"/>' \
               f'<path d="M{x + 36} {y + 5:g}h24" stroke="#dc2626" stroke-width="2"/>'  # fmt: skip
    return ""


def _panel(panel: Sequence[Row], span: range, drawing: Drawing) -> tuple[str, float]:
    """The rows, below an axis of places in the video."""
    out, y = [_axis(span, drawing.num_latents)], 16.0
    for before, row in zip((None, *panel), panel, strict=False):
        ends_base = before is not None and before.planned.part == PART != row.planned.part
        if ends_base and drawing.num_base_left_out:
            words = f"⋮ {drawing.num_base_left_out} more passes of the base clip, one level down each"
            out.append(_text(_LEFT, y + 10, words))
            y += 16
        if before is not None and before.number != row.number:
            y += 3
        body, high = _row(row, before, span, drawing)
        out.append(
            f'<g transform="translate(0 {y:g})" data-pass="{row.number}" data-part="{escape(row.planned.part)}">{body}</g>'
        )
        y += high
    for place, words in ((0, "begin"), (drawing.num_latents, "end")):
        if span.start <= place <= span.stop:
            x = _LEFT + _CELL * (place - span.start)
            out.append(
                f'<path d="M{x} 10V{y:g}" stroke="#888" stroke-width=".6" stroke-dasharray="2 2"><title>{words}</title></path>'
            )
    return "".join(out), y + 10


def _axis(span: range, num_latents: int) -> str:
    out = [_text(0, 9, "pass", bold=True), _text(_LEFT + _CELL * len(span) + 8, 9, "calls", bold=True)]
    for place in span:
        if place % 8 == 0:
            is_outside = not 0 <= place < num_latents
            out.append(
                _text(_LEFT + _CELL * (place - span.start), 9, str(place), colour="#aaa" if is_outside else "#333")
            )
    return "".join(out)


def _row(row: Row, before: Row | None, span: range, drawing: Drawing) -> tuple[str, float]:
    planned, out = row.planned, []
    is_new = before is None or before.number != row.number
    label = (f"{row.number}  " if is_new else "    ") + planned.part + (", in place" if row.in_place else "")
    out.append(_text(0, 8, label, bold=is_new))
    for place, level in zip(row.places, planned.levels, strict=True):
        beyond = "" if 0 <= place < drawing.num_latents else " beyond"
        out.append(
            f'<rect class="n-{level}{beyond}" x="{_LEFT + _CELL * (place - span.start)}" width="7" height="{_ROW}" '
            f'data-latent="{place}" data-level="{level}"/>'
        )
    lanes: list[int] = []
    for window in planned.windows:
        lane = next((n for n, end in enumerate(lanes) if end < window.start), len(lanes))
        lanes[lane:] = [window.stop - 1, *lanes[lane + 1 :]]
        out.append(_window(window, row, span, _ROW + 2.5 + _LANE * lane, drawing.config))
    y = _ROW + _LANE * len(lanes) + 1.0
    if row.leaving:
        out.append(_down(_LEFT + _CELL * (row.leaving.start - span.start), y, len(row.leaving), row.leaving))
    words = f"{len(planned.windows)}" + (f" × {row.times}" if row.times > 1 else "")
    if row.finished:
        words += f"; clean: {row.finished.start} … {row.finished.stop - 1}"
    out.append(_text(_LEFT + _CELL * (row.places.stop - span.start) + 8, 8, words))
    if row.evaluation is not None:
        out.append(_evaluation(row.evaluation, span, y + 5))
        y += 5
    return "".join(out), y + _GAP


def _window(window: Window, row: Row, span: range, y: float, config: SamplerConfig) -> str:
    seen = [row.planned.levels[position] for position in window.positions]
    is_guided = any(config.guidance_low_level <= level <= config.guidance_high_level for level in seen)
    is_guided = is_guided and config.guidance_scale != 1
    colour = "#c2410c" if is_guided else "#333"
    at = _LEFT + _CELL * (row.planned.first - span.start)

    def line(start: int, stop: int, width: float) -> str:
        return f'<path d="M{at + _CELL * start} {y:g}h{_CELL * (stop - start) - 2}" stroke="{colour}" stroke-width="{width:g}"/>'

    dots = "".join(
        f'<circle cx="{at + _CELL * position + 3.5:g}" cy="{y:g}" r="1.5" fill="{colour}"/>'
        for position in window.guidance
    )
    kept = f'data-kept="{row.planned.first + window.keep_start}:{row.planned.first + window.keep_stop}"'
    return f"<g {kept}>{line(window.start, window.stop, 0.8)}{line(window.keep_start, window.keep_stop, 2.6)}{dots}</g>"


def _evaluation(evaluation: PlannedEvaluation, span: range, y: float) -> str:
    out = []
    for places, style in (
        (evaluation.reference, 'stroke="#2563eb" stroke-dasharray="3 2"'),
        (evaluation.judged, 'stroke="#dc2626"'),
    ):
        x = _LEFT + _CELL * (places.start - span.start)
        out.append(f'<path d="M{x} {y:g}h{_CELL * len(places) - 2}" {style} stroke-width="2"/>')
    return f'<g class="evaluation">{"".join(out)}</g>'


def _down(x: float, y: float, count: int, places: range = range(0)) -> str:
    marks = "".join(f"M{x + _CELL * n:g} {y:g}h6l-3 4z" for n in range(count))
    name = f' data-leaving="{places.start}:{places.stop}"' if places else ""
    return f'<path d="{marks}" fill="#111"{name}/>'


def _text(x: float, y: float, words: str, *, size: int = 9, bold: bool = False, colour: str = "#333") -> str:
    weight = ' font-weight="bold"' if bold else ""
    big = f' font-size="{size}"' if size != 9 else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}"{weight}{big} xml:space="preserve">{escape(words)}</text>'
