"""Small MP4s of all kinds, made by ffmpeg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg


def make_video(
    path: Path, *options: str, size: str = "64x48", rate: int = 8, frames: int = 24, source: str = ""
) -> Path:
    """A test picture that changes with time; options go before the output."""
    what = source or f"testsrc=size={size}:rate={rate}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-f", "lavfi", "-i", what]
    coding = [] if "-c:v" in options else ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, "-frames:v", str(frames), *coding, *options, str(path)], check=True)
    return path


def rotated(path: Path, to: Path) -> Path:
    """The same file with a flag that it is to be turned by a quarter."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", "-display_rotation", "90", "-i", str(path)]
    subprocess.run([*command, "-c", "copy", str(to)], check=True)
    return to
