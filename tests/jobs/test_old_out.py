"""Runs of the version before methods got folders of their own: every command takes them, and goes on bit for bit.

`record_old_out.py` says what the fixtures hold and how they were made.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from jobs.run.plan import make_plan, run_record
from miga.backbones.registry import load_backbone
from miga.checkpoint import load_checkpoints
from miga.errors import OutputError
from miga.video import VideoRun
from pipeline.config import load_config, parse_config
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import RunRecord, check_run, read_run
from pipeline.rows import ManifestRow, PromptRow
from pipeline.storage.local import LocalStorage
from pipeline.video import write_video
from tests.cli import run
from tests.jobs.record_old_out import FIXTURES, LONGER, ROWS, brightness
from tests.machine import machine

FOLDER = FIXTURES / "old_out"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
OLD_RUNS = json.loads((FIXTURES / "old_runs.json").read_text())
LAST = len(ROWS) - 1
"""The row that was in the making."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A copy of the run, in another place than it was made in."""
    return Path(shutil.copytree(FOLDER / "out", tmp_path / "out"))


def checkpoints(out: Path) -> list[Path]:
    return sorted((out / "checkpoint").rglob("*.safetensors"))


def rows(out: Path) -> list[ManifestRow]:
    return list(Manifest(LocalStorage(out), read_run(LocalStorage(out)).settings.run.prompts_per_shard).read_rows())


def check_video(file: Path, sha256: str, expected: dict[str, Any]) -> None:
    """The same bytes; on a processor whose kernels round otherwise, frames as bright as those."""
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sha256
    found = brightness(file)
    assert found == pytest.approx(expected["brightness"], abs=2.0)
    if machine() == EXPECTED["machine"]:
        assert found == expected["brightness"]
        assert sha256 == expected["sha256"]


def test_the_fixture_is_of_a_video_in_the_making(out: Path) -> None:
    assert len(checkpoints(out)) == 2
    assert [row.row for row in rows(out)] == [*range(LAST)]
    assert [(row.key, row.sha256, row.network_calls) for row in rows(out)] == [
        (made["key"], made["sha256"], made["calls"]) for made in EXPECTED["rows"][:LAST]
    ]


def test_status_and_report(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    status, printed, _ = run(capsys, "status", out, "--json")
    assert status == 0
    said = json.loads(printed)
    assert (said["ok"], said["failed"]) == (LAST, 0)
    assert run(capsys, "report", out)[0] == 0
    page = (out / "report.html").read_text()
    for made in EXPECTED["rows"][:LAST]:
        assert made["key"] in page


def test_verify_misses_the_unfinished_row_alone(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    status, printed, _ = run(capsys, "verify", out, "--prompts", FOLDER / "prompts.jsonl", "--json")
    said = json.loads(printed)
    assert (status, said["rows"], said["ok"]) == (1, LAST, LAST)
    assert [fault["where"] for fault in said["faults"]] == [f"row {LAST}"]


def test_export(capsys: pytest.CaptureFixture[str], out: Path, tmp_path: Path) -> None:
    assert run(capsys, "export", out, tmp_path / "dest", "--format", "hf", "--quiet")[0] == 0
    table = pq.read_table(tmp_path / "dest" / "train" / "metadata.parquet")
    assert table.num_rows == LAST
    files = sorted((tmp_path / "dest").rglob("*.mp4"))
    found = {hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    assert found == {made["sha256"] for made in EXPECTED["rows"][:LAST]}


def test_gc_leaves_what_is_gone_on_with(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.parent.name != "lease"}
    made = next((out / "video").rglob("*.mp4"))
    orphan = made.with_name(made.name.replace("-e1a1", "-e1a2"))
    orphan.write_bytes(b"1234")
    status, printed, _ = run(capsys, "gc", out, "--json")
    assert status == 0
    assert json.loads(printed)["video"] == 1
    assert not orphan.exists()
    assert {file: file.read_bytes() for file in before if file.exists()} == before


@pytest.mark.slow  # tests/jobs/test_extend.py has runs of this version
def test_extend_goes_on_bit_for_bit(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    status, printed, error = run(
        capsys, "extend", out, EXPECTED["rows"][0]["key"], "--num-frames", LONGER, "--json", "--quiet"
    )
    assert status == 0, error
    longer, expected = ManifestRow.from_json(printed), EXPECTED["longer"]
    assert (longer.key, longer.num_frames, longer.network_calls) == (expected["key"], LONGER, expected["calls"])
    check_video(Path(str(longer.uri)), str(longer.sha256), expected)


class Counted:
    """A backbone whose network counts its calls."""

    def __init__(self, backbone: Any) -> None:
        self.backbone, self.num_calls = backbone, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backbone, name)

    def denoiser(self, config: Any) -> Any:
        outer, denoiser = self, self.backbone.denoiser(config)

        class Network:
            def __getattr__(self, name: str) -> Any:
                return getattr(denoiser, name)

            def __call__(self, x_BFCHW: torch.Tensor, *arguments: Any) -> torch.Tensor:
                outer.num_calls += len(x_BFCHW)
                return denoiser(x_BFCHW, *arguments)

        return Network()


@pytest.mark.slow
def test_the_checkpoint_is_gone_on_with_bit_for_bit(out: Path, tmp_path: Path) -> None:
    """By the sampler itself, so that the network's calls can be counted; in a process that has done nothing else."""
    script = "import sys, pathlib; from tests.jobs.test_old_out import go_on; go_on(*map(pathlib.Path, sys.argv[1:]))"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(out), str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def go_on(out: Path, tmp_path: Path) -> None:
    """Makes the rest of the video that was in the making, and holds it against what was recorded."""
    torch.set_num_threads(1)
    plan = make_plan(str(FOLDER / "prompts.jsonl"), str(out), load_config(FOLDER / "run.toml"))
    row = list(plan.rows())[LAST]
    assert isinstance(row, PromptRow)
    num_latents = plan.spec.num_latents(row.num_frames)
    checkpoint = load_checkpoints(
        checkpoints(out), config=plan.sampler, num_latents=num_latents, seed=row.seed, num_prompts=len(row.prompts)
    )
    backbone = Counted(load_backbone(plan.config.model, device="cpu"))
    *embeddings, negative = backbone.encode_prompts([*row.prompts, plan.spec.negative_prompt])
    with VideoRun(
        backbone, plan.sampler, embeddings, negative, num_latents, row.seed, resume=checkpoint, has_checkpoints=False
    ) as video:
        frames = [step.frames for step in video.steps() if step.frames is not None]
        num_calls = video.sampler.num_calls
    made = write_video(
        frames, tmp_path / "video.mp4", fps=plan.spec.fps, settings=plan.config.video, num_frames=row.num_frames
    )
    expected = EXPECTED["rows"][LAST]
    check_video(Path(made.path), made.sha256, expected)
    assert num_calls == expected["calls"]
    assert backbone.num_calls == expected["calls"] - checkpoint.num_calls
    assert checkpoint.num_calls > expected["calls"] // 3, "much of it was made before"


@pytest.mark.ray
@pytest.mark.slow
def test_the_run_is_gone_on_with(
    capsys: pytest.CaptureFixture[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {file: file.stat().st_mtime_ns for file in (out / "video").rglob("*.mp4")}
    arguments = ("generate", FOLDER / "prompts.jsonl", out, "--config", FOLDER / "run.toml", "--json", "--quiet")
    status, printed, error = run(capsys, *arguments)
    assert status == 0, error
    summary = json.loads(printed.splitlines()[-1])
    assert (summary["resumed"], summary["ok"], summary["already_done"]) == (True, LAST + 1, LAST)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not checkpoints(out)
    found = rows(out)
    assert [row.key for row in found] == [made["key"] for made in EXPECTED["rows"]]
    check_video(Path(str(found[LAST].uri)), str(found[LAST].sha256), EXPECTED["rows"][LAST])
    assert run(capsys, "verify", out, "--prompts", FOLDER / "prompts.jsonl", "--quiet")[0] == 0


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", OLD_RUNS)
def test_what_names_a_video_stays(name: str, tmp_path: Path) -> None:
    """run.json is read, its videos keep their keys, and the same settings resume it."""
    old = OLD_RUNS[name]
    record = RunRecord.from_json(json.dumps(old["run"]))
    assert record.config_hash == old["config_hash"]
    prompts = tmp_path / "prompts.jsonl"
    lines = [{name: value for name, value in row.items() if name != "num_frames"} for row in ROWS]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = {key: old["run"]["config"][key] for key in ("model", "profile", "sampler")}
    plan = make_plan(str(prompts), str(tmp_path / "out"), parse_config(said, name))
    assert [record.key(row) for row in plan.rows()] == old["keys"]
    storage = LocalStorage(tmp_path / "out")
    storage.write_bytes("run.json", json.dumps(old["run"]).encode())
    assert check_run(storage, run_record(plan)) == record
    other = make_plan(str(prompts), str(tmp_path / "out"), parse_config(said | {"seed": 1}, name))
    with pytest.raises(OutputError, match="would make other videos"):
        check_run(storage, run_record(other))
