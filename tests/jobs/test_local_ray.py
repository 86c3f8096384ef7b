"""Commands that make videos with real worker processes, one after the other on one local Ray."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.runtime import ray_session
from miga.backbones.registry import load_spec
from miga.cost import count_calls
from miga.profiles import resolve_config
from pipeline.config import WorkersConfig
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import manifest_path
from pipeline.storage.local import LocalStorage
from pipeline.upkeep.verify import verify
from pipeline.video import read_frames
from tests.ablation_grid import GRID
from tests.cli import run
from tests.processes import descendants, wait_for

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    """As a command starts it; those of this module find it there."""
    with pytest.MonkeyPatch.context() as env:
        env.delenv("RAY_ADDRESS", raising=False)
        with ray_session(WorkersConfig(num_actors=1)):
            yield


@pytest.mark.slow
def test_its_dashboard_is_on_loopback() -> None:
    dashboards = [command for command in descendants(os.getpid()).values() if "dashboard.py" in command]
    assert len(dashboards) == 1
    assert "--host=127.0.0.1 " in dashboards[0]


def workers() -> list[str]:
    """Processes that hold a backbone or a text encoder."""
    return [
        title for title in descendants(os.getpid()).values() if re.match(r"ray::(Backbone|TextEncoder)Worker", title)
    ]


@pytest.mark.slow
def test_retry_failed_makes_those_rows_and_no_others(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of an unfinished run: row 1 was given up, row 4 was not come to; the prompt file was moved."""

    def miga(*arguments: object) -> tuple[int, dict[str, Any]]:
        status, printed, error = run(capsys, *arguments, "--json", "--quiet")
        return status, json.loads(printed.splitlines()[-1]) if printed else {"error": error}

    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("".join(f"prompt {index}\n" for index in range(5)))
    config = tmp_path / "run.toml"
    config.write_text("[run]\nprompts_per_shard = 3\n")
    model = "simulated:wan?call_s=0&decode_s=0&load_s=0"
    options = ("--config", config, "--model", model, "--num-actors", 1)
    status, summary = miga("generate", prompts, out, *options)
    assert status == 0, summary
    storage = LocalStorage(out)
    manifest = Manifest(storage, 3)
    before = list(manifest.read_rows())

    def give_up(index: int, settled: bool) -> None:
        row = before[index]
        storage.delete(next(path for path in storage.list("done") if f"/{index:08d}-" in path))
        storage.delete("video" + (row.uri or "").partition("/video")[2])
        if settled:
            lost = replace(row, status="failed", error_type="NonFiniteError", error="NaN", uri=None, sha256=None)
            manifest.record(lost)

    for shard in (0, 1):
        storage.delete(manifest_path(shard))
    give_up(1, settled=True)
    give_up(4, settled=False)
    assert manifest.seal(0) == 3
    moved = prompts.rename(tmp_path / "moved.txt")
    status, summary = miga("retry-failed", out, "--prompts", moved)
    assert status == 0, summary
    assert (summary["ok"], summary["failed"], summary["already_done"]) == (4, 0, 3)
    after = {row.row: row for row in manifest.read_rows()}
    assert sorted(after) == [0, 1, 2, 3]
    assert [after[index] for index in (0, 2, 3)] == [before[index] for index in (0, 2, 3)]
    assert (after[1].sha256, after[1].key) == (before[1].sha256, before[1].key)
    assert after[1].uri != before[1].uri
    assert manifest.sealed_statuses(0) == dict.fromkeys(range(3), "ok")
    wait_for(lambda: not workers())  # Ray goes on, and what comes next needs their slots
    found = verify(storage, prompts=str(moved))
    assert [(fault.kind, fault.where) for fault in found.faults] == [("missing", "row 4")]


@pytest.mark.slow  # tests/pipeline/test_ablation.py has its figures and tables without Ray
def test_an_ablation_makes_scores_and_tables_every_setting_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, grid, out = tmp_path / "prompts.txt", tmp_path / "grid.toml", tmp_path / "out"
    prompts.write_text("a red ball\na boat rolls\n")
    grid.write_text(GRID)
    options = ["--grid", grid, "--model", tiny_model, "--tables", "width", "--num-frames", 29, "--num-actors", 1]
    options += ["--json", "--quiet"]
    status, stdout, message = run(capsys, "ablate", prompts, out, *options)
    assert (status, message) == (0, "")
    summary = json.loads(stdout)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["plain", "wide"]
    videos = sorted(out.rglob("*.mp4"))
    assert len(videos) == 4
    (table,) = summary["tables"]
    assert table["columns"] == ["sc", "bc", "ms", "tf", "os", "calls"], "no motion: not of the sprite world"
    plain, wide, again = table["rows"]
    assert plain["figures"] == again["figures"]
    assert again["against_first_row"]["os"] == {"value": 0.0, "low": 0.0, "high": 0.0, "num_videos": 2}
    calls = count_calls(resolve_config("no-reflection", load_spec(str(tiny_model))), 8).total
    assert plain["figures"]["calls"]["value"] == pytest.approx(calls / 29)
    flicker = [
        1 - np.abs(np.diff(np.stack(list(read_frames(file))).astype(float), axis=0)).mean() / 255
        for file in videos
        if "wide" in file.parts
    ]
    assert wide["figures"]["tf"]["value"] == pytest.approx(np.mean(flicker), abs=1e-6)
    assert wide["figures"]["tf"]["num_videos"] == 2
    page = (out / "ablation.md").read_text()
    assert "2 again" in page
    assert "![the width](fig-width.png)" in page
    assert (out / "fig-width.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "ablation.json").read_text())["tables"] == summary["tables"]

    # Again: nothing is made or scored anew (nor Ray asked for), even where OUT has been moved; the page is the same.
    moved = out.with_name("moved")
    out.rename(moved)
    kept = written(moved)
    (moved / "ablation.md").unlink()
    monkeypatch.setattr("actors.runtime.ray_session", None)
    status, stdout, message = run(capsys, "ablate", prompts, moved, *options)
    assert status == 0, message
    assert json.loads(stdout)["tables"] == summary["tables"]
    assert (moved / "ablation.md").read_text() == page
    assert written(moved) == kept

    # Other prompts do not mix with these.
    status, _, message = run(capsys, "ablate", prompts, moved, *options, "--seeds", 2)
    assert status == 2
    assert "other prompts" in message


def written(out: Path) -> dict[Path, int]:
    """When the files of runs and scores were written."""
    return {file: file.stat().st_mtime_ns for name in ("runs", "scores") for file in (out / name).rglob("*.*")}
