"""Finished videos as people take them: diffusers' functions, files, notebooks, bytes that are sent while they come."""

from __future__ import annotations

import base64
import contextlib
import importlib
import itertools
import pickle
import re
import sys
import threading
import types
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.utils import export_to_video, export_utils
from diffusers.video_processor import VideoProcessor
from PIL import Image

from miga import LongVideo, LongVideoPipeline
from miga.errors import OutputError, UsageError
from miga.reflection import ReflectionTrace
from miga.video_output import FrameStream
from pipeline.video import count_frames, read_form, read_frames


def flat(num_frames: int = 16, height: int = 64, width: int = 96) -> npt.NDArray[np.uint8]:
    """Frames whose left half is of one colour, whose right half of another."""
    colour_FC = np.random.default_rng(3).integers(0, 256, (2, num_frames, 3), dtype=np.uint8)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:, :, : width // 2], frames[:, :, width // 2 :] = colour_FC[:, :, None, None]
    return frames


def video_of(pixels: npt.NDArray[np.uint8], output_type: Any = "np") -> LongVideo:
    return LongVideo(pixels, 8, 33, ReflectionTrace(), [], 5, output_type)


def decoded(path: str | Path) -> npt.NDArray[np.int64]:
    return np.stack(list(read_frames(path))).astype(int)


class _Writer:
    """What imageio's ffmpeg plugin does with `imageio_ffmpeg`, where imageio itself is not installed."""

    def __init__(self, path: str, **options: Any) -> None:
        self._path, self._options, self._sink = path, options, None

    def __enter__(self) -> _Writer:
        return self

    def append_data(self, frame: npt.NDArray[np.uint8]) -> None:
        assert frame.dtype == np.uint8
        if self._sink is None:
            size = (frame.shape[1], frame.shape[0])
            self._sink = imageio_ffmpeg.write_frames(self._path, size, pix_fmt_in="rgb24", **self._options)
            self._sink.send(None)
        self._sink.send(np.ascontiguousarray(frame))

    def __exit__(self, *_: object) -> None:
        if self._sink is not None:
            self._sink.close()


@pytest.fixture
def imageio(monkeypatch: pytest.MonkeyPatch) -> None:
    """imageio, which diffusers' `export_to_video` writes with."""
    with contextlib.suppress(ImportError):
        importlib.import_module("imageio")
        return
    module = types.ModuleType("imageio")
    module.get_writer = _Writer  # type: ignore[attr-defined]
    module.plugins = types.SimpleNamespace(  # type: ignore[attr-defined]
        ffmpeg=types.SimpleNamespace(get_exe=imageio_ffmpeg.get_ffmpeg_exe)
    )
    monkeypatch.setitem(sys.modules, "imageio", module)
    monkeypatch.setattr(export_utils, "is_imageio_available", lambda: True)


@pytest.mark.usefixtures("imageio")
def test_diffusers_exports_the_right_colours(tmp_path: Path) -> None:
    video = video_of(flat())
    export_to_video(video.frames, str(tmp_path / "a.mp4"), fps=8)
    assert np.abs(decoded(tmp_path / "a.mp4") - video.pixels).mean() < 4
    export_to_video(video_of(flat(), "pil").frames, str(tmp_path / "b.mp4"), fps=8)
    assert np.abs(decoded(tmp_path / "b.mp4") - video.pixels).mean() < 4
    export_to_video(video.pixels, str(tmp_path / "c.mp4"), fps=8)
    assert np.abs(decoded(tmp_path / "c.mp4") - video.pixels).mean() > 60, "of bytes it makes the negative"


@pytest.mark.usefixtures("imageio")
def test_the_first_of_a_batch_is_no_batch_here(tmp_path: Path) -> None:
    """`pipe(...).frames[0]` is a video in diffusers; here rows of one frame would become frames of a file."""
    with pytest.raises(UsageError, match="not a video") as caught:
        export_to_video(video_of(flat()).frames[0], str(tmp_path / "a.mp4"), fps=8)
    assert "export_to_video(video.frames, ...)" in caught.value.hint


def test_frames_are_an_array_like_any() -> None:
    video = video_of(flat())
    frames = video.frames
    assert isinstance(frames, np.ndarray)
    assert (frames.dtype, frames.shape) == (np.float32, video.pixels.shape)
    assert video.frames is frames
    every = np.arange(256, dtype=np.uint8)
    shown = video_of(np.broadcast_to(every[:, None, None, None], (256, 2, 2, 3)).copy()).frames
    assert np.array_equal((shown * 255).astype(np.uint8)[:, 0, 0, 0], every), "what is cut off is not lost"
    assert np.array_equal((shown * 255).round().astype(np.uint8)[:, 0, 0, 0], every)
    assert frames[0].shape == (64, 96, 3)
    assert np.array_equal(np.stack(list(frames)), frames)
    assert [row.shape for row in np.asarray(frames[0])[:2]] == [(96, 3)] * 2
    assert torch.equal(torch.from_numpy(frames), torch.from_numpy(np.array(frames)))
    assert np.array_equal(pickle.loads(pickle.dumps(frames)), frames)
    assert np.array_equal(np.asarray(Image.fromarray((frames[3] * 255).astype(np.uint8))), video.pixels[3])


def test_types_of_frames_are_those_of_diffusers() -> None:
    """As its own postprocessing makes them of a decoded video, from -1 to 1."""
    pixels = flat(3, 8, 12)
    decoded_BCFHW = (torch.from_numpy(pixels).permute(3, 0, 1, 2)[None].float() / 255) * 2 - 1
    theirs = {kind: VideoProcessor().postprocess_video(decoded_BCFHW, output_type=kind) for kind in ("np", "pt", "pil")}
    ours = {kind: video_of(pixels, kind).frames for kind in theirs}
    assert np.allclose(ours["np"], theirs["np"][0], atol=1e-6)
    assert (ours["pt"].dtype, ours["pt"].shape) == (theirs["pt"].dtype, theirs["pt"][0].shape)
    assert torch.allclose(ours["pt"], theirs["pt"][0], atol=1e-6)
    as_arrays = [np.stack([np.asarray(image) for image in images]) for images in (ours["pil"], theirs["pil"][0])]
    assert np.abs(as_arrays[0].astype(int) - as_arrays[1]).max() <= 1
    assert np.array_equal(np.stack([np.asarray(image) for image in ours["pil"]]), pixels)


def test_a_saved_file_holds_the_video(tmp_path: Path) -> None:
    video = video_of(flat())
    path = video.save(tmp_path / "deep" / "a.mp4")
    assert path == tmp_path / "deep" / "a.mp4"
    assert np.abs(decoded(path) - video.pixels).max() <= 6
    assert read_form(path) == (8.0, 64, 96)
    video.save(path, fps=24, crf=30)
    assert read_form(path)[0] == 24.0
    odd = video_of(flat(4, 33, 35))
    assert np.abs(decoded(odd.save(tmp_path / "odd.mp4")) - odd.pixels).mean() < 3
    assert sorted(file.name for file in tmp_path.rglob("*.mp4")) == ["a.mp4", "odd.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "a.gif"}, "does not end in .mp4"),
        ({"path": "a"}, "does not end in .mp4"),
        ({"path": "a.mp4", "fps": 0}, "fps 0 cannot be"),
        ({"path": "a.mp4", "fps": float("nan")}, "fps nan cannot be"),
        ({"path": "a.mp4", "fps": "8"}, "fps '8' cannot be"),
        ({"path": "a.mp4", "crf": 52}, "crf 52 cannot be"),
        ({"path": "a.mp4", "crf": 1.5}, "crf 1.5 cannot be"),
    ],
)
def test_files_that_cannot_be(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        video_of(flat(2)).save(**arguments)
    assert message in str(caught.value)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        video_of(flat(2)).save(tmp_path / "file" / "a.mp4")
    assert caught.value.hint


def test_said_in_one_line() -> None:
    assert repr(video_of(flat(17))) == "LongVideo(17 frames of 64x96 at 8 fps, 2.1 s, 33 calls, seed 5)"


def test_a_notebook_shows_the_video_itself(tmp_path: Path) -> None:
    video = video_of(flat())
    shown = video._repr_html_()
    found = re.search(r'<video controls[^>]* src="data:video/mp4;base64,([^"]+)">', shown)
    assert found is not None
    path = tmp_path / "shown.mp4"
    path.write_bytes(base64.b64decode(found[1]))
    assert np.abs(decoded(path) - video.pixels).mean() < 4
    assert "17 frames" not in shown
    assert "16 frames of 64x96" in shown


def test_a_notebook_is_not_filled_with_a_very_long_video(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("miga.video_output._NOTEBOOK_BYTES", 100)
    shown = video_of(flat())._repr_html_()
    assert "<video" not in shown
    assert "video.save(" in shown


# ---- streams ----


def stream_of(
    pixels: npt.NDArray[np.uint8], closed: list[str] | None = None, *, is_endless: bool = False
) -> FrameStream:
    def frames() -> Iterator[npt.NDArray[np.uint8]]:
        try:
            yield from itertools.cycle(pixels) if is_endless else pixels
        finally:
            if closed is not None:
                closed.append("closed")

    return FrameStream(frames(), 8, is_endless=is_endless)  # type: ignore[arg-type]


def test_a_stream_to_a_file(tmp_path: Path) -> None:
    pixels, closed = flat(40), []
    with (tmp_path / "a.mp4").open("wb") as file:
        for piece in stream_of(pixels, closed).mp4():
            file.write(piece)
    assert np.abs(decoded(tmp_path / "a.mp4") - pixels).max() <= 6
    assert closed == ["closed"]
    path = stream_of(pixels).save(tmp_path / "b.mp4", fps=4)
    assert np.abs(decoded(path) - pixels).max() <= 6
    assert read_form(path)[0] == 4.0


def test_what_was_taken_before_is_not_in_the_file(tmp_path: Path) -> None:
    pixels = flat(12)
    stream = stream_of(pixels)
    assert np.array_equal(next(stream), pixels[0])
    path = stream.save(tmp_path / "a.mp4")
    assert count_frames(path) == 11
    assert b"".join(stream.mp4()) == b"", "nothing is left"


def test_a_video_without_end(tmp_path: Path) -> None:
    closed: list[str] = []
    with pytest.raises(UsageError, match="without end"):
        stream_of(flat(), is_endless=True).save(tmp_path / "a.mp4")
    pieces = stream_of(flat(), closed, is_endless=True).mp4()
    assert len(b"".join(itertools.islice(pieces, 5))) > 100
    assert closed == []
    pieces.close()
    assert closed == ["closed"], "whoever leaves ends the video"
    with pytest.raises(UsageError, match="fps"):
        stream_of(flat()).mp4(fps=-1)


@pytest.mark.slow
def test_an_http_response(tmp_path: Path, tiny_model: Path) -> None:
    """As docs/python.md has it."""
    pipe = LongVideoPipeline.from_pretrained(str(tiny_model), device="cpu")

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp4")
            self.end_headers()
            for piece in pipe.stream("a red circle", num_frames=61, seed=1).mp4():
                self.wfile.write(piece)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/", timeout=120) as response:
            assert response.headers["Content-Type"] == "video/mp4"
            (tmp_path / "a.mp4").write_bytes(response.read())
        thread.join()
    saved = decoded(pipe("a red circle", num_frames=61, seed=1).save(tmp_path / "b.mp4"))
    found = decoded(tmp_path / "a.mp4")
    assert found.shape == saved.shape == (61, 32, 32, 3)
    assert np.abs(found - saved).mean() < 4
    assert np.abs(found[1:] - saved[:-1]).mean() > 8, "another order would show"
