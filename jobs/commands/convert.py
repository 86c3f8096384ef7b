"""`miga convert`: weights in the layouts they are published in to a folder that the other commands take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

from jobs.commands.common import say_unless, show_values

_HELP: Final = (
    "weights as people have them (Wan2.1's own layout, ComfyUI's files, VideoCrafter2's) to a folder for --model"
)
_ABOUT: Final = (
    f"{_HELP}. Numbers are kept bit for bit, no code in a file is ever run, and the folder appears whole or not at all."
)
_PARTS: Final = ("transformer", "vae", "text_encoder")

GROUP: Final = "models and settings"
EXAMPLES: Final = (
    "miga convert Wan2.1-T2V-1.3B wan-1.3b  # a folder as Wan-AI publishes it",
    "miga convert --transformer wan2.1_t2v_1.3B_bf16.safetensors --vae wan_2.1_vae.safetensors "
    "--text-encoder umt5_xxl_fp16.safetensors wan-1.3b",
    "miga convert finetuned.safetensors Wan2.1-T2V-1.3B wan-finetuned  # one file in place of a folder's own",
    "miga convert model.ckpt videocrafter2",
)


def add(commands: Any) -> None:
    """Adds the command and its options."""
    convert = commands.add_parser(
        "convert",
        help=_HELP,
        description=_ABOUT,
    )
    convert.add_argument(
        "paths", metavar="PATH", nargs="*", help="files or folders; what is in them is recognised by its tensors"
    )
    convert.add_argument("out", metavar="OUT_DIR", help="the folder to make; it must not exist")
    group = convert.add_argument_group("parts of Wan2.1 by name")
    group.add_argument("--transformer", metavar="FILE", help="such as wan2.1_t2v_1.3B_bf16.safetensors, or a folder")
    group.add_argument("--vae", metavar="FILE", help="such as wan_2.1_vae.safetensors or Wan2.1_VAE.pth")
    group.add_argument("--text-encoder", metavar="FILE", help="such as umt5_xxl_fp16.safetensors")
    convert.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="a folder, or a hub name (default: what lies beside Wan's weights, else google/umt5-xxl; "
        "of VideoCrafter2 openai/clip-vit-large-patch14)",
    )
    convert.add_argument("--json", action="store_true", help="print for machines")
    convert.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from miga.backbones.registry import load_spec

    checkpoint = _videocrafter2_checkpoint(options)
    written = _convert_wan(options) if checkpoint is None else _convert_videocrafter2(options, checkpoint)
    spec = load_spec(written["folder"])  # what was written, read back as a model
    values = {
        "folder": written["folder"],
        "revision": spec.revision,
        "clip": f"{spec.num_frames(spec.window)} frames of {spec.width} x {spec.height}",
        **{
            name: f"{count} tensors, {written['bytes'][name] / 1e6:,.0f} MB"
            for name, count in written["tensors"].items()
        },
        **{name: written[name] for name in ("files", "tokenizer") if name in written},
        "left out": f"{written['left_out']} tensors that sampling does not need",
    }
    show_values(values, options.json)
    return 0


def _videocrafter2_checkpoint(options: argparse.Namespace) -> Path | None:
    """The file, if VideoCrafter2's checkpoint is all that was named: by its name, or by what is in it."""
    from miga.backbones.videocrafter2.checkpoint import is_checkpoint

    if len(options.paths) != 1 or any(getattr(options, part) for part in _PARTS):
        return None
    path = Path(os.path.expanduser(options.paths[0]))
    if os.path.isdir(path):
        inside = [file for file in sorted(path.glob("*.ckpt")) if not file.name.startswith(".")]
        return inside[0] if len(inside) == 1 and not list(path.glob("*.json")) else None
    return path if is_checkpoint(path) else None


def _convert_videocrafter2(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    from miga.backbones.videocrafter2.convert import TOKENIZER, convert_checkpoint

    return convert_checkpoint(checkpoint, options.out, tokenizer=options.tokenizer or TOKENIZER)


def _convert_wan(options: argparse.Namespace) -> dict[str, Any]:
    from miga.backbones.wan.convert import convert_wan

    return convert_wan(
        options.paths,
        options.out,
        parts={part: file for part in _PARTS if (file := getattr(options, part)) is not None},
        tokenizer=options.tokenizer,
        progress=say_unless(options.json),
    )
