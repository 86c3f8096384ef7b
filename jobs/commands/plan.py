"""`miga plan`: a drawing of what a profile does."""

from __future__ import annotations

import argparse
from typing import Any, Final

from pipeline.terminal import show

GROUP: Final = "models and settings"
EXAMPLES: Final = ("miga plan --profile paper --against fifo --out plan.html",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    plan = commands.add_parser("plan", help="draw what a profile does, pass by pass")
    profile = "NAME[:FIELD=VALUE,...]"
    plan.add_argument("--profile", action="append", metavar=profile, help="one or several (default: paper)")
    plan.add_argument("--against", action="append", default=[], metavar=profile, help="another, drawn beside it")
    plan.add_argument("--model", default="sprites", help="as `miga generate` takes it (default: sprites)")
    plan.add_argument("--num-frames", type=int, help="length of the video (default: the model's)")
    plan.add_argument("--out", required=True, metavar="FILE", help="ends in .html or .svg; it is replaced")
    plan.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.profiles.drawing import draw

    texts = [*(options.profile or ["paper"]), *options.against]
    for drawing in draw(options.model, texts, options.num_frames, options.out):
        show(f"{drawing.title}: {drawing.num_latents} latents, {drawing.count.total} calls")
    show(f"drawn: {options.out}")
    return 0
