"""`miga simulate`, through its command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.simulation.ledger_speed import bench_ledger, play_ledger
from miga.backbones.registry import load_spec
from miga.cost import count_calls
from miga.profiles import resolve_config

SMALL = ["simulate", "--quiet", "--gpus", "8", "--videos", "16", "--profile", "swift"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*SMALL, "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_equal_videos_take_what_their_calls_take(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = [
        "--search-rate",
        "0",
        "--share",
        "nothing",
        "--load-s",
        "0",
        "--upload-s",
        "0",
        "--checkpoint-every-s",
        "inf",
    ]
    found = run(capsys, *quiet, "--call-s", "2")["runs"][0]
    spec = load_spec("simulated:wan")
    calls = count_calls(resolve_config("swift", spec), spec.num_latents(spec.default_num_frames)).total
    tail_s = 2.0
    assert found["makespan_s"] == pytest.approx(2 * (2 * calls + tail_s))
    assert found["computed_h"] == pytest.approx(16 * 2 * calls / 3600)
    assert (found["num_ok"], found["num_quarantined"]) == (16, 0)
    assert found["settings"]["checkpoint_every_s"] is None


@pytest.mark.slow
def test_helpers_that_take_candidates_alone_make_no_other_window(capsys: pytest.CaptureFixture[str]) -> None:
    """One video on eight GPUs: without searches nobody helps; with them they add less than on the host alone."""
    alone = [
        "--videos",
        "1",
        "--profile",
        "paper",
        "--num-frames",
        "81",
        "--load-s",
        "0",
        "--upload-s",
        "0",
        "--call-s",
        "1",
    ]
    found = {
        (share, rate): run(capsys, *alone, "--share", share, "--search-rate", rate)["runs"][0]
        for share in ("windows", "candidates", "nothing")
        for rate in ("0", "0.3")
    }
    spec = load_spec("simulated:wan")
    calls = count_calls(resolve_config("paper", spec), spec.num_latents(81)).total
    checkpoints_s, tail_s = 0.2 * found["nothing", "0"]["num_checkpoints"], 2.0
    assert found["nothing", "0"]["makespan_s"] == pytest.approx(calls + checkpoints_s + tail_s)
    assert found["candidates", "0"]["makespan_s"] == pytest.approx(found["nothing", "0"]["makespan_s"])
    assert found["windows", "0"]["makespan_s"] < calls / 5
    added = {
        share: found[share, "0.3"]["makespan_s"] - found[share, "0"]["makespan_s"]
        for share in ("candidates", "nothing")
    }
    assert abs(added["candidates"]) < added["nothing"] / 3, "the speed-up is that at the average number of searches"
    assert found["candidates", "0.3"]["computed_h"] == pytest.approx(found["nothing", "0.3"]["computed_h"])
    assert found["candidates", "0"]["settings"]["share"] == "candidates"


def test_a_table_has_a_row_per_size_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--gpus", "4", "8", "--videos", "8", "--checkpoint-every-s", "60", "600"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines[2:]]
    assert cells == [["4", "8", "60"], ["4", "8", "600"], ["8", "8", "60"], ["8", "8", "600"]]


@pytest.mark.slow
def test_mixes_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    found = run(capsys, "--num-frames", "81:3", "161", "--speeds", "1", "0.5:2", "--family", "wan")["runs"][0]
    assert found["num_frames"] == {"81": 3.0, "161": 1.0}
    assert found["speeds"] == {"1.0": 1.0, "0.5": 2.0}


def test_failures_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ["--kills-per-gpu-hour", "2", "--preemptions-per-node-hour", "1", "--notice-s", "0"]
    found = run(capsys, *rates, "--videos", "40")["runs"][0]
    assert found["num_kills"] > 0
    assert found["num_preemptions"] > 0
    assert 0 < found["lost_share"] < 0.2
    assert found["num_attempts"] > 40


def test_a_run_that_aborts_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    hopeless = ["--kills-per-gpu-hour", "100", "--checkpoint-every-s", "inf", "--videos", "100"]
    assert main([*SMALL, *hopeless]) == 0
    assert "the run stops: " in capsys.readouterr().out


@pytest.mark.slow
def test_plots_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.simulation.scenarios.SWEEP_GPUS", 8)
    files = run(capsys, "--out", str(tmp_path / "plots"))["files"]
    assert [Path(file).name for file in files] == ["utilisation.png", "tail.png", "lost-work.png", "simulation.json"]
    for file in files[:3]:
        assert Path(file).read_bytes().startswith(b"\x89PNG\r\n")
    rows = json.loads(Path(files[3]).read_text())
    assert len(rows) == 1 + 5 * 3
    assert {row["settings"]["kills_per_gpu_hour"] for row in rows[1:]} == {0.01, 0.05, 0.2}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--gpus", "0"], "num_gpus 0"),
        (["--gpus", "8", "8"], "--gpus names a value twice"),
        (["--videos", "0"], "num_videos 0"),
        (["--call-s", "nan"], "call_s nan"),
        (["--notice-s", "-1"], "notice_s -1.0"),
        (["--kills-per-gpu-hour", "inf"], "kills_per_gpu_hour inf"),
        (["--checkpoint-every-s", "0"], "checkpoint_every_s 0.0"),
        (["--num-frames", "160"], "157 or 161"),
        (["--num-frames", "161:x"], "'161:x'"),
        (["--num-frames", "161", "161:2"], "names 161 twice"),
        (["--speeds", "1:0"], "speeds"),
        (["--speeds", "fast"], "'fast'"),
        (["--profile", "nope"], "unknown profile 'nope'"),
        (["--ledger-rows", "3"], "two rows a worker"),
        (["--family", "flowers"], "write simulated:wan or simulated:videocrafter2"),
    ],
)
def test_bad_values_are_refused(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *arguments]) == 2
    assert named in capsys.readouterr().err


def test_what_helpers_cannot_take_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, "--share", "helpers"])
    assert "(choose from 'windows', 'candidates', 'nothing')" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*SMALL, "--out", str(tmp_path / "file" / "plots")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ledger_alone_settles_every_row() -> None:
    # a row is read, shows progress, is made and stored; besides, the workers join and the file ends
    assert play_ledger(5000, 20) == 20 + 4 * 5000 + 1
    (row,) = bench_ledger(2000, 10)
    assert (row["rows"], row["workers"]) == (2000, 10)
