"""`miga plan`: what a profile does pass by pass, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.bench.profile_choice import parse_profile
from miga.backbones.registry import load_spec
from miga.errors import OutputError, UsageError
from pipeline.plan_drawing import Drawing, draw_plan, to_page, to_svg

SUFFIXES = (".html", ".svg")


def draw(model: str, texts: Sequence[str], num_frames: int | None, out: str) -> list[Drawing]:
    """Draws the plans of some profiles side by side into a file, which is replaced if it is there.

    Args:
        model: as `miga generate` takes it; no weights are read.
        texts: profiles, each `NAME` or `NAME:FIELD=VALUE,...`.
        num_frames: of the video; None: the model's own length.
        out: a file that ends in .html or .svg.

    Raises:
        UsageError: if there is no such file, profile or length.
        OutputError: if the file cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--out {out!r} is no .html or .svg file", "name one, as in --out plan.html")
    spec = load_spec(model)
    length = spec.default_num_frames if num_frames is None else num_frames
    drawings = [draw_plan(spec, parse_profile(text, spec), length) for text in texts]
    text = to_svg(drawings) if path.suffix.lower() == ".svg" else to_page(drawings, spec.name)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"--out {out!r} cannot be written: {error.strerror}", "name a file in a folder that is there"
        ) from error
    return drawings
