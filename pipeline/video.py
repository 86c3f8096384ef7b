"""What MP4s hold and whether settings make any: their frames, posters, codecs. `miga/encoding.py` writes them.

Legend: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Final

import imageio_ffmpeg
import numpy as np

from miga.encoding import (
    AS_MP4,
    Frames,
    VideoFile,
    VideoWriter,
    check_size,
    count_frames,
    is_rgb,
    output_options,
    run_ffmpeg,
    space_fault,
    write_video,
)
from miga.errors import ConfigError, WorkerError
from miga.video_config import VideoConfig
from pipeline.config import settings_of_codec

__all__ = [
    "Frames",
    "VideoFile",
    "VideoWriter",
    "check_codec",
    "check_size",
    "count_frames",
    "encoders",
    "poster_frame",
    "poster_jpeg",
    "read_form",
    "read_frames",
    "space_fault",
    "write_video",
]

_USUAL_CODECS: Final = (
    "libx264",
    "libx265",
    "libsvtav1",
    "libaom-av1",
    "libvpx-vp9",
    "h264_nvenc",
    "hevc_nvenc",
    "mpeg4",
)


def check_codec(settings: VideoConfig, height: int = 64, width: int = 64) -> None:
    """Whether the settings make a file, found out by making a tiny one, before any time is spent on frames.

    Args:
        settings: codec and quality.
        height: of the frames to come.
        width: of the frames to come.

    Raises:
        ConfigError: if not; it names the codecs that there are.
    """
    check_size(settings, height, width)
    if settings.codec not in encoders():
        raise ConfigError(
            f"[video] codec {settings.codec!r} is no video encoder of this ffmpeg",
            f"use one of {', '.join(_working_codecs())}",
        )
    if settings.pixel_format.startswith("yuvj"):
        raise ConfigError(
            f"[video] pixel_format {settings.pixel_format!r} is of full range, which not all players know",
            f"set pixel_format = 'yuv{settings.pixel_format[4:]}'",
        )
    with tempfile.TemporaryDirectory() as folder:
        source = ["-v", "error", "-f", "lavfi", "-i", f"color=size={width}x{height}:rate=8", "-frames:v", "2"]
        chosen = ["-c:v", settings.codec, "-pix_fmt", settings.pixel_format, *output_options(settings)]
        done = run_ffmpeg([*source, *chosen, str(Path(folder) / "trial.mp4")])
    if done.returncode:
        raise _no_mp4(settings, _first_fault(done.stderr))
    if fault := _colour_fault(settings):
        raise ConfigError(*fault)


def _no_mp4(settings: VideoConfig, why: str) -> ConfigError:
    preset = "" if settings.preset is None else "leave preset to the codec: preset = 'none'; or "
    return ConfigError(
        f"[video] codec {settings.codec!r} with crf {settings.crf}, preset {settings.preset!r}, pixel_format "
        f"{settings.pixel_format!r} makes no MP4: {why}",
        f"{preset}codec = 'libx264', preset = 'veryfast', pixel_format = 'yuv420p' works everywhere",
    )


def _first_fault(log: bytes) -> str:
    lines = (line.strip() for line in log.decode(errors="replace").splitlines())
    return next((line for line in lines if line and "[info]" not in line), "ffmpeg failed")


def usual_codecs() -> tuple[str, ...]:
    """Encoders that people name, whether or not this ffmpeg has them."""
    return _USUAL_CODECS


def _working_codecs() -> list[str]:
    """Of the usual codecs those that make a file on this machine."""
    known = [name for name in _USUAL_CODECS if name in encoders()]
    return [name for name in known if _colour_fault(settings_of_codec(name)) is None]


_PATCHES: Final = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[255, 255, 255], [128, 128, 128], [200, 0, 0]]], np.uint8
)
_PATCH_SIZE: Final = 32
_TRIAL_CRF: Final = 17
_MOST_OFF: Final = 5
"""By which colours of a trial may be off; another matrix than the one that is said shifts them by 17 and more."""


@cache
def _colour_fault(settings: VideoConfig) -> tuple[str, str] | None:
    """What is wrong with the colours that come back from a file of these settings, and what to do; None if nothing."""
    patches_HWC = _PATCHES.repeat(_PATCH_SIZE, 0).repeat(_PATCH_SIZE, 1)
    trial = replace(settings, crf=None if settings.crf is None else min(settings.crf, _TRIAL_CRF))
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = write_video([patches_HWC[None].repeat(2, 0)], Path(folder) / "trial.mp4", fps=8, settings=trial)
        except WorkerError as error:
            fault = _no_mp4(settings, error.message)
            return fault.message, fault.hint
        is_other = not _is_of_format(made.path, settings.pixel_format)
        frame_HWC = poster_frame(made.path)
    if is_other:
        return (
            f"[video] codec {settings.codec!r} cannot write pixel_format {settings.pixel_format!r}",
            "set pixel_format = 'yuv420p', or choose another codec",
        )
    centres = slice(_PATCH_SIZE // 2, None, _PATCH_SIZE)
    off = int(np.abs(frame_HWC[centres, centres].astype(int) - _PATCHES).max())
    if off <= _MOST_OFF:
        return None
    return (
        f"[video] codec {settings.codec!r} with pixel_format {settings.pixel_format!r} changes colours by {off} of 255",
        "use pixel_format = 'yuv420p', or another codec",
    )


_SAME_FORMATS: Final = {
    "nv12": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "p010": "yuv420p10",
    "p210": "yuv422p10",
}
"""Layouts in memory of what files have in one."""


def _is_of_format(path: Path, wanted: str) -> bool:
    """Whether ffmpeg wrote the pixel format asked for; where an encoder has not got it, it takes the nearest."""
    log = run_ffmpeg([*AS_MP4, "-i", str(path)]).stderr.decode(errors="replace")
    found = re.search(r"Video: .*?\), (\w+)[(,]", log)
    there = found[1] if found else ""
    if is_rgb(wanted):
        return is_rgb(there)
    plain = wanted.removesuffix("le")
    return there.removesuffix("le") == _SAME_FORMATS.get(plain, plain)


@cache
def encoders() -> frozenset[str]:
    """Names of the video encoders that ffmpeg has."""
    listing = run_ffmpeg(["-encoders"]).stdout.decode(errors="replace")
    words = (line.split() for line in listing.splitlines())
    return frozenset(w[1] for w in words if len(w) > 2 and len(w[0]) == 6 and w[0].startswith("V") and w[1] != "=")


def read_form(path: str | Path) -> tuple[float, int, int]:
    """Frames per second, height and width of a file that decodes."""
    source = imageio_ffmpeg.read_frames(str(path), input_params=list(AS_MP4))
    try:
        about = next(source)
        width, height = about["size"]
        return float(about["fps"]), int(height), int(width)
    finally:
        source.close()


def read_frames(path: str | Path) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of a file, one at a time."""
    source = imageio_ffmpeg.read_frames(
        str(path), pix_fmt="rgb24", input_params=list(AS_MP4), output_params=["-fps_mode", "passthrough"]
    )
    try:
        width, height = next(source)["size"]
        for data in source:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    finally:
        source.close()


def poster_frame(path: str | Path) -> Frames:
    """The first frame `[H, W, 3]` of a file.

    Raises:
        WorkerError: if it has none.
    """
    with contextlib.closing(read_frames(path)) as frames:  # type: ignore[type-var]  # a generator
        for frame_HWC in frames:
            return frame_HWC
    raise WorkerError(f"{Path(path).name} holds no frames")


def poster_jpeg(path: str | Path, width: int | None = None) -> bytes:
    """The first frame of a file as a JPEG, scaled to `width` if given.

    Raises:
        WorkerError: if it has none.
    """
    scale = ["-vf", f"scale={width}:-2"] if width else []
    done = run_ffmpeg(
        ["-v", "error", *AS_MP4, "-i", str(path), "-frames:v", "1", *scale, "-q:v", "3", "-f", "mjpeg", "-"]
    )
    if done.returncode or not done.stdout:
        raise WorkerError(f"{Path(path).name} holds no frames: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout


STRIP_TILES: Final = 6
"""Frames of a contact strip."""


def contact_strip(path: str | Path, num_frames: int, height: int = 120) -> bytes:
    """Frames of a file side by side as one JPEG: the first, the last, and others evenly between them.

    Args:
        path: of the file.
        num_frames: that it holds; with fewer than `STRIP_TILES`, some of them stand there twice.
        height: of the strip, in pixels; smaller frames are not enlarged.

    Raises:
        WorkerError: if it has no frames.
    """
    wanted = [round(index * (num_frames - 1) / (STRIP_TILES - 1)) for index in range(STRIP_TILES)]
    chosen = "+".join(f"eq(n\\,{frame})" for frame in sorted(set(wanted)))
    doubled = ""
    for frame in sorted(set(wanted)) if len(set(wanted)) < STRIP_TILES else ():
        # `start` counts the frames that have come, the one that is doubled included
        doubled += f"loop=loop={wanted.count(frame) - 1}:size=1:start={wanted.index(frame) + 1},"
    filters = f"select={chosen},{doubled}scale=-2:'min(ih,{height})',tile={STRIP_TILES}x1"
    done = run_ffmpeg(
        [
            *("-v", "error", *AS_MP4, "-threads", "1", "-i", str(path), "-an", "-vf", filters),
            *("-fps_mode", "passthrough", "-frames:v", "1", "-q:v", "4", "-f", "mjpeg", "-"),
        ]
    )
    if done.returncode or not done.stdout:
        raise WorkerError(f"{Path(path).name} holds no frames: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout
