"""How frames become a file: what a config says of it, and the Python API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from pydantic import ConfigDict, Field

_Name: TypeAlias = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How frames become a file.

    Attributes:
        codec: an encoder of ffmpeg.
        crf: constant quality, lower is better; None leaves it to the codec. A config that names another codec and no
            `crf` gets None where that codec has none (nvenc, mpeg4).
        preset: the codec's trade of time for size; None leaves it to the codec. A config that names another codec and
            no `preset` gets None, but for libx265, whose presets are those of libx264.
        pixel_format: yuv420p plays everywhere and needs even sizes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    codec: _Name = "libx264"
    crf: Annotated[int, Field(ge=0, le=63)] | None = 17
    preset: _Name | None = "veryfast"
    pixel_format: _Name = "yuv420p"
