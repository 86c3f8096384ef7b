"""Frames to an MP4 file and back, through the ffmpeg that imageio-ffmpeg brings along.

Frames are written as they come; none is held. A file is finished under another name, read back, and only then given its
own: a killed ffmpeg leaves files that nothing decodes, and a killed parent leaves valid ones that are too short.
Equal frames and settings give equal bytes, on any number of cores.

Legend: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from miga.errors import ConfigError, OutputError, RowError, WorkerError
from pipeline.config import VideoConfig

Frames = npt.NDArray[np.uint8]

_THREADS: Final = 4
"""Fixed, because x264's output depends on it."""

_LOW_SPACE_BYTES: Final = 16 << 20
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


@dataclass(frozen=True)
class VideoFile:
    """A finished file.

    Attributes:
        path: where it is.
        bytes: its size.
        sha256: of its content, in hex.
        num_frames: as counted by decoding it.
        fps: frames per second.
        height, width: pixels.
        duration_s: `num_frames / fps`.
        encode_s: time spent on writing and checking it, without waiting for frames.
    """

    path: Path
    bytes: int
    sha256: str
    num_frames: int
    fps: float
    height: int
    width: int
    duration_s: float
    encode_s: float


def write_video(
    chunks_FHWC: Iterable[Frames],
    path: str | Path,
    *,
    fps: float,
    settings: VideoConfig | None = None,
    num_frames: int | None = None,
) -> VideoFile:
    """Writes the frames of `chunks_FHWC`, as they come, to a file; whatever goes wrong, none is left at `path`.

    Args:
        chunks_FHWC: arrays `[F, H, W, 3]`; F may differ, H and W may not.
        path: a local file, ending in .mp4; its folder is made.
        fps: frames per second.
        settings: codec and quality.
        num_frames: how many there must be in all; None takes what comes.

    Raises:
        RowError: if there are no frames, or more or fewer than there must be.
        ConfigError: if the frames' size does not fit the pixel format.
        OutputError: if there is no space left.
        WorkerError: if ffmpeg failed.
    """
    with VideoWriter(path, fps=fps, settings=settings, num_frames=num_frames) as writer:
        for chunk_FHWC in chunks_FHWC:
            writer.write(chunk_FHWC)
        return writer.finish()


class VideoWriter:
    """The same, frame by frame: a context manager that leaves no file behind unless `finish` was reached."""

    def __init__(
        self, path: str | Path, *, fps: float, settings: VideoConfig | None = None, num_frames: int | None = None
    ) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.partial.mp4")
        self._fps = fps
        self._settings = settings or VideoConfig()
        self._expected = num_frames
        self._num_frames = 0
        self._size_HW: tuple[int, int] | None = None
        self._sink: Any = None
        self._encode_s = 0.0

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(is_wanted=False)
        self._partial.unlink(missing_ok=True)

    def write(self, frames_FHWC: Frames) -> None:
        """Adds frames `[F, H, W, 3]`; none is fine.

        Raises:
            ValueError: if they are no such frames, or of another size than those before.
        """
        started_s = time.perf_counter()
        if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[3] != 3:
            raise ValueError(f"frames must be uint8 [F, H, W, 3], not {frames_FHWC.dtype} {frames_FHWC.shape}")
        size_HW = (int(frames_FHWC.shape[1]), int(frames_FHWC.shape[2]))
        if self._size_HW is None:
            self._open(size_HW)
        if size_HW != self._size_HW:
            raise ValueError(f"frames of {size_HW} after frames of {self._size_HW}")
        with self._faults():
            for frame_HWC in frames_FHWC:
                self._sink.send(np.ascontiguousarray(frame_HWC).data)
        self._num_frames += len(frames_FHWC)
        self._encode_s += time.perf_counter() - started_s

    def finish(self) -> VideoFile:
        """Closes the file, decodes it, and gives it its name.

        Raises:
            RowError, OutputError, WorkerError: as `write_video`.
        """
        started_s = time.perf_counter()
        if self._size_HW is None or not self._num_frames:
            raise RowError("no frames came to make a video of")
        if self._expected is not None and self._num_frames != self._expected:
            raise RowError(f"{self._num_frames} frames came where {self._expected} were asked for")
        with self._faults():
            self._close(is_wanted=True)
        with _space_faults(self._partial):
            counted = count_frames(self._partial)
            if counted != self._num_frames:
                raise WorkerError(f"the file holds {counted} frames, not the {self._num_frames} written")
        size = self._partial.stat().st_size
        digest = _sha256(self._partial)
        os.replace(self._partial, self._path)
        height, width = self._size_HW
        return VideoFile(
            path=self._path,
            bytes=size,
            sha256=digest,
            num_frames=self._num_frames,
            fps=self._fps,
            height=height,
            width=width,
            duration_s=self._num_frames / self._fps,
            encode_s=self._encode_s + time.perf_counter() - started_s,
        )

    def _open(self, size_HW: tuple[int, int]) -> None:
        check_size(self._settings, *size_HW)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._size_HW = size_HW
        with self._faults():
            self._sink = _ffmpeg_sink(self._partial, size_HW, self._fps, self._settings)

    def _close(self, is_wanted: bool) -> None:
        """Ends ffmpeg; its faults matter only if the file is wanted."""
        sink, self._sink = self._sink, None
        if sink is not None:
            with contextlib.nullcontext() if is_wanted else contextlib.suppress(Exception):
                sink.close()

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """A bad codec, a full disk and a crash all show as a broken pipe."""
        with _space_faults(self._partial):
            try:
                yield
            except OSError as error:
                log = " ".join(str(error).split())[-500:]
                raise WorkerError(f"ffmpeg failed while writing {self._path.name}: {log}") from error


def _ffmpeg_sink(path: Path, size_HW: tuple[int, int], fps: float, settings: VideoConfig) -> Any:
    sink = imageio_ffmpeg.write_frames(
        path,
        (size_HW[1], size_HW[0]),
        fps=fps,
        codec=settings.codec,
        pix_fmt_in="rgb24",
        pix_fmt_out=settings.pixel_format,
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="error",
        output_params=_output_options(settings),
    )
    sink.send(None)
    return sink


def _output_options(settings: VideoConfig) -> list[str]:
    options = ["-threads", str(_THREADS), "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    options += ["-movflags", "+faststart"]
    if settings.pixel_format.startswith("yuv"):  # said outright: untagged, players guess by size, and colours shift
        options += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-color_range", "tv"]
        options += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    if settings.crf is not None:
        options += ["-crf", str(settings.crf)]
    if settings.preset is not None:
        options += ["-preset", settings.preset]
    return options


@contextlib.contextmanager
def _space_faults(path: Path) -> Iterator[None]:
    """What goes wrong on a full disk is the disk's fault."""
    try:
        yield
    except WorkerError as error:
        if (fault := space_fault(path.parent, error)) is not error:
            raise fault from error
        raise


def space_fault(folder: Path, error: WorkerError) -> WorkerError | OutputError:
    """What is to be said of an error in a folder for videos in the making: that its disk is full, if it is."""
    free = shutil.disk_usage(folder).free
    if free >= _LOW_SPACE_BYTES:
        return error
    return OutputError(
        f"{folder} on {platform.node()}: no space left to write a video ({free} bytes)",
        "free some space, then run the same command again: it resumes",
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
    known = encoders()
    if settings.codec not in known:
        usual = [name for name in _USUAL_CODECS if name in known]
        raise ConfigError(
            f"[video] codec {settings.codec!r} is no video encoder of this ffmpeg", f"use one of {', '.join(usual)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = ["-v", "error", "-f", "lavfi", "-i", f"color=size={width}x{height}:rate=8", "-frames:v", "2"]
        chosen = ["-c:v", settings.codec, "-pix_fmt", settings.pixel_format, *_output_options(settings)]
        done = _run_ffmpeg([*source, *chosen, str(Path(folder) / "trial.mp4")])
    if done.returncode:
        log = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(
            f"[video] codec {settings.codec!r} with crf {settings.crf}, preset {settings.preset!r}, pixel_format "
            f"{settings.pixel_format!r} makes no MP4: {log[0] if log else 'ffmpeg failed'}",
            "codec = 'libx264', preset = 'veryfast', pixel_format = 'yuv420p' works everywhere",
        )


def check_size(settings: VideoConfig, height: int, width: int) -> None:
    """Whether frames of that size can be written in the pixel format.

    Raises:
        ConfigError: if not, as odd sizes with half-resolution colour.
    """
    odd = [f"{name} {n}" for name, n in (("height", height), ("width", width)) if n % 2]
    if odd and "420" in settings.pixel_format:
        raise ConfigError(
            f"[video] pixel_format {settings.pixel_format!r} needs even sizes; frames have {' and '.join(odd)}",
            "set pixel_format = 'yuv444p'",
        )


@cache
def encoders() -> frozenset[str]:
    """Names of the video encoders that ffmpeg has."""
    listing = _run_ffmpeg(["-encoders"]).stdout.decode(errors="replace")
    words = (line.split() for line in listing.splitlines())
    return frozenset(w[1] for w in words if len(w) > 2 and len(w[0]) == 6 and w[0].startswith("V") and w[1] != "=")


def count_frames(path: str | Path) -> int:
    """How many frames the file decodes to.

    Raises:
        WorkerError: if it does not decode to its end.
    """
    options = ["-v", "error", "-xerror", "-threads", "2", "-i", str(path), "-map", "0:v:0", "-f", "null"]
    done = _run_ffmpeg([*options, "-progress", "pipe:1", "-"])
    counts = [line for line in done.stdout.decode().splitlines() if line.startswith("frame=")]
    if done.returncode or not counts:
        log = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise WorkerError(f"{Path(path).name} does not decode: {log}")
    return int(counts[-1].removeprefix("frame="))


def read_form(path: str | Path) -> tuple[float, int, int]:
    """Frames per second, height and width of a file that decodes."""
    source = imageio_ffmpeg.read_frames(str(path))
    try:
        about = next(source)
        width, height = about["size"]
        return float(about["fps"]), int(height), int(width)
    finally:
        source.close()


def read_frames(path: str | Path) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of a file, one at a time."""
    source = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24", output_params=["-fps_mode", "passthrough"])
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
    done = _run_ffmpeg(["-v", "error", "-i", str(path), "-frames:v", "1", *scale, "-q:v", "3", "-f", "mjpeg", "-"])
    if done.returncode or not done.stdout:
        raise WorkerError(f"{Path(path).name} holds no frames: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout


def _run_ffmpeg(options: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
