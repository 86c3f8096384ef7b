"""`miga convert`: weights in the layouts they are published in to a folder that the other commands take."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, Final

from jobs.commands.common import say_unless, show_values
from miga.errors import UsageError

_HELP: Final = (
    "weights as people have them (Wan2.1's own layout, ComfyUI's files, VideoCrafter2's) to a folder for --model"
)
_ABOUT: Final = (
    f"{_HELP}. Numbers are kept bit for bit, no code in a file is ever run, and the folder appears whole or not at all."
)
_PARTS: Final = ("transformer", "transformer_2", "vae", "text_encoder", "image_encoder")

GROUP: Final = "models and settings"
EXAMPLES: Final = (
    "miga convert Wan2.1-T2V-1.3B wan-1.3b  # a folder as Wan-AI publishes it",
    "miga convert --transformer wan2.1_t2v_1.3B_bf16.safetensors --vae wan_2.1_vae.safetensors "
    "--text-encoder umt5_xxl_fp16.safetensors wan-1.3b",
    "miga convert finetuned.safetensors Wan2.1-T2V-1.3B wan-finetuned  # one file in place of a folder's own",
    "miga convert Wan2.2-I2V-A14B wan2.2-i2v  # both transformers",
    "miga convert Wan2.1-I2V-14B-480P wan-i2v  # with CLIP's image encoder as it lies there",
    "miga convert model.ckpt videocrafter2",
    "miga convert --causal self-forcing self_forcing_dmd.pt Wan2.1-T2V-1.3B self-forcing-1.3b",
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
    group = convert.add_argument_group("parts of Wan by name")
    group.add_argument("--transformer", metavar="FILE", help="such as wan2.1_t2v_1.3B_bf16.safetensors, or a folder")
    group.add_argument("--vae", metavar="FILE", help="such as wan_2.1_vae.safetensors or Wan2.2_VAE.pth")
    group.add_argument("--text-encoder", metavar="FILE", help="such as umt5_xxl_fp16.safetensors")
    group.add_argument("--transformer-2", metavar="FILE", help="of Wan2.2's 14B models the one for low noise")
    group.add_argument(
        "--image-encoder", metavar="FILE", help="of Wan2.1's image models, such as clip_vision_h.safetensors"
    )
    convert.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="a folder, or a hub name (default: what lies beside Wan's weights, else google/umt5-xxl; "
        "of VideoCrafter2 openai/clip-vit-large-patch14)",
    )
    causal = convert.add_argument_group("causal weights over Wan2.1 (the first PATH is their file)")
    causal.add_argument(
        "--causal", metavar="PRESET", help="whose weights they are: self-forcing, longlive, rolling-forcing, ..."
    )
    causal.add_argument(
        "--entry", metavar="NAME", help="of the file's entries (default: generator_ema, else generator, else model)"
    )
    causal.add_argument("--merge-lora", metavar="FILE", help="a published LoRA over them, such as LongLive's lora.pt")
    convert.add_argument("--json", action="store_true", help="print for machines")
    convert.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from miga.backbones.registry import load_spec

    written = _convert(options)
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


def _convert(options: argparse.Namespace) -> dict[str, Any]:
    if options.causal is not None:
        return _convert_causal(options)
    if options.entry is not None or options.merge_lora is not None:
        raise UsageError("--entry and --merge-lora are for causal weights", "say whose they are by --causal PRESET")
    checkpoint = _videocrafter2_checkpoint(options)
    return _convert_wan(options) if checkpoint is None else _convert_videocrafter2(options, checkpoint)


def _convert_causal(options: argparse.Namespace) -> dict[str, Any]:
    from miga.backbones.wan.causal.convert import convert_causal

    if len(options.paths) < 2:
        raise UsageError(
            "--causal takes the published file and the model that it was trained from",
            f"miga convert --causal {options.causal} checkpoint.pt Wan2.1-T2V-1.3B OUT_DIR",
        )
    checkpoint, *base = options.paths
    return convert_causal(
        Path(os.path.expanduser(checkpoint)),
        base,
        options.out,
        options.causal,
        entry=options.entry,
        lora=None if options.merge_lora is None else Path(os.path.expanduser(options.merge_lora)),
        tokenizer=options.tokenizer,
        progress=say_unless(options.json),
    )


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
