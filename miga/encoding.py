"""Frames to an MP4, through the ffmpeg that imageio-ffmpeg brings along: to a file, or as bytes while they come.

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
import io
import os
import platform
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeAlias

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from miga.errors import ConfigError, OutputError, RowError, WorkerError
from miga.video_config import VideoConfig

Frames: TypeAlias = npt.NDArray[np.uint8]

_THREADS: Final = 4
"""Fixed, because x264's output depends on it."""

_LOW_SPACE_BYTES: Final = 16 << 20
_PIECE_BYTES: Final = 1 << 16

AS_MP4: Final = ("-protocol_whitelist", "file,pipe", "-f", "mp4")
"""Before the file that ffmpeg reads. Left to guess, it takes a text that is called `.mp4` for a playlist, and reads
whatever files and addresses that names."""


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
        size_HW = _size_of(frames_FHWC)
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


def mp4_pieces(chunks_FHWC: Iterable[Frames], *, fps: float, settings: VideoConfig | None = None) -> Iterator[bytes]:
    """A video as a fragmented MP4, in pieces that can be sent while later frames are still to come.

    Players show a fragment, about a second of video, as soon as it is there. Memory does not grow with the length. A
    file of all pieces plays as well, but says nothing of its length: `write_video` makes the better file.

    Args:
        chunks_FHWC: arrays `[F, H, W, 3]`; F may differ, H and W may not. Taken as far as the pieces are.
        fps: frames per second.
        settings: codec and quality.

    Raises:
        RowError: if there are no frames.
        ConfigError: if the frames' size does not fit the pixel format.
        ValueError: if they are no such frames, or of another size than those before.
        WorkerError: if ffmpeg failed.
    """
    encoder: _PipedEncoder | None = None
    try:
        for chunk_FHWC in chunks_FHWC:
            size_HW = _size_of(chunk_FHWC)
            if encoder is None:
                encoder = _PipedEncoder(size_HW, fps, settings or VideoConfig())
            if size_HW != encoder.size_HW:
                raise ValueError(f"frames of {size_HW} after frames of {encoder.size_HW}")
            for frame_HWC in chunk_FHWC:
                encoder.write(frame_HWC)
                yield from encoder.made()
        if encoder is None:
            raise RowError("no frames came to make a video of")
        yield from encoder.finish()
    finally:
        if encoder is not None:
            encoder.close()


class _PipedEncoder:
    """An ffmpeg that is given frames and makes pieces of a file, which a thread takes off it."""

    def __init__(self, size_HW: tuple[int, int], fps: float, settings: VideoConfig) -> None:
        check_size(settings, *size_HW)
        self.size_HW = size_HW
        os.environ.setdefault("SVT_LOG", "1")
        height, width = size_HW
        frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps}", "-i", "pipe:0"]
        made = ["-an", "-c:v", settings.codec, "-pix_fmt", settings.pixel_format, *output_options(settings)]
        # without B-frames, which would put the first frame later than 0: this kind of file has no place to say so
        cut = ["-g", f"{max(1, round(fps))}", "-bf", "0"]
        cut += ["-movflags", "+frag_keyframe+empty_moov+default_base_moof", "-f", "mp4"]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self._ffmpeg = subprocess.Popen(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-v", "error", *frames, *made, *cut, "pipe:1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        self._pieces: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_over = False
        self._reader = threading.Thread(target=self._read, name="miga-mp4", daemon=True)
        self._reader.start()

    def write(self, frame_HWC: Frames) -> None:
        """Gives it the next frame."""
        assert self._ffmpeg.stdin is not None, "it was started with a pipe"
        try:
            self._ffmpeg.stdin.write(np.ascontiguousarray(frame_HWC).data)
        except OSError:
            self._ffmpeg.wait()
            raise self._fault() from None

    def made(self) -> Iterator[bytes]:
        """The pieces that are there by now."""
        while not self._pieces.empty():
            if piece := self._take():
                yield piece

    def finish(self) -> Iterator[bytes]:
        """All that is still to come; no frame may follow."""
        assert self._ffmpeg.stdin is not None, "it was started with a pipe"
        with contextlib.suppress(OSError):
            self._ffmpeg.stdin.close()
        while piece := self._take():
            yield piece
        if self._ffmpeg.wait():
            raise self._fault()

    def _take(self) -> bytes:
        """The next piece; none once the last one has been taken."""
        piece = b"" if self._is_over else self._pieces.get()
        self._is_over = not piece
        return piece

    def close(self) -> None:
        """Ends it; what it was still making is lost."""
        self._ffmpeg.kill()
        self._ffmpeg.wait()
        self._reader.join()
        for pipe in (self._ffmpeg.stdin, self._ffmpeg.stdout, self._log):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert isinstance(self._ffmpeg.stdout, io.BufferedReader), "it was started with a pipe"
        while piece := self._ffmpeg.stdout.read1(_PIECE_BYTES):
            self._pieces.put(piece)
        self._pieces.put(b"")

    def _fault(self) -> WorkerError:
        self._log.seek(0)
        log = " ".join(self._log.read().decode(errors="replace").split())[-500:]
        return WorkerError(f"ffmpeg failed while making a video: {log or 'it was ended'}")


def _size_of(frames_FHWC: Frames) -> tuple[int, int]:
    """Height and width of frames.

    Raises:
        ValueError: if they are none.
    """
    if frames_FHWC.dtype != np.uint8 or frames_FHWC.ndim != 4 or frames_FHWC.shape[3] != 3:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], not {frames_FHWC.dtype} {frames_FHWC.shape}")
    return int(frames_FHWC.shape[1]), int(frames_FHWC.shape[2])


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
        output_params=[*output_options(settings), "-movflags", "+faststart"],
    )
    sink.send(None)
    return sink


def output_options(settings: VideoConfig) -> list[str]:
    """What ffmpeg is told of a file's video, codec and pixel format apart."""
    options = ["-threads", str(_THREADS), "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    if is_rgb(settings.pixel_format):
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


def is_rgb(pixel_format: str) -> bool:
    """Whether a pixel format of ffmpeg holds colours as they are."""
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


def count_frames(path: str | Path) -> int:
    """How many frames the file decodes to.

    Raises:
        WorkerError: if it does not decode to its end.
    """
    options = ["-v", "error", "-xerror", "-threads", "2", *AS_MP4, "-i", str(path), "-map", "0:v:0", "-f", "null"]
    done = run_ffmpeg([*options, "-progress", "pipe:1", "-"])
    counts = [line for line in done.stdout.decode().splitlines() if line.startswith("frame=")]
    if done.returncode or not counts:
        log = " ".join(done.stderr.decode(errors="replace").split())[-300:]
        raise WorkerError(f"{Path(path).name} does not decode: {log}")
    return int(counts[-1].removeprefix("frame="))


def run_ffmpeg(options: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Runs ffmpeg to its end, and keeps all that it says."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *options]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
