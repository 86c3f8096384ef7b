"""One HTML page about a run, put beside its videos: opened with a double click, it asks no network and no server.

`render_report` is pure: manifest rows and the run's record in, the page's text out. What is said of the whole run is
written by the template; the cards are drawn by the page's own script, a batch at a time, from JSON embedded in the
page, so that a thousand videos open as fast as ten. `write_report` puts the page in place, and of more rows than a page
should hold, the pieces beside it that its script loads (`pieces.py`).

Links are relative to where the page lies, so that a folder with both can be moved or sent as it is.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from miga.errors import OutputError
from pipeline.report.cards import card
from pipeline.report.links import Links
from pipeline.report.pictures import RowPictures
from pipeline.report.pieces import ROWS_A_PIECE, ROWS_OF_WORDS, Collected, Collector, Put
from pipeline.report.totals import STAGES, Totals, tiles
from pipeline.report.values import flatten, plain, script_json, visible
from pipeline.storage.local import write_local
from pipeline.video import STRIP_TILES

REPORT_NAME: Final = "report.html"
FILES_PREFIX: Final = "report-files-"
"""Begins the name of the folder beside the page that holds what it loads."""

Strips = Callable[[Sequence[Mapping[str, Any]]], Mapping[int, bytes]]
"""Makes contact strips of rows, as `cards.card` gives them: index among them → JPEG."""

_SCRIPTS: Final = ("rows", "words", "players", "trace", "cards", "viewer", "table", "page")
_MOST_STRIP_BYTES: Final = 1_000_000
"""Of the contact strips that stand in the page itself."""
_HEADLINE: Final = ("model", "model_revision", "revision", "profile", "created_at", "version")


def write_report(
    rows: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
    folder: str | Path,
    *,
    links: Links | None = None,
    strips: Strips | None = None,
    pictures: RowPictures | None = None,
    note: str = "",
) -> Path:
    """Renders the page and puts it in place in one step, so that a reader never sees half of it.

    What it loads lies beside it in a folder named by its content, which is there before the page is; that of an earlier
    page goes when the new page is there.

    Args:
        rows: as for `render_report`.
        run: as for `render_report`.
        folder: local folder that is to hold the page: the run's own, or any other.
        links: how the page refers to videos; None means that it lies in the run's own folder.
        strips: makes contact strips for the rows that the page itself holds.
        pictures: shows what rows began from; None: they are not even named.
        note: a sentence for the reader of the page.

    Returns:
        The path of the page.

    Raises:
        OutputError: if it cannot be written.
    """
    folder = Path(folder)
    path = folder / REPORT_NAME
    with _files_folder(folder) as files:

        def put(name: str, data: bytes) -> None:
            with write_local(files / name) as file:
                file.write(data)

        page, digest = _render(rows, run, links or Links(os.fspath(folder)), put, strips, note, pictures)
        name = f"{FILES_PREFIX}{digest}"
        if files.is_dir():
            _move(files, folder / name)
        with write_local(path) as file:
            file.write(page.encode())
    for old in folder.glob(f"{FILES_PREFIX}*"):
        if old.name != name and old.is_dir() and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    return path


@contextmanager
def _files_folder(folder: Path) -> Iterator[Path]:
    """A name for what is being written; gone at the end."""
    files = folder / f".{FILES_PREFIX}{uuid.uuid4().hex[:12]}.partial"
    try:
        yield files
    finally:
        shutil.rmtree(files, ignore_errors=True)


def _move(files: Path, place: Path) -> None:
    try:
        if place.is_dir():  # of the same content
            shutil.rmtree(place)
        os.replace(files, place)
    except OSError as error:
        raise OutputError(f"{place} cannot be written: {error.strerror}", "free its name, then try again") from error


def render_report(
    rows: Iterable[Mapping[str, Any]], run: Mapping[str, Any], *, out_uri: str, links: Links | None = None
) -> str:
    """The page, complete in itself but for the videos, however many rows there are.

    Args:
        rows: manifest rows. Any column may be missing or null; besides the manifest's there may be `hint`,
            `latents_per_prompt`, `final_consistency_latents` (first latent of each chunk; evenly spread without), and
            of an evaluation `scores` (measure → value) and `score`, the one that they are sorted by, worst first.
        run: the run's record (`run.json`), shown whole; `scored_by` is the measure of `score`.
        out_uri: folder, or prefix of a bucket, of the run.
        links: as for `write_report`.
    """
    return _render(rows, run, links or Links(out_uri), None, None, "")[0]


def _render(
    rows: Iterable[Mapping[str, Any]],
    run: Mapping[str, Any],
    links: Links,
    put: Put | None,
    strips: Strips | None,
    note: str,
    pictures: RowPictures | None = None,
) -> tuple[str, str]:
    """The page, and what the folder beside it is named by."""
    sums, collector = Totals(), Collector(put)
    for position, row in enumerate(rows):
        sums.add(row)
        collector.add(card(row, position, links) | ({"pictures": found} if (found := _of(pictures, row)) else {}))
    held = collector.finish()
    cards = held.cards()
    jpegs = strips(cards) if strips is not None else {}
    positions = list(held.texts)
    by_position = {positions[index]: jpeg for index, jpeg in jpegs.items()}
    digest = _digest(held, by_position)
    folder = f"./{FILES_PREFIX}{digest}"
    about = {
        "positions": positions,
        "total": held.num_rows,
        "failed": held.num_failed,
        "stages": STAGES,
        "scale": held.scale,
        "scored": run.get("scored_by") if held.has_scores else None,
        "gated": held.has_gate,
        "tiles": STRIP_TILES,
        "strips": _put_strips(by_position, folder, put),
        "pieces": None if held.is_whole else {"folder": folder, "rows": ROWS_A_PIECE, "words": ROWS_OF_WORDS},
    }
    data = Markup(f'{{"cards":[{",".join(held.texts.values())}],{script_json(about)[1:]}')
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    style = _source(environment, "report.css")
    script = _joined(_source(environment, f"report/{name}.js") for name in _SCRIPTS)
    page = environment.get_template(REPORT_NAME).render(
        title=_title(run),
        facts=[(name, *_shortened(visible(run[name]))) for name in _HEADLINE if run.get(name)],
        tiles=tiles(sums),
        settings=[(name, visible(value)) for name, value in flatten(plain(run))],
        note=visible(note) if note else "",
        cards=cards,
        num_rows=held.num_rows,
        scale=held.scale,
        has_searches=held.has_searches,
        has_gate=held.has_gate,
        scored=visible(run["scored_by"]) if held.has_scores and run.get("scored_by") else "",
        has_times=sums.work_s > 0,
        is_whole=held.is_whole,
        first=_first(held),
        folder=f"{FILES_PREFIX}{digest}",
        data=data,
        style=style,
        script=script,
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        media_from="".join(f" {origin}" for origin in sorted(links.origins)),
        visible=visible,
    )
    return page, digest


def _of(pictures: RowPictures | None, row: Mapping[str, Any]) -> list[dict[str, str]]:
    return [] if pictures is None else pictures.of(row)


def _first(held: Collected) -> str:
    """What a page of many rows shows at first, in a sentence."""
    parts = [
        (held.num_failed_held, f"{held.num_failed_held:,} of the {held.num_failed:,} rows that failed"),
        (
            held.num_worst_held,
            f"the {held.num_worst_held:,} {'worst' if held.has_scores else 'least consistent'} videos",
        ),
        (held.num_sampled_held, f"{held.num_sampled_held:,} rows drawn evenly from all"),
    ]
    return ", ".join(text for number, text in parts if number)


def _put_strips(jpegs: Mapping[int, bytes], folder: str, put: Put | None) -> dict[int, str]:
    """Position → address of its contact strip: in the page itself while there is room, then beside it."""
    sources: dict[int, str] = {}
    room = _MOST_STRIP_BYTES
    for position, jpeg in jpegs.items():
        room -= len(jpeg)
        if room >= 0 or put is None:
            sources[position] = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        else:
            put(f"strip-{position:07d}.jpg", jpeg)
            sources[position] = f"{folder}/strip-{position:07d}.jpg"
    return sources


def _digest(held: Collected, jpegs: Mapping[int, bytes]) -> str:
    digest = hashlib.sha256(held.digest.encode())
    for jpeg in jpegs.values():
        digest.update(jpeg)
    return digest.hexdigest()[:12]


def _title(run: Mapping[str, Any]) -> str:
    prompts = run.get("prompts") or ""
    name = PurePosixPath(str(prompts.get("path", "") if isinstance(prompts, Mapping) else prompts)).name
    return visible(f"Videos of {name}" if name else "Videos of this run")


def _shortened(text: str) -> tuple[str, str]:
    """Text with the beginnings of its digests alone, and the whole as a title; without any, as it is."""
    short = re.sub(r"[0-9a-f]{32,}", lambda digest: f"{digest[0][:12]}…", text)
    return (short, text) if short != text else (text, "")


def _source(environment: Environment, name: str) -> Markup:
    """A template file taken as it is, which must not end the element it is put into."""
    assert environment.loader is not None
    text = environment.loader.get_source(environment, name)[0]
    assert "</s" not in text
    return Markup("\n" + text)


def _joined(sources: Iterable[str]) -> Markup:
    """The page's scripts as one, with nothing of theirs seen from outside."""
    return Markup('\n"use strict";\n(() => {' + "".join(sources) + "})();\n")


def _csp_hash(source: str) -> str:
    """The page's own style and script are named by hash, so that no other can run, whatever a prompt holds."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
