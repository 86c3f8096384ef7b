"""`miga extend`: a longer video of a row that was made."""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from pipeline.terminal import show, show_json

GROUP: Final = "make videos"
EXAMPLES: Final = ("miga extend out/ 3f2a9c --num-frames 321",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    text = "a longer video of a row whose latents were kept ([run] keep_latents = true)"
    extend = commands.add_parser("extend", help=text, description=text)
    extend.add_argument("out", metavar="OUT", help="of the run")
    extend.add_argument("key", metavar="KEY", help="the row's, from the manifest; its beginning is enough")
    extend.add_argument("--num-frames", type=int, required=True, help="length of the longer video")
    extend.add_argument("--model", help="where it lies now; to be said where run.json names code or a download")
    extend.add_argument(
        "--trust", action="store_true", help="take all that run.json names: it is your own, or known to you"
    )
    extend.add_argument("--json", action="store_true", help="print the new row for machines")
    extend.add_argument("--quiet", action="store_true", help="no progress")
    extend.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from jobs.extension.make import extend_shown

    row = extend_shown(
        options.out,
        options.key,
        options.num_frames,
        model=options.model,
        trust=options.trust,
        quiet=options.quiet or options.json,
    )
    show_json(json.loads(row.to_json())) if options.json else show(f"{row.num_frames} frames: {row.uri}")
    return 0
