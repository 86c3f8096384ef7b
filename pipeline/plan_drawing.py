"""The picture of a video's plan: the queue pass by pass, as an SVG, and a page around one or two of them.

A row is a pass, its squares are the latents that the pass sees, at their places in the video; the colour is the noise
level. Below them lie the windows: thin where a window only looks, thick where it keeps what comes out, dots for
guidance latents put before it, hollow ones for anchors, which stand beside the queue. Nothing here knows a method: all
of it is read off the plan (`miga/plan.py`).
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from miga.backbones.base import BackboneSpec
from miga.base_clip import PART
from miga.config import SamplerConfig
from miga.cost import CallCount, count_calls
from miga.errors import UsageError
from miga.plan import PlannedAdvance, PlannedEvaluation, PlannedPass, guided, plan_video
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
_LEAST_WIDTH: Final = 720
_PLAIN, _GUIDED = "#333", "#c2410c"
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
        leaving: index in the video of the latents that are clean behind it, or go on in another part of the method.
        evaluations: what is judged after it.
        finished: index in the video of the latents that are handed out clean with it.
    """

    number: int
    planned: PlannedPass
    times: int = 1
    in_place: bool = False
    leaving: tuple[int, ...] = ()
    evaluations: tuple[PlannedEvaluation, ...] = ()
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

    @property
    def has_anchors(self) -> bool:
        """Whether a window that is drawn shows one."""
        return any(window.anchors for row in (*self.first, *self.last) for window in row.planned.windows)


def draw_plan(spec: BackboneSpec, config: SamplerConfig, num_latents: int) -> Drawing:
    """Looks at the plan of a video.

    Raises:
        UsageError: if it is too long to be drawn.
    """
    if num_latents > MOST_LATENTS:
        most = spec.num_frames(MOST_LATENTS)
        raise UsageError(
            f"a video of {num_latents} latents is too long to be drawn",
            f"ask for at most {most} frames: what comes behind repeats what is there",
        )
    rows = _with_leaving(_rows(plan_video(config, num_latents)), num_latents)
    base = [row for row in rows if row.planned.part == PART]
    rest = [row for row in rows if row.planned.part != PART]
    num_last = min(LAST_ROWS, max(0, len(rest) - FIRST_ROWS))
    known = profiles().get(config.profile)
    return Drawing(
        title=config.profile,
        summary=known.summary if known else "",
        config=config,
        num_latents=num_latents,
        num_frames=spec.num_frames(num_latents),
        count=count_calls(config, num_latents),
        first=(*base[:BASE_ROWS], *rest[:FIRST_ROWS]),
        last=tuple(rest[len(rest) - num_last :]),
        num_left_out=max(0, len(rest) - FIRST_ROWS - num_last),
        num_base_left_out=max(0, len(base) - BASE_ROWS),
    )


def _rows(plan: Iterable[PlannedAdvance]) -> list[Row]:
    """A row for every pass; what is done to the same latents one after the other, or several times, is one."""
    found: list[Row] = []
    for number, advance in enumerate((each for each in plan if each.passes), 1):
        rows = [Row(number, advance.passes[0], evaluations=advance.evaluations)]
        for planned in advance.passes[1:]:
            last = rows[-1]
            if planned == last.planned:
                rows[-1] = replace(last, times=last.times + 1)
            elif _goes_on(last.planned, planned):
                windows = (*last.planned.windows, *planned.windows)
                rows[-1] = replace(last, planned=replace(last.planned, windows=windows), in_place=True)
            else:
                rows.append(Row(number, planned))
        rows[-1] = replace(rows[-1], finished=advance.finished)
        found += rows
    return found


def _goes_on(before: PlannedPass, planned: PlannedPass) -> bool:
    """Whether it is the next window of a pass in place."""
    same = (before.part, before.first, len(before.levels)) == (planned.part, planned.first, len(planned.levels))
    return same and len(planned.windows) == 1 and before.windows[-1].keep_stop == planned.windows[0].keep_start


def _with_leaving(rows: Sequence[Row], num_latents: int) -> list[Row]:
    """The rows, each with the latents that take their last step in its part of the method with it.

    They are clean then, or go on in another part; what is thrown away with the queue leaves for nowhere.
    """
    found: list[Row] = []
    later: set[int] = set()
    later_in: defaultdict[str, set[int]] = defaultdict(set)
    for row in reversed(rows):
        stepped = {place for place, level in zip(row.places, row.planned.levels, strict=True) if level > 0}
        last = stepped - later_in[row.planned.part]
        leaving = tuple(sorted(place for place in last if place in later or 0 <= place < num_latents))
        found.append(replace(row, leaving=leaving))
        later |= stepped
        later_in[row.planned.part] |= stepped
    return found[::-1]


@dataclass(frozen=True)
class _Panel:
    """Rows below one axis.

    Attributes:
        drawing: which they are of.
        style: begins the names of its colours, which no other plan on a page shares.
        rows: they.
    """

    drawing: Drawing
    style: str
    rows: tuple[Row, ...]

    @functools.cached_property
    def span(self) -> range:
        """Index in the video of all latents shown."""
        return range(min(row.places.start for row in self.rows), max(row.places.stop for row in self.rows))

    def x(self, place: int) -> int:
        """Where a latent stands."""
        return _LEFT + _CELL * (place - self.span.start)

    def is_of_video(self, place: int) -> bool:
        """Whether a latent is handed out."""
        return 0 <= place < self.drawing.num_latents


def to_svg(drawings: Sequence[Drawing], first: int = 0) -> str:
    """One picture of one or more plans side by side; the same bytes for the same plans.

    Args:
        drawings: the plans.
        first: number of the first one on its page: styles are of a page, not of a picture.
    """
    parts: list[str] = []
    styles: list[str] = []
    width, height = 0, 0.0
    for number, drawing in enumerate(drawings, first):
        body, wide, high = _picture(drawing, f"n{number}")
        at = width + 24 if parts else 0
        parts.append(f'<g transform="translate({at} 0)" data-profile="{escape(drawing.title)}">{body}</g>')
        width, height = at + wide, max(height, high)
        num_steps = drawing.config.num_steps
        styles += [f".n{number}-{level}{{fill:{_colour(level / num_steps)}}}" for level in range(num_steps + 1)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'height="{height:g}" role="img" font-family="sans-serif" font-size="9">'
        f"<title>{escape(' and '.join(each.title for each in drawings))}: the plan of a video</title>"
        f"<style>{''.join(styles)}.beyond{{opacity:.3}}</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def to_page(drawings: Sequence[Drawing], model: str) -> str:
    """A page of its own with the picture, what it shows in words, and the numbers."""
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("plan.html").render(
        drawings=drawings,
        model=model,
        pictures=[Markup(to_svg([drawing], number)) for number, drawing in enumerate(drawings)],
        numbers=_numbers(drawings),
    )


def _numbers(drawings: Sequence[Drawing]) -> list[tuple[str, list[Any]]]:
    """Name → of every plan."""
    counts = [drawing.count for drawing in drawings]
    return [
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


def _colour(share: float) -> str:
    place = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(place), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _picture(drawing: Drawing, style: str) -> tuple[str, int, float]:
    """SVG elements of one plan, and their width and height."""
    panels = [_Panel(drawing, style, rows) for rows in (drawing.first, drawing.last) if rows]
    width = max(_LEAST_WIDTH, _LEFT + _RIGHT + _CELL * max(len(panel.span) for panel in panels))
    out = [
        _text(0, 14, drawing.title, size=14, bold=True),
        _text(0, 28, f"{drawing.num_frames} frames, {drawing.num_latents} latents, {drawing.count.total} calls"),
        _legend(_TOP, drawing.config.num_steps, has_anchors=drawing.has_anchors),
    ]
    y = float(_TOP + _LEGEND + 13 * drawing.has_anchors)
    for panel in panels:
        if panel.rows is drawing.last and drawing.num_left_out:
            out.append(_text(_LEFT, y + 12, f"⋮ {drawing.num_left_out} rows like these are left out", size=10))
            y += 24
        body, high = _panel(panel)
        out.append(f'<g transform="translate(0 {y:g})">{body}</g>')
        y += high
    return "".join(out), width, y + 8


def _legend(y: float, num_steps: int, *, has_anchors: bool) -> str:
    x = _LEFT + 20
    ramp = "".join(
        f'<rect x="{_LEFT + 6 * step}" y="{y:g}" width="6" height="9" fill="{_colour(step / 20)}"/>'
        for step in range(21)
    )
    seen, kept, dots = (x, x + 96), (x + 16, x + 64), (x - 12, x - 4)
    lines = [
        (
            f"a row is a pass, a square a latent at its place in the video: clean to noise (level {num_steps})",
            ramp,
        ),
        ("a window: it sees the thin part, and keeps what comes out of the thick one", _bars(y + 18, seen, kept)),
        ("the same under classifier-free guidance: two forwards", _bars(y + 31, seen, kept, is_guided=True)),
        ("guidance latents, put before a window; its own begins at the thin part", _bars(y + 44, seen, kept, dots)),
        (
            "latents that leave for the next part of the method, or are clean",
            _down(range(x, x + 3 * _CELL, _CELL), y + 54),
        ),
        (
            "self-reflection: what the judged tail is compared with, and the tail",
            _compared(y + 70, (x, x + 32), (x + 36, x + 60)),
        ),
    ]
    if has_anchors:
        mark = "".join(_hollow(x + shift, y + 83, "#333") for shift in (-12, -4))
        lines.append(("anchors: finished latents beside the queue; at the edge, if they stand further left", mark))
    words = (_text(_LEFT + 136, y + 13 * number + 8, line) for number, (line, _) in enumerate(lines))
    return "".join(mark for _, mark in lines) + "".join(words)


def _panel(panel: _Panel) -> tuple[str, float]:
    """The rows, below an axis of places in the video."""
    drawing, out, y = panel.drawing, [_axis(panel)], 16.0
    for before, row in zip((None, *panel.rows), panel.rows, strict=False):
        ends_base = before is not None and before.planned.part == PART != row.planned.part
        if ends_base and drawing.num_base_left_out:
            words = f"⋮ {drawing.num_base_left_out} more passes of the base clip, one level down each"
            out.append(_text(_LEFT, y + 10, words))
            y += 16
        is_new = before is None or before.number != row.number
        y += 3 if is_new and before is not None else 0
        body, high = _row(panel, row, is_new)
        part = escape(row.planned.part)
        out.append(f'<g transform="translate(0 {y:g})" data-pass="{row.number}" data-part="{part}">{body}</g>')
        y += high
    for place, words in ((0, "begin"), (drawing.num_latents, "end")):
        if panel.span.start <= place <= panel.span.stop:
            line = f'd="M{panel.x(place)} 10V{y:g}" stroke="#888" stroke-width=".6" stroke-dasharray="2 2"'
            out.append(f"<path {line}><title>{words}</title></path>")
    return "".join(out), y + 10


def _axis(panel: _Panel) -> str:
    out = [_text(0, 9, "pass", bold=True), _text(panel.x(panel.span.stop) + 8, 9, "calls", bold=True)]
    for place in range(-(-panel.span.start // 8) * 8, panel.span.stop, 8):
        out.append(_text(panel.x(place), 9, str(place), colour="#333" if panel.is_of_video(place) else "#aaa"))
    return "".join(out)


def _row(panel: _Panel, row: Row, is_new: bool) -> tuple[str, float]:
    """A row's elements, and its height.

    Args:
        panel: where it stands.
        row: it.
        is_new: whether its pass begins with it.
    """
    planned, out = row.planned, []
    label = (f"{row.number}  " if is_new else "    ") + planned.part + (", in place" if row.in_place else "")
    out.append(_text(0, 8, label, bold=is_new))
    for place, level in zip(row.places, planned.levels, strict=True):
        beyond = "" if panel.is_of_video(place) else " beyond"
        out.append(
            f'<rect class="{panel.style}-{level}{beyond}" x="{panel.x(place)}" width="7" height="{_ROW}" '
            f'data-latent="{place}" data-level="{level}"/>'
        )
    lanes: list[int] = []  # where the last window of each ends: those that overlap lie below one another
    is_guided = guided(panel.drawing.config, planned.levels, planned.windows)
    for window, guides in zip(planned.windows, is_guided, strict=True):
        lane = next((number for number, end in enumerate(lanes) if end < window.start), len(lanes))
        lanes[lane : lane + 1] = [window.stop - 1]
        anchors = [planned.anchors[number] for number in window.anchors]
        out.append(_window(panel, window.shifted(planned.first), anchors, _ROW + 2.5 + _LANE * lane, guides))
    y = _ROW + _LANE * len(lanes) + 1.0
    if row.leaving:
        name = f'data-leaving="{" ".join(map(str, row.leaving))}"'
        out.append(f"<g {name}>{_down(map(panel.x, row.leaving), y)}</g>")
    words = f"{len(planned.windows)}" + (f" × {row.times}" if row.times > 1 else "")
    if row.finished:
        last = f" … {row.finished.stop - 1}" if len(row.finished) > 1 else ""
        words += f"; clean: {row.finished.start}{last}"
    out.append(_text(panel.x(row.places.stop) + 8, 8, words))
    for evaluation in row.evaluations:
        y += 5
        places = (evaluation.reference, evaluation.judged)
        reference, judged = ((panel.x(each.start), panel.x(each.stop) - 2) for each in places)
        out.append(f'<g class="evaluation">{_compared(y, reference, judged)}</g>')
    return "".join(out), y + _GAP


def _window(panel: _Panel, window: Window, anchors: Sequence[int], y: float, is_guided: bool) -> str:
    """A window whose positions are places in the video, and the places of the anchors that it shows."""
    seen = (panel.x(window.start), panel.x(window.stop) - 2)
    kept = (panel.x(window.keep_start), panel.x(window.keep_stop) - 2)
    dots = [panel.x(place) + 3.5 for place in window.guidance]
    about = f'data-kept="{window.keep_start}:{window.keep_stop}" data-guided="{int(is_guided)}"'
    if anchors:
        about += f' data-anchors="{" ".join(map(str, anchors))}"'
    colour = _GUIDED if is_guided else _PLAIN
    beside = "".join(_hollow(panel.x(max(place, panel.span.start)) + 3.5, y, colour) for place in anchors)
    return f"<g {about}>{_bars(y, seen, kept, dots, is_guided=is_guided)}{beside}</g>"


_Ends: TypeAlias = tuple[float, float]


def _bars(y: float, seen: _Ends, kept: _Ends, dots: Sequence[float] = (), *, is_guided: bool = False) -> str:
    """A window: thin where it sees, thick where it keeps, dots for guidance latents."""
    colour = _GUIDED if is_guided else _PLAIN
    circles = "".join(f'<circle cx="{x:g}" cy="{y:g}" r="1.5" fill="{colour}"/>' for x in dots)
    return _line(y, seen, 0.8, colour) + _line(y, kept, 2.6, colour) + circles


def _hollow(x: float, y: float, colour: str) -> str:
    """An anchor."""
    return f'<circle cx="{x:g}" cy="{y:g}" r="1.7" fill="#fff" stroke="{colour}" stroke-width=".9"/>'


def _compared(y: float, reference: _Ends, judged: _Ends) -> str:
    """An evaluation."""
    return _line(y, reference, 2, "#2563eb", ' stroke-dasharray="3 2"') + _line(y, judged, 2, "#dc2626")


def _line(y: float, ends: _Ends, width: float, colour: str, more: str = "") -> str:
    start, stop = ends
    return f'<path d="M{start:g} {y:g}H{stop:g}" stroke="{colour}" stroke-width="{width:g}"{more}/>'


def _down(places: Iterable[float], y: float) -> str:
    marks = "".join(f"M{x:g} {y:g}h6l-3 4z" for x in places)
    return f'<path d="{marks}" fill="#111"/>'


def _text(x: float, y: float, words: str, *, size: int = 9, bold: bool = False, colour: str = "#333") -> str:
    weight = ' font-weight="bold"' if bold else ""
    big = f' font-size="{size}"' if size != 9 else ""
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}"{weight}{big} xml:space="preserve">{escape(words)}</text>'
