"""What a profile does pass by pass, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.profiles.choice import parse_profile
from jobs.shared.options import write_out
from miga.backbones.base import BackboneSpec
from miga.backbones.registry import load_spec
from miga.config import SamplerConfig
from miga.errors import UsageError
from miga.profiles import default_num_frames, why_no_length
from pipeline.plan_drawing import Drawing, draw_plan, to_page, to_svg


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
    file = Path(out)
    suffix = file.suffix.lower()
    if suffix not in (".html", ".svg"):
        raise UsageError(f"--out {out!r} is no .html or .svg file", "name one, as in --out plan.html")
    spec = load_spec(model)
    configs = [parse_profile(text, spec) for text in texts]
    drawings = [draw_plan(spec, config, _num_latents(spec, config, num_frames)) for config in configs]
    write_out(file, to_svg(drawings) if suffix == ".svg" else to_page(drawings, spec.name))
    return drawings


def _num_latents(spec: BackboneSpec, config: SamplerConfig, num_frames: int | None) -> int:
    length = default_num_frames(config, spec) if num_frames is None else num_frames
    if reason := why_no_length(config, spec, length):
        raise UsageError(f"--num-frames: {reason}", "give one of these lengths")
    return spec.num_latents(length)
