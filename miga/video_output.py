"""What the Python API hands out: finished videos, and frames as they come.

Legend: F frames, H height, W width, C = 3 (RGB).
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import tempfile
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from miga.errors import OutputError, UsageError
from miga.video_config import VideoConfig

if TYPE_CHECKING:
    from miga.reflection import ReflectionTrace

OutputType: TypeAlias = Literal["np", "pil", "pt"]
"""What `frames` are: an array or a tensor of numbers from 0 to 1, or images of Pillow."""

DEFAULT_CRF: Final = 17
"""Constant quality of saved files, as of a run's."""
_NOTEBOOK_CRF: Final = 23
_NOTEBOOK_BYTES: Final = 32 << 20
"""A notebook keeps what it shows in its own file."""


def check_output_type(output_type: Any) -> OutputType:
    """What `frames` are to be.

    Raises:
        UsageError: if it is none of those there are.
    """
    if output_type in get_args(OutputType):
        known: OutputType = output_type
        return known
    if output_type == "latent":
        raise UsageError(
            "output_type 'latent' cannot be: latents are decoded as they are finished, and dropped",
            "take 'np', 'pil' or 'pt'; a run with keep_latents = true in [run] keeps them in files",
        )
    raise UsageError(f"output_type {output_type!r} is unknown", "take 'np', 'pil' or 'pt'")


@dataclass(frozen=True, eq=False, repr=False)
class LongVideo:
    """A finished video.

    Attributes:
        pixels: uint8 `[F, H, W, C]`, as they were decoded.
        fps: frames per second.
        num_calls: network calls it took (windows: a guided call counts once).
        trace: what self-reflection did.
        final_consistency: consistency of the finished latents, chunk by chunk.
        seed: that it was made from.
        output_type: what `frames` are.
    """

    pixels: npt.NDArray[np.uint8]
    fps: int
    num_calls: int
    trace: ReflectionTrace
    final_consistency: Sequence[float]
    seed: int = 0
    output_type: OutputType = "np"

    @cached_property
    def frames(self) -> Any:
        """The frames as diffusers' functions take them, by `output_type`.

        "np": a float32 array `[F, H, W, C]` from 0 to 1 (`VideoFrames`); "pt": a float32 tensor `[F, C, H, W]` from 0
        to 1; "pil": a list of F images. They are made when they are first asked for, and the numbers take four times
        the memory of `pixels`.
        """
        if self.output_type == "pil":
            from PIL import Image

            return [Image.fromarray(frame_HWC) for frame_HWC in self.pixels]
        if self.output_type == "pt":
            import torch

            return torch.from_numpy(self.pixels).permute(0, 3, 1, 2).contiguous().float().div_(255)
        return np.divide(self.pixels, np.float32(255), dtype=np.float32).view(VideoFrames)

    def save(self, path: str | Path, *, fps: float | None = None, crf: int = DEFAULT_CRF) -> Path:
        """Writes an MP4 (H.264, colours as BT.709), whole or not at all.

        Args:
            path: ending in .mp4; its folder is made, and a file that is there replaced.
            fps: frames per second; by default the model's.
            crf: constant quality, 0 to 51; lower is better and larger.

        Returns:
            The path.

        Raises:
            UsageError: if an argument cannot be.
            OutputError: if the file cannot be written there.
            WorkerError: if ffmpeg failed.
        """
        return _save(iter([self.pixels]), path, self.fps if fps is None else fps, crf)

    def __repr__(self) -> str:
        count, height, width, _ = self.pixels.shape
        return (
            f"LongVideo({count} frames of {height}x{width} at {self.fps} fps, {count / self.fps:.1f} s, "
            f"{self.num_calls} calls, seed {self.seed})"
        )

    def _repr_html_(self) -> str:
        """The video itself, for notebooks."""
        said = html.escape(repr(self))
        with tempfile.TemporaryDirectory() as folder:
            data = _save(iter([self.pixels]), Path(folder) / "video.mp4", self.fps, _NOTEBOOK_CRF).read_bytes()
        if len(data) > _NOTEBOOK_BYTES:
            return f"<p>{said}: too large to be shown in a notebook; <code>video.save('video.mp4')</code> writes it</p>"
        height, width = self.pixels.shape[1:3]
        shown = max(width, 256 if width < 128 else width)
        pixelated = "; image-rendering: pixelated" if width < 128 else ""
        source = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
        return (
            f'<figure><video controls loop muted playsinline width="{shown}" height="{round(height * shown / width)}" '
            f'style="max-width: 100%{pixelated}" src="{source}"></video><figcaption>{said}</figcaption></figure>'
        )


class VideoFrames(np.ndarray):
    """A video's frames, float32 `[F, H, W, C]` from 0 to 1: an array like any, but for one thing.

    In diffusers `frames` is a batch, and `frames[0]` the first video of it. Here a call makes one video, and its
    `frames[0]` is one frame: whoever goes through that as through a video is told so, where its rows would become
    frames.
    """

    def __getitem__(self, key: Any) -> Any:
        """As of any array; a single frame is a `VideoFrame`."""
        found = super().__getitem__(key)
        if self.ndim == 4 and isinstance(key, int | np.integer):
            return found.view(VideoFrame)
        return found


class VideoFrame(np.ndarray):
    """One frame of `VideoFrames`, float32 `[H, W, C]`: an array like any, but that its rows are not gone through."""

    def __iter__(self) -> Iterator[Any]:
        """Over the last dimensions as of any array.

        Raises:
            UsageError: for a whole frame.
        """
        if self.ndim == 3:
            raise UsageError(
                "this is one frame, not a video: a call makes one video here, not a batch, and `frames[0]` is its "
                "first frame",
                "write export_to_video(video.frames, ...), without [0]; rows of a frame are np.asarray(frame)'s",
            )
        return super().__iter__()


class FrameStream(Iterator[npt.NDArray[np.uint8]]):
    """Frames uint8 `[H, W, C]` of one video as they are finished; each can be taken once.

    Attributes:
        fps: frames per second.
    """

    def __init__(self, frames: Generator[npt.NDArray[np.uint8]], fps: int, *, is_endless: bool) -> None:
        self.fps = fps
        self._frames, self._is_endless = frames, is_endless

    def __next__(self) -> npt.NDArray[np.uint8]:
        return next(self._frames)

    def close(self) -> None:
        """Ends the video where it is, and the threads that make it."""
        self._frames.close()

    def mp4(self, *, fps: float | None = None, crf: int = DEFAULT_CRF) -> Generator[bytes]:
        """The frames that are still to come as a fragmented MP4, in pieces: for a file, or an HTTP response.

        Players show it while it is made, about a second of video at a time. Closing this ends the video too.

        Args:
            fps: frames per second; by default the model's.
            crf: see `LongVideo.save`.

        Raises:
            UsageError: if an argument cannot be.
            WorkerError: if ffmpeg failed.
            Whatever making the video raises.
        """
        rate = _rate(self.fps if fps is None else fps)
        _check_crf(crf)
        return self._mp4(rate, crf)

    def _mp4(self, fps: float, crf: int) -> Generator[bytes]:
        from miga.encoding import mp4_pieces

        with contextlib.closing(self):
            first = next(self, None)
            if first is None:
                return
            settings = _settings(first, crf)
            frames = (frame_HWC[None] for frame_HWC in _with_first(first, self))
            pieces = mp4_pieces(frames, fps=fps, settings=settings)
            with contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
                yield from pieces

    def save(self, path: str | Path, *, fps: float | None = None, crf: int = DEFAULT_CRF) -> Path:
        """Writes the frames that are still to come as `LongVideo.save` does, in memory that does not grow.

        Raises:
            UsageError: of a video without end; else as `LongVideo.save`.
        """
        if self._is_endless:
            raise UsageError(
                "a video without end is never finished", "say num_frames=..., or write the pieces of mp4()"
            )
        with contextlib.closing(self):
            return _save((frame_HWC[None] for frame_HWC in self), path, self.fps if fps is None else fps, crf)


def _save(chunks_FHWC: Iterator[npt.NDArray[np.uint8]], path: str | Path, fps: float, crf: int) -> Path:
    from miga.encoding import write_video

    place = Path(path).expanduser()
    if place.suffix.lower() != ".mp4":
        raise UsageError(f"{str(path)!r} does not end in .mp4, and MP4s are what is written", "call it video.mp4")
    rate = _rate(fps)
    _check_crf(crf)
    first = next(chunks_FHWC)
    settings = _settings(first[0], crf)
    try:
        write_video(_with_first(first, chunks_FHWC), place, fps=rate, settings=settings)
    except OSError as error:
        raise OutputError(
            f"{place} cannot be written: {error.strerror or error}", "name a file in a folder that you may write to"
        ) from error
    return place


def _with_first(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _settings(frame_HWC: npt.NDArray[np.uint8], crf: int) -> VideoConfig:
    """Of a run, but that frames of odd sizes keep their colours' full resolution, which half of it cannot be had of."""
    is_odd = frame_HWC.shape[0] % 2 or frame_HWC.shape[1] % 2
    return VideoConfig(crf=crf, pixel_format="yuv444p" if is_odd else "yuv420p")


def _rate(fps: Any) -> float:
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not math.isfinite(fps) or not 0 < fps <= 1000:
        raise UsageError(f"fps {fps!r} cannot be", "take frames per second, above 0 and at most 1000")
    return float(fps)


def _check_crf(crf: Any) -> None:
    if type(crf) is not int or not 0 <= crf <= 51:
        raise UsageError(f"crf {crf!r} cannot be", "take a whole number from 0 (without loss) to 51")
