"""What the specs of Wan and VideoCrafter2 have in common: names known without files, their folder, sizes of frames."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from miga.backbones.base import BackboneSpec
from miga.backbones.loading import check_all_files, local_path, resolve_folder
from miga.errors import ModelError


def is_published(name_or_dir: str | Path, published: Container[str]) -> bool:
    """Whether a name is one of those that are known without files, and no folder here is called so."""
    return str(name_or_dir) in published and not os.path.isdir(name_or_dir)


def spec_folder(name_or_dir: str | Path, revision: str | None, json_files: Sequence[str]) -> Path:
    """The folder that a spec is read from. Weights that lie there are looked over: whether they are all there, whole.

    Raises:
        ModelError: if the model is missing, or its weights were only half copied.
    """
    folder = resolve_folder(name_or_dir, revision, json_files)
    if folder == local_path(str(name_or_dir)):  # of the hub only these files are here yet
        check_all_files(folder)
    return folder


def why_no_multiple(side: str, pixels: int, step: int, reason: str) -> str | None:
    """What is wrong with a side of a frame that is to be a multiple, with the nearest that are; None if it is one.

    Args:
        side: "height" or "width".
        pixels: of that side.
        step: of which it is to be a multiple.
        reason: why.
    """
    below = pixels // step * step
    if below and below == pixels:
        return None
    nearest = f"{below} or {below + step}" if below else f"{step}"
    return f"{side} {pixels} is no multiple of {step} ({reason}); nearest is {nearest}"


def why_no_default_length(spec: BackboneSpec) -> str | None:
    """What is wrong with the length of a video where none is asked for, with the nearest; None if it can be made."""
    try:
        spec.num_latents(spec.default_num_frames)
    except ValueError as error:
        return str(error)
    return None


def resized(spec: BackboneSpec, height: int, width: int, why_not: str | None, forward_flops: float) -> BackboneSpec:
    """The spec for frames of another size.

    Args:
        spec: of the model.
        height: in pixels.
        width: the same.
        why_not: what is wrong with that size, with the nearest that the model can make; None if nothing is.
        forward_flops: of a window of that size.

    Raises:
        ModelError: if the model cannot make it.
    """
    if why_not:
        raise ModelError(f"{spec.name!r} cannot make that size: {why_not}", hint="choose such a height and width")
    cell = spec.height // spec.latent_height
    return replace(
        spec,
        height=height,
        width=width,
        latent_height=height // cell,
        latent_width=width // cell,
        forward_flops=forward_flops,
    )
