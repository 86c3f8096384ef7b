"""What a run shows while it goes on."""

from __future__ import annotations

import io
from typing import Any

import pytest

from actors.driver.progress import ProgressBoard
from actors.messages import VideoProgress
from pipeline.rows import BadRow, PromptRow

ROW = PromptRow(index=3, id="row\x1b[31m 3", prompts=("a red circle",), negative_prompt=None, seed=0, num_frames=37)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress(done: int, calls: int) -> VideoProgress:
    return VideoProgress(num_latents_done=done, num_calls=calls)


def test_a_log_gets_a_line_for_every_settled_row_and_no_control_characters() -> None:
    log = io.StringIO()
    board = ProgressBoard(2, stream=log)
    board.video_started("worker-0", ROW, 10)
    board.video_progress("worker-0", ROW, progress(4, 99), 10)
    board.video_closed("worker-0")
    board.row_failed(ROW, "the network returned NaN")
    board.row_failed(BadRow(index=4, id="4", source="p.txt:5", error="blank"), "p.txt:5: prompt is blank")
    board.close()
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert "1/2" in lines[0]
    assert "FAILED: the network returned NaN" in lines[0]
    assert "\x1b" not in log.getvalue()


def test_a_log_says_where_the_videos_are_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    board = ProgressBoard(2, stream=log)
    board.video_started("worker-0", ROW, 10)
    board.video_progress("worker-0", ROW, progress(4, 99), 10)
    board.refresh()
    assert log.getvalue() == ""
    monkeypatch.setattr("actors.driver.progress.LOG_EVERY_S", 0.0)
    board.refresh()
    assert "4/10 (99 calls)" in log.getvalue()


def test_a_terminal_gets_a_bar_for_the_run_and_one_per_video() -> None:
    terminal = Terminal()
    board = ProgressBoard(2, stream=terminal)
    board.video_started("worker-0", ROW, 10)
    for done in range(0, 11, 2):
        board.video_progress("worker-0", ROW, progress(done, 10 * done), 10)
    board.refresh()
    shown = terminal.getvalue()
    assert "videos" in shown
    assert "/10" in shown
    assert "latent" in shown
    board.close()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_quiet(stream: Any) -> None:
    board = ProgressBoard(2, quiet=True, stream=stream)
    board.video_started("worker-0", ROW, 10)
    board.say("something")
    board.refresh()
    board.close()
    assert stream.getvalue() == ""
