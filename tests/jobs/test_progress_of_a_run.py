"""What a real run shows: `miga generate` on a Ray of its own, on a terminal and in a pipe, watched from outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.actors.test_progress import LINE, on_a_terminal
from tests.pace import paced
from tests.tensorboard_files import read_back

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three videos and a blank prompt."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"a red circle, take {number}", "num_frames": 93, "id": f"take-{number}"} for number in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": " "}]))
    return file


def test_a_run_in_a_pipe(prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.cli", "generate", str(prompts), str(out), "--failed-rows-ok"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    seen: list[dict[str, object]] = []
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        look = [sys.executable, "-m", "jobs.cli", "status", str(out), "--json"]
        until_s = time.monotonic() + paced(240)
        while run.poll() is None and time.monotonic() < until_s:
            looked = subprocess.run(look, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
            seen += [json.loads(looked.stdout)] if looked.returncode == 0 else []
            time.sleep(0.5)
        stdout, stderr = run.communicate(timeout=paced(30))
    assert run.returncode == 0, stderr
    lines = stderr.splitlines()
    assert all(LINE.match(line) for line in lines), stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stderr)
    said = [LINE.sub("", line) for line in lines]
    for step in ("starting Ray", "loading the model", "encoding prompts"):
        assert said.count(step) == 1
        assert sum(line.startswith(f"{step}: done in ") for line in said) == 1
    assert sum("93 frames" in line for line in said) == 3
    assert sum("FAILED" in line for line in said) == 1
    made = [line for line in said if "93 frames" in line]
    total = re.search(r"of ([\d,]+) calls", made[-1])
    assert total is not None
    assert "100 % of" in made[-1]
    assert "1 failed" in made[-1]
    assert "row 3: prompts.jsonl:4: prompt is blank" in stdout
    assert f"miga failures {out}" in stdout

    running = [each for each in seen if each["state"] == "running"]
    assert running
    assert {each["rows"] for each in running} == {4}
    assert {each["pid"] for each in running} == {run.pid}
    ended = json.loads(subprocess.run(look, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout)
    assert (ended["state"], ended["ok"], ended["failed"]) == ("finished", 3, 1)
    assert ended["network_calls"] == int(total[1].replace(",", "")), "what was counted before is what was made"


def test_a_run_on_a_terminal(prompts: Path, tmp_path: Path) -> None:
    arguments = ["generate", str(prompts), str(tmp_path / "out"), "--limit", "3"]
    program = f"from jobs.cli import main; raise SystemExit(main({arguments!r}))"
    written = on_a_terminal(program, limit_s=paced(240))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(r"starting Ray … \d", plain)
    assert re.search(r"loading the model … \d", plain)
    assert re.search(r"take-\d .*\d+/\d+ calls", plain)
    assert re.search(r"\d % of [\d,]+ calls", plain)
    assert "3 of 3 videos made" in plain
    assert "Traceback" not in plain


def test_a_run_in_tensorboard_is_gone_on_with_in_the_same_log(tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(f"a red circle\na blue ring\n{'x' * 9999}\n")
    command = [
        sys.executable,
        "-m",
        "jobs.cli",
        "generate",
        str(prompts),
        str(out),
        "--tracker",
        "tensorboard",
        "--failed-rows-ok",
    ]
    settings = [
        "--set",
        "logs.every_s=1",
        "--set",
        "logs.first_videos=1",
        "--num-frames",
        "45",
        "--failed-rows-ok",
        "--num-actors",
        "1",
    ]
    for limit in (["--limit", "1"], []):
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        run = subprocess.run(
            [*command, *settings, *limit], cwd=ROOT, env=env, capture_output=True, text=True, timeout=paced(240)
        )
        assert run.returncode == 0, run.stderr
        assert f"log: tensorboard --logdir {out}/logs" in run.stderr
        assert "the log in tensorboard ends here" not in run.stderr
    events = read_back(out / "logs")
    rows = [(event.step, event.tensor_proto.float_val[0]) for event in events["video/row"]]
    assert sorted(row for _, row in rows) == [0, 1], "each once"
    assert len({step for step, _ in rows}) == 2
    assert rows[0] == (1, 0)
    made = json.loads(
        subprocess.run(
            [sys.executable, "-m", "jobs.cli", "status", str(out), "--json"],
            cwd=ROOT, env=env, capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    last = {tag: found[-1].tensor_proto.float_val[0] for tag, found in events.items() if tag.startswith("run/")}
    assert (last["run/videos_done"], last["run/videos_failed"]) == (made["ok"], made["failed"]) == (2, 1)
    assert last["run/calls_done"] == made["network_calls"]
    calls = [event.tensor_proto.float_val[0] for event in events["video/network_calls"]]
    assert sum(calls) == made["network_calls"]
    assert 0 < max(event.tensor_proto.float_val[0] for event in events["run/gpus_busy_share"]) <= 1
    assert len(events["failed rows"]) == 1
    assert "videos/row 0" in events
    check = [sys.executable, "-m", "jobs.cli", "verify", str(out)]
    assert subprocess.run(check, cwd=ROOT, env=env, capture_output=True, check=False).returncode == 0
