"""Frames to an MP4 file and back, through the ffmpeg that imageio-ffmpeg brings along.

Frames are written as they come; none is held. A file is finished under another name, read back, and only then given its
own: a killed ffmpeg leaves files that nothing decodes, and a killed parent leaves valid ones that are too short.
Equal frames and settings give equal bytes, on any number of cores.

Colours are BT.709 in limited range, and every file says so, in its stream and in its container, of matrix, primaries
and transfer: players guess what a file does not say, each in its own way. RGB pixel formats say that they are RGB.

Legend: F frames, H height, W width; frames are uint8 RGB.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from miga.errors import ConfigError, OutputError, RowError, WorkerError
from pipeline.config import VideoConfig, settings_of_codec

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
    os.environ.setdefault("SVT_LOG", "1")  # errors alone: SVT-AV1 writes to the terminal past ffmpeg
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
    if _is_rgb(settings.pixel_format):
        options += ["-vf", f"format={settings.pixel_format},{_SAY_RGB}", "-color_range", "pc"]
    else:  # `setparams` comes last: encoders take what frames say over what options say
        options += ["-vf", f"scale=out_color_matrix=bt709:out_range=tv,{_SAY_BT709}", "-color_range", "tv"]
        options += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    if "hevc" in settings.codec or settings.codec in ("libx265", "libkvazaar"):
        options += ["-tag:v", "hvc1"]  # with the parameter sets in the header, which QuickTime and Safari ask for
    if settings.crf is not None:
        options += ["-crf", str(settings.crf)]
    if settings.preset is not None:
        options += ["-preset", settings.preset]
    return options


_SAY_BT709: Final = "setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
_SAY_RGB: Final = "setparams=range=pc:color_primaries=bt709:color_trc=bt709:colorspace=gbr"


def _is_rgb(pixel_format: str) -> bool:
    return any(name in pixel_format for name in ("rgb", "bgr", "gbr"))


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
        chosen = ["-c:v", settings.codec, "-pix_fmt", settings.pixel_format, *_output_options(settings)]
        done = _run_ffmpeg([*source, *chosen, str(Path(folder) / "trial.mp4")])
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


_AS_MP4: Final = ("-protocol_whitelist", "file,pipe", "-f", "mp4")
"""Before the file that ffmpeg reads. Left to guess, it takes a text that is called `.mp4` for a playlist, and reads
whatever files and addresses that names."""


def _is_of_format(path: Path, wanted: str) -> bool:
    """Whether ffmpeg wrote the pixel format asked for; where an encoder has not got it, it takes the nearest."""
    log = _run_ffmpeg([*_AS_MP4, "-i", str(path)]).stderr.decode(errors="replace")
    found = re.search(r"Video: .*?\), (\w+)[(,]", log)
    there = found[1] if found else ""
    if _is_rgb(wanted):
        return _is_rgb(there)
    plain = wanted.removesuffix("le")
    return there.removesuffix("le") == _SAME_FORMATS.get(plain, plain)


def check_size(settings: VideoConfig, height: int, width: int) -> None:
    """Whether frames of that size can be written in the pixel format.

    Raises:
        ConfigError: if not, as odd sizes with half-resolution colour.
    """
    odd = [f"{name} {n}" for name, n in (("height", height), ("width", width)) if n % 2]
    if odd and "420" in settings.pixel_format:
        raise ConfigError(
            f"[video] pixel_format {settings.pixel_format!r} needs even sizes; frames have {' and '.join(odd)}",
            "set pixel_format = 'yuv444p', which libx264 and most other codecs have",
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
    options = ["-v", "error", "-xerror", "-threads", "2", *_AS_MP4, "-i", str(path), "-map", "0:v:0", "-f", "null"]
    done = _run_ffmpeg([*options, "-progress", "pipe:1", "-"])
    counts = [line for line in done.stdout.decode().splitlines() if line.startswith("frame=")]
    if done.returncode or not counts:
        log = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise WorkerError(f"{Path(path).name} does not decode: {log}")
    return int(counts[-1].removeprefix("frame="))


def read_form(path: str | Path) -> tuple[float, int, int]:
    """Frames per second, height and width of a file that decodes."""
    source = imageio_ffmpeg.read_frames(str(path), input_params=list(_AS_MP4))
    try:
        about = next(source)
        width, height = about["size"]
        return float(about["fps"]), int(height), int(width)
    finally:
        source.close()


def read_frames(path: str | Path) -> Iterator[Frames]:
    """The frames `[H, W, 3]` of a file, one at a time."""
    source = imageio_ffmpeg.read_frames(
        str(path), pix_fmt="rgb24", input_params=list(_AS_MP4), output_params=["-fps_mode", "passthrough"]
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
    done = _run_ffmpeg(
        ["-v", "error", *_AS_MP4, "-i", str(path), "-frames:v", "1", *scale, "-q:v", "3", "-f", "mjpeg", "-"]
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
    done = _run_ffmpeg(
        [
            *("-v", "error", *_AS_MP4, "-threads", "1", "-i", str(path), "-an", "-vf", filters),
            *("-fps_mode", "passthrough", "-frames:v", "1", "-q:v", "4", "-f", "mjpeg", "-"),
        ]
    )
    if done.returncode or not done.stdout:
        raise WorkerError(f"{Path(path).name} holds no frames: {done.stderr.decode(errors='replace')[-300:]}")
    return done.stdout


def _run_ffmpeg(options: list[str]) -> subprocess.CompletedProcess[bytes]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
