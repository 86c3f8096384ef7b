"""`miga convert`: VideoCrafter2's published checkpoint to a folder that the other commands take."""

from __future__ import annotations

from typing import Any

from miga.backbones.registry import load_spec
from miga.backbones.videocrafter2.convert import TOKENIZER, convert_checkpoint


def convert(checkpoint: str, out: str, tokenizer: str | None = None) -> dict[str, Any]:
    """Converts, and reads what was written back as a model.

    Args:
        checkpoint: `model.ckpt`.
        out: the folder to make.
        tokenizer: a folder or hub name of CLIP's tokenizer; by default OpenAI's on the hub.

    Returns:
        What `miga convert` prints.

    Raises:
        ModelError, OutputError: see `convert_checkpoint`.
    """
    written = convert_checkpoint(checkpoint, out, tokenizer=tokenizer or TOKENIZER)
    spec = load_spec(written["folder"])
    return {
        "folder": written["folder"],
        "revision": spec.revision,
        "clip": f"{spec.window} frames of {spec.width} x {spec.height}",
        **{
            name: f"{count} tensors, {written['bytes'][name] / 1e6:,.0f} MB"
            for name, count in written["tensors"].items()
        },
        "left out": f"{written['left_out']} tensors that sampling does not need",
    }
