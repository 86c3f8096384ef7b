"""What several commands make of their options."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from miga.backbones.base import BackboneSpec
from miga.errors import OutputError, UsageError


def num_latents_of(spec: BackboneSpec, num_frames: int, option: str, hint: str) -> int:
    """Latents of a video of so many frames.

    Args:
        spec: the model.
        num_frames: the video's.
        option: how the user said it.
        hint: what to do about it.

    Raises:
        UsageError: if the model makes no such video.
    """
    try:
        return spec.num_latents(num_frames)
    except ValueError as error:
        raise UsageError(f"{option}: {error}", hint) from None


def write_out(file: Path, text: str) -> None:
    """Writes the file of an option `--out`, whole or not at all; one that is there is replaced.

    Raises:
        OutputError: if it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise OutputError(f"--out {file} cannot be written: {error.strerror}", "name a file in a folder") from error
    finally:
        with suppress(OSError):
            partial.unlink()
