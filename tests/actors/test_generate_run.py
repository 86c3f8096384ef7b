"""Whole runs on a local Ray, with real processes: rows in, videos and manifest out, whatever dies on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.video import count_frames
from tests.pace import paced
from tests.processes import is_running, wait_for

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


def command(prompts: Path, out: Path, model: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", "generate", str(prompts), str(out), "--model", str(model), "--json",
            *options]  # fmt: skip


def run(prompts: Path, out: Path, model: Path, *options: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(command(prompts, out, model, *options), cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"stderr": done.stderr}


def manifest(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((out / "manifest").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def descendants(pid: int) -> dict[int, str]:
    """Process → its command line, of everything a process has started, read from /proc."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, todo = {}, [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found[child] = names.get(child, "")
            todo.append(child)
    return found


def hosts() -> set[int]:
    """Processes that are writing a video just now."""
    files = Path(tempfile.gettempdir()).glob("miga-*/.video.mp4.*.partial.mp4")
    return {int(file.name.split(".")[3]) for file in files}


def check_complete(out: Path, num_rows: int, failed: set[int] = frozenset()) -> list[dict[str, Any]]:  # type: ignore[assignment]
    """One row per input row, every file there, whole, and as the manifest says."""
    rows = manifest(out)
    assert [row["row"] for row in rows] == list(range(num_rows))
    assert {row["row"] for row in rows if row["status"] == "failed"} == failed
    for row in rows:
        if row["status"] == "failed":
            assert row["error"]
            continue
        assert re.fullmatch(r"video/\d{5}/[0-9a-z-]+\.mp4", row["uri"]), "OUT may be moved"
        file = out / row["uri"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        assert count_frames(file) == row["num_frames"]
        assert len(row["consistency"]) == row["num_evaluations"]
    assert not list(out.rglob("*.partial*"))
    return rows


@pytest.mark.slow  # tests/jobs/test_local_ray.py, test_sample.py and test_cli.py see parts of it
def test_a_run_makes_every_good_row_quarantines_the_bad_ones_and_is_resumed(tmp_path: Path, tiny_model: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    lines = [
        {"id": "one", "prompt": "a red circle"},
        {"prompt": "   "},
        {"prompt": ["a red circle", "a blue circle 🟦 \u001b[31m"], "num_frames": 61, "seed": 2**64 - 1},
        {"prompt": "a red circle", "num_frames": 60},
        {"id": "one", "prompt": "a second one"},
        {"prompt": "word " * 2000},
        {"prompt": "a red circle", "seed": 2**64},
        {"prompt": "a red circle", "tags": {"kind": "mine"}},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, summary = run(prompts, out, tiny_model, "--profile", "paper")
    assert status == 3, summary
    assert (summary["ok"], summary["failed"]) == (3, 5)
    rows = check_complete(out, 8, failed={1, 3, 4, 5, 6})
    assert "blank" in rows[1]["error"]
    assert "57 or 61" in rows[3]["error"]
    assert "one" in rows[4]["error"]
    assert "512" in rows[5]["error"]
    assert "prompts.jsonl:7" in rows[6]["error"]
    assert rows[2]["num_frames"] == 61
    assert rows[2]["seed"] == 2**64 - 1
    assert rows[2]["prompts"] == lines[2]["prompt"]
    assert json.loads(rows[7]["metadata"]) == {"tags": {"kind": "mine"}}
    assert rows[0]["num_frames"] == 37
    assert rows[0]["num_evaluations"] > 0
    assert rows[0]["key"] in (out / "report.html").read_text()

    # The same command again: nothing is made anew.
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.mp4")}
    status, summary = run(prompts, out, tiny_model, "--profile", "paper")
    assert status == 3
    assert summary["resumed"]
    assert summary["already_done"] == 8
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.mp4")} == written

    # Another config on the same OUT is refused.
    status, summary = run(prompts, out, tiny_model, "--profile", "fifo")
    assert status == 2
    assert "fifo" in summary["stderr"]


@pytest.mark.slow  # tests/jobs/test_local_ray.py has the command `retry-failed`
def test_a_failure_on_record_stays_one_until_it_is_to_be_tried_again(tmp_path: Path, tiny_model: Path) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle\na blue ring\n")
    assert run(prompts, out, tiny_model)[0] == 0
    rows = check_complete(out, 2)
    (sidecar,) = (out / "done").rglob("00000001-*.json")
    failed = json.loads(sidecar.read_text()) | {"status": "failed", "error": "made up", "error_type": "RowError"}
    del failed["checksum"]  # as versions before wrote it
    dead = out / "dead" / "00000"
    dead.mkdir(parents=True, exist_ok=True)
    (dead / sidecar.name).write_text(json.dumps(failed))
    sidecar.unlink()
    (out / "manifest" / "shard-00000.parquet").unlink()
    status, summary = run(prompts, out, tiny_model)
    assert (status, summary["failed"]) == (3, 1), summary
    status, summary = run(prompts, out, tiny_model, "--retry-failed")
    assert status == 0, summary
    assert [row["sha256"] for row in check_complete(out, 2)] == [row["sha256"] for row in rows]


@pytest.mark.slow  # tests/faults/test_chaos.py kills both, too
def test_a_killed_worker_costs_no_row_and_changes_no_video(tmp_path: Path, tiny_model: Path) -> None:
    """The same bytes come from one actor left alone and from two of which one is killed at work."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue ring\na red circle\n")
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert run(prompts, alone, tiny_model, "--num-frames", "157", "--num-actors", "1")[0] == 0
    driver = subprocess.Popen(
        command(prompts, killed, tiny_model, "--num-frames", "157"), cwd=ROOT, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    victim = wait_for(lambda: next(iter(hosts() & descendants(driver.pid).keys()), None))
    os.kill(victim, signal.SIGKILL)
    _, stderr = driver.communicate(timeout=paced(240))
    assert driver.returncode == 0, stderr
    assert "goes back to the queue" in stderr
    rows = check_complete(killed, 3)
    assert {row["attempt"] for row in rows} == {1, 2}
    assert [row["sha256"] for row in rows] == [row["sha256"] for row in check_complete(alone, 3)]
    assert len({row["sha256"] for row in rows}) == 3, "rows without a seed of their own get different ones"


@pytest.mark.slow  # tests/faults/test_chaos.py kills both, too
def test_a_killed_driver_leaves_a_run_to_go_on_with(tmp_path: Path, tiny_model: Path) -> None:
    """First SIGTERM, as `ray job stop` sends it, then SIGKILL; what is settled stays as it is."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("a red circle\n" * 6)
    made: dict[str, bytes] = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        driver = subprocess.Popen(
            command(prompts, out, tiny_model, "--num-actors", "1"), cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True
        )  # fmt: skip
        wait_for(lambda made=made: {file.name for file in (out / "done").rglob("*.json")} - made.keys())
        started = descendants(driver.pid)
        driver.send_signal(number)
        _, stderr = driver.communicate(timeout=paced(120))
        if number == signal.SIGTERM:
            assert driver.returncode == 1
            assert "the same command goes on" in stderr
        else:
            assert driver.returncode == -signal.SIGKILL
        settled = {file.name: file.read_bytes() for file in (out / "done").rglob("*.json")}
        assert len(made) < len(settled) < 6
        assert made.items() <= settled.items()
        made = settled
        workers = [pid for pid, name in started.items() if "EncoderWorker" in name or "BackboneWorker" in name]
        assert workers
        wait_for(lambda workers=workers: not any(is_running(pid) for pid in workers))
        for pid in started:  # Ray's own agents end by themselves, but take up to a minute
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    status, summary = run(prompts, out, tiny_model)
    assert status == 0, summary
    assert summary["already_done"] == len(made)
    check_complete(out, 6)
    assert made.items() <= {file.name: file.read_bytes() for file in (out / "done").rglob("*.json")}.items()
