"""`miga convert`: VideoCrafter2's published checkpoint to a folder that the other commands take."""

from __future__ import annotations

import argparse
from typing import Any, Final

from jobs.commands.common import show_values

GROUP: Final = "models and settings"
EXAMPLES: Final = ("miga convert model.ckpt videocrafter2/",)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    convert = commands.add_parser("convert", help="VideoCrafter2's model.ckpt to a folder that --model takes")
    convert.add_argument("checkpoint", metavar="CKPT", help="model.ckpt; no code in it is ever run")
    convert.add_argument("out", metavar="OUT_DIR", help="the folder to make; it must not exist")
    convert.add_argument("--tokenizer", help="CLIP's: a folder, or a hub name (default: openai/clip-vit-large-patch14)")
    convert.add_argument("--json", action="store_true", help="print for machines")
    convert.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from miga.backbones.registry import load_spec
    from miga.backbones.videocrafter2.convert import TOKENIZER, convert_checkpoint

    written = convert_checkpoint(options.checkpoint, options.out, tokenizer=options.tokenizer or TOKENIZER)
    spec = load_spec(written["folder"])  # what was written, read back as a model
    values = {
        "folder": written["folder"],
        "revision": spec.revision,
        "clip": f"{spec.window} frames of {spec.width} x {spec.height}",
        **{
            name: f"{count} tensors, {written['bytes'][name] / 1e6:,.0f} MB"
            for name, count in written["tensors"].items()
        },
        "left out": f"{written['left_out']} tensors that sampling does not need",
    }
    show_values(values, options.json)
    return 0
