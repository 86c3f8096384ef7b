"""What a run shows while it goes on: on a terminal, which is a real one here, and in a pipe."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from actors.driver.progress import ProgressBoard
from actors.messages import Hosted, VideoResult
from miga.reflection import ReflectionTrace
from pipeline.rows import BadRow, PromptRow
from pipeline.scheduling.time_left import VideoCost
from tests.pace import paced

ROOT = Path(__file__).parents[2]
HOSTILE = "row\x1b[31m\x07 3"
ROW = PromptRow(index=3, id=HOSTILE, prompts=("a red circle",), negative_prompt=None, seed=0, num_frames=37)
COST = VideoCost(200)
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def row(index: int) -> PromptRow:
    return PromptRow(index=index, id=str(index), prompts=("x",), negative_prompt=None, seed=0, num_frames=37)


def result(num_calls: int) -> VideoResult:
    return VideoResult(
        uri="u", bytes=1, sha256="0", num_frames=37, fps=8.0, height=8, width=8, duration_s=4.6, num_calls=num_calls,
        encode_text_s=0.0, denoise_s=31.0, decode_s=0.0, encode_video_s=0.0, upload_s=0.0, gpu_s=0.0,
        num_helper_calls=0.0, peak_memory_bytes=0, device="", node="", latents_uri=None, trace=ReflectionTrace(),
        final_consistency=(),
    )  # fmt: skip


def hosted(index: int, num_calls: int) -> Hosted:
    return Hosted(row=index, attempt=1, num_calls=num_calls)


def half_made(clock: Clock, stream: Any, **options: Any) -> ProgressBoard:
    """A run of four videos on two GPUs at one call a second: one is made, two are half made, one waits."""
    board = ProgressBoard(4, stream=stream, cost_of=lambda num_frames: COST, clock=clock, **options)
    board.count({37: 4}, [37] * 4)
    for index in range(4):
        board.row_read(row(index))
    board.gpus(2, 2)
    for process in ("a", "b"):
        board.gpu(process, 0)
    board.video_started("a", row(0))
    board.video_started("b", row(1))
    for second in range(1, 301):
        clock.now_s = float(second)
        board.gpus(2, 2)
        board.gpu("a", second)
        board.gpu("b", second)
        if second == 200:
            for worker, index in (("a", 0), ("b", 1)):
                board.video_made(worker)
                board.video_closed(worker)
                board.row_done(row(index), result(200))
            board.video_started("a", row(2))
            board.video_started("b", row(3))
        first = 0 if second < 200 else 2
        for worker, index in (("a", first), ("b", first + 1)):
            board.video_calls(worker, hosted(index, second - 100 * first))
        board.refresh()
    return board


def test_a_log_line_carries_time_calls_videos_an_hour_busy_gpus_and_the_time_left() -> None:
    log = io.StringIO()
    board = half_made(Clock(), log)
    board.close()
    lines = log.getvalue().splitlines()
    assert all(LINE.match(line) for line in lines)
    assert "\x1b" not in log.getvalue()
    assert "\r" not in log.getvalue()
    made = [line for line in lines if "37 frames, 200 calls" in line]
    assert len(made) == 2, "one line an event"
    assert "[1/4 videos, 49 % of 800 calls, 36 videos/h, 2 of 2 GPUs busy, 3 min 21 s left]" in made[0]
    last = lines[-1]
    assert "[2/4 videos, 75 % of 800 calls, 36 videos/h, 2 of 2 GPUs busy, 1 min 40 s left]" in last
    assert "row 2 100/200 calls, row 3 100/200 calls" in last
    assert len(lines) == 2 + 10, "and one every half minute"


def test_the_figures_that_go_with_the_lease() -> None:
    board = half_made(Clock(), io.StringIO(), quiet=True)
    figures = board.figures()
    assert figures["settled"] == 2
    assert (figures["calls_done"], figures["calls"], figures["calls_are_exact"]) == (600, 800, True)
    assert figures["videos_per_hour"] == pytest.approx(36.0, rel=0.01)
    assert figures["left_s"] == pytest.approx(100.0, rel=0.01)
    assert (figures["gpus"], figures["gpus_busy"]) == (2, 2)


def test_what_happens_before_the_first_call_is_said_with_its_seconds() -> None:
    log, clock = io.StringIO(), Clock()
    board = ProgressBoard(1, stream=log, cost_of=lambda num_frames: COST, clock=clock)
    with board.step("starting Ray"):
        clock.now_s = 4.2
    board.begun("loading the model")
    board.begun("encoding prompts")
    board.begun("loading the model")  # on a second worker
    assert list(board.figures()["doing"]) == ["loading the model", "encoding prompts"]
    clock.now_s = 35.0
    board.refresh()
    board.done("loading the model")
    board.worker_ready("worker-0", "H200 on gpu-1", 4.2)
    board.done("encoding prompts")
    board.done("never begun")
    said = [LINE.sub("", line) for line in log.getvalue().splitlines()]
    assert said == [
        "starting Ray",
        "starting Ray: done in 4.2 s",
        "loading the model",
        "encoding prompts",
        "loading the model (31 s), encoding prompts (31 s)",
        "loading the model: done in 31 s",
        "worker-0 is ready after 31 s (H200 on gpu-1)",
        "encoding prompts: done in 31 s",
    ]


def test_a_step_that_fails_is_not_said_to_be_done() -> None:
    log = io.StringIO()
    board = ProgressBoard(1, stream=log)
    with pytest.raises(OSError, match="no room"), board.step("starting Ray"):
        raise OSError("no room")
    board.close()
    assert "done" not in log.getvalue()


def test_failures_are_named_on_one_line_without_control_characters() -> None:
    log = io.StringIO()
    board = ProgressBoard(2, stream=log, cost_of=lambda num_frames: COST)
    board.row_read(ROW)
    board.video_started("worker-0", ROW)
    board.video_closed("worker-0")
    board.row_failed(ROW, "the network returned NaN\n  hint: \x1b[2Jtry float32")
    board.row_failed(BadRow(index=4, id="4", source="p.txt:5", error="blank"), "p.txt:5: prompt is blank")
    lines = log.getvalue().splitlines()
    assert "\x1b" not in log.getvalue()
    assert lines[0].endswith("FAILED: the network returned NaN; \\x1b[2Jtry float32")
    assert "1/2 videos" in lines[0]
    assert "2/2 videos" in lines[-1]
    assert lines[-1].endswith("row 4 FAILED: p.txt:5: prompt is blank")


def test_a_row_that_goes_back_takes_its_calls_along() -> None:
    clock = Clock()
    board = half_made(clock, io.StringIO(), quiet=True)
    board.video_closed("a")
    board.row_back(row(2), "its worker died")
    board.gpus(1, 1)
    clock.now_s += 1.0
    board.refresh()
    assert board.figures()["calls_done"] == 500
    assert board.figures()["left_s"] == pytest.approx(300.0, rel=0.02), "one GPU, a hundred calls and two hundred"


@pytest.mark.parametrize("name", ["terminal", "pipe"])
def test_quiet_is_quiet(name: str) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return name == "terminal"

    stream = Stream()
    board = half_made(Clock(), stream, quiet=True)
    board.say("something")
    with board.step("starting Ray"):
        pass
    board.close()
    assert stream.getvalue() == ""


# ---- in a process of its own ----

PROGRAM = """
    import sys, time
    from actors.driver.progress import ProgressBoard
    from tests.actors.test_progress import COST, HOSTILE, ROW, hosted, result, row

    board = ProgressBoard(2, stream=sys.stderr, cost_of=lambda num_frames: COST)
    board.count({37: 2}, [37, 37])
    with board.step("starting Ray"):
        time.sleep(1.2)
    board.row_read(ROW)
    board.gpus(1, 1)
    board.gpu("a", 0)
    board.video_started("a", ROW)
    for calls in range(0, 101, 10):
        time.sleep(0.1)
        board.gpu("a", calls)
        board.video_calls("a", hosted(3, calls))
        board.refresh()
    board.say("\\x1b]0;title\\x07 a line between")
    time.sleep(0.6)
    board.video_made("a")
    board.video_closed("a")
    board.row_done(ROW, result(200))
    board.row_failed(row(4), "it is broken")
    board.close()
    print("the summary", file=sys.stderr)
"""


def on_a_terminal(program: str, limit_s: float | None = None, **environment: str) -> str:
    """What a program writes to a terminal of 100 columns."""
    master, slave = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30", "PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, env=env, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        written, until_s = b"", time.monotonic() + (limit_s or paced(60))
        while time.monotonic() < until_s:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    written += os.read(master, 65536)
                except OSError:  # the other end is closed
                    break
            elif process.poll() is not None:
                break
        os.close(master)
        assert process.wait(timeout=paced(20)) == 0, written.decode(errors="replace")
    return written.decode()


def screen(written: str, height: int = 30) -> list[str]:
    """The lines of a terminal that understands what rich writes: line ends, moving up, clearing a line, colours."""
    lines, at_row, at_column = [""], 0, 0
    for match in re.finditer(r"\x1b\[([0-9;?]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b", written):
        text, number, kind = match[0], match[1], match[2]
        if kind == "A":
            at_row = max(0, at_row - int(number or 1))
        elif kind == "K":
            lines[at_row] = "" if number == "2" else lines[at_row][:at_column]
        elif kind in ("m", "h", "l"):
            continue
        elif text == "\r":
            at_column = 0
        elif text == "\n":
            at_row, at_column = at_row + 1, 0
            lines += [""] * (at_row + 1 - len(lines))
        else:
            assert not text.startswith("\x1b"), f"{text!r} is nothing that a program should write"
            line = lines[at_row].ljust(at_column)
            lines[at_row] = line[:at_column] + text + line[at_column + len(text) :]
            at_column += len(text)
    return [line.rstrip() for line in lines]


@pytest.mark.slow
def test_a_terminal_gets_bars_that_change_in_place() -> None:
    written = on_a_terminal(PROGRAM)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "starting Ray … 1." in plain, "its seconds go on while nothing else happens"
    assert "row·[31m· 3" in plain
    assert "100/200 calls" in plain
    assert "1 of 1 GPUs busy" in plain
    assert re.search(r"\d s left", plain)
    assert "\x07" not in written
    assert "\x1b]" not in written, "what others wrote does nothing on a terminal"
    left = [line for line in screen(written) if line]
    assert left.count("starting Ray: done in 1.2 s") == 1
    assert "\\x1b]0;title\\x07 a line between" in left
    assert sum("it is broken" in line for line in left) == 1
    assert left[-1] == "the summary"
    assert not any("100/200 calls" in line for line in left), "bars are taken down"
    assert len(left) <= 6, left


@pytest.mark.slow
def test_a_pipe_gets_one_line_an_event() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, check=True, timeout=paced(60), text=True,
    )  # fmt: skip
    *lines, summary = ran.stderr.splitlines()
    assert summary == "the summary"
    assert all(LINE.match(line) for line in lines)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", ran.stderr)
    said = [LINE.sub("", line) for line in lines]
    assert said[0] == "starting Ray"
    assert said[1].startswith("starting Ray: done in 1.")
    assert said[2] == "\\x1b]0;title\\x07 a line between"
    assert "row·[31m· 3: 37 frames, 200 calls, 31 s" in said[3]
    assert said[4].endswith("row 4 FAILED: it is broken")
    assert len(said) == 5


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}], ids=["dumb", "ASCII"])
@pytest.mark.slow
def test_poor_terminals_are_no_fault(environment: dict[str, str]) -> None:
    written = on_a_terminal(PROGRAM, **environment)
    assert "the summary" in written
    assert "Traceback" not in written
    if environment.get("TERM") == "dumb":
        assert "\x1b" not in written


@pytest.mark.slow
def test_a_terminal_that_goes_away_ends_nothing() -> None:
    program = """
        import os, sys, time
        from actors.driver.progress import ProgressBoard

        board = ProgressBoard(2, stream=sys.stderr)
        os.close(2)
        board.say("nobody hears this")
        time.sleep(0.6)
        board.refresh()
        board.close()
        print("the work went on")
    """
    assert "the work went on" in on_a_terminal(program)
