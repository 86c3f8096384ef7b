"""What a notebook shows of a video, and a fragmented MP4, in a real Chromium: they play, in the right colours."""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from miga import LongVideo
from miga.reflection import ReflectionTrace
from miga.video_output import FrameStream
from tests.pace import paced

pytestmark = pytest.mark.browser

LEFT, RIGHT = (200, 60, 30), (20, 90, 210)


def pixels() -> npt.NDArray[np.uint8]:
    frames = np.empty((16, 64, 96, 3), np.uint8)
    frames[:, :, :48], frames[:, :, 48:] = LEFT, RIGHT
    return frames


def notebook() -> str:
    return LongVideo(pixels(), 8, 33, ReflectionTrace(), [])._repr_html_()


def stream() -> str:
    frames = (frame for frame in pixels())
    data = b"".join(FrameStream(frames, 8, is_endless=False).mp4())  # type: ignore[arg-type]
    return f'<video muted src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'


COLOURS = """video => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    const context = canvas.getContext("2d");
    context.drawImage(video, 0, 0);
    return [24, 72].map(x => [...context.getImageData(x, 32, 1, 1).data.slice(0, 3)]);
}"""


@pytest.mark.slow
@pytest.mark.parametrize("shown", [notebook, stream])
def test_it_plays_in_its_colours(browser: Any, shown: Any) -> None:
    page = browser.new_page()
    try:
        page.set_content(f"<!DOCTYPE html><body>{shown()}</body>")
        page.eval_on_selector("video", "video => void video.play()")
        page.wait_for_function("() => document.querySelector('video').currentTime > 0.2", timeout=paced(20_000))
        about = page.eval_on_selector("video", "video => [video.error, video.videoWidth, video.videoHeight]")
        assert about == [None, 96, 64]
        found = page.eval_on_selector("video", COLOURS)
        assert np.abs(np.array(found) - np.array([LEFT, RIGHT])).max() <= 8
        page.wait_for_function("() => document.querySelector('video').duration === 2", timeout=paced(20_000))
    finally:
        page.close()
