"""The page of `miga compare`: the table, its plot, and every pair side by side, played in step."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.comparison import Compared
from pipeline.evaluation.pairs import Asked
from pipeline.report.links import Links
from pipeline.report.values import embedded_json, visible
from pipeline.storage.local import write_local

PAGE_NAME: Final = "compare.html"
PLOT_NAME: Final = "compare.png"
MOST_PAIRS: Final = 2000
"""Of a page; of more, those that differ most are there."""


def write_comparison(
    compared: Compared, folder: Path, links: Mapping[str, Links], table: list[dict[str, Any]], plot: bytes | None
) -> Path:
    """Writes page and plot into a folder.

    Args:
        compared: what was found.
        folder: of this machine; made if it is not there.
        links: by system: how the page refers to its videos.
        table: rows under equal names, as the terminal shows them.
        plot: a PNG.

    Returns:
        The path of the page.

    Raises:
        OutputError: if they cannot be written.
    """
    if plot is not None:
        with write_local(folder / PLOT_NAME) as file:
            file.write(plot)
    page = folder / PAGE_NAME
    with write_local(page) as file:
        file.write(render_comparison(compared, links, table, plot is not None).encode())
    return page


def render_comparison(
    compared: Compared, links: Mapping[str, Links], table: list[dict[str, Any]], has_plot: bool
) -> str:
    """The page as text; the arguments are those of `write_comparison`."""
    pairs = [_pair(compared, asked, links) for asked in _most_unlike(compared)]
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    assert environment.loader is not None
    style, script = (
        Markup("\n" + environment.loader.get_source(environment, f"compare/compare.{kind}")[0])
        for kind in ("css", "js")
    )
    names = [system.name for system in compared.systems]
    metrics = list(dict.fromkeys(found.metric for found in compared.differences))
    origins = sorted({origin for each in links.values() for origin in each.origins})
    return environment.get_template(f"compare/{PAGE_NAME}").render(
        title=visible(f"{names[0]} beside {', '.join(names[1:])}"),
        table=[{visible(name): visible(value) for name, value in row.items()} for row in table],
        left_out=[visible(text) for text in compared.pairing.left_out],
        num_pairs=len(compared.pairing.asked),
        num_shown=len(pairs),
        plot=PLOT_NAME if has_plot else "",
        data=embedded_json({"systems": [visible(name) for name in names], "metrics": metrics, "pairs": pairs}),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        media_from="".join(f" {origin}" for origin in origins),
    )


def _most_unlike(compared: Compared) -> list[Asked]:
    """The pairs in the first run's order; of too many, those whose first metric differs most."""
    asked = list(compared.pairing.asked)
    if len(asked) <= MOST_PAIRS:
        return asked
    metric = compared.differences[0].metric if compared.differences else ""
    first, other = (scores.get(metric, {}) for scores in compared.scores[:2])
    apart = {each: abs(first[each] - other[each]) for each in asked if each in first and each in other}
    kept = set(sorted(asked, key=lambda each: -apart.get(each, 0.0))[:MOST_PAIRS])
    return [each for each in asked if each in kept]


def _pair(compared: Compared, asked: Asked, links: Mapping[str, Links]) -> dict[str, Any]:
    videos = []
    for system, scores in zip(compared.systems, compared.scores, strict=True):
        row = system.rows[asked]
        link = links[system.name].to(row.uri or "")
        values = {name: by_asked[asked] for name, by_asked in scores.items() if asked in by_asked}
        videos.append(
            {"href": link.href, "plays": link.playable, "why": link.why, "row": row.row, "scores": values}
            | {"width": row.width, "height": row.height}
        )
    fps = compared.systems[0].rows[asked].fps
    return {"prompts": [visible(text) for text in asked[0]], "seed": asked[1], "fps": fps, "videos": videos}


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
