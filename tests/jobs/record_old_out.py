"""A small OUT as this version leaves it: `python -m tests.jobs.record_old_out FOLDER` makes a run and stops it midway.

`tests/fixtures/old_out` is of the version before methods got folders of their own; `test_old_out.py` goes on with it.
Make another one, beside it, where a change of the format is planned: the old one stays, for such runs are out there.

    prompts.jsonl, run.toml     what the run is of
    out/                        two videos made, their latents kept; a third one stopped behind some checkpoints
    expected.json               what the same version makes of it: SHA-256, calls, keys; and the kind of processor

`tests/fixtures/old_runs.json` holds run.json of other profiles and models alone, and what names their videos.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, Final

import numpy as np

from jobs.run.plan import make_plan, run_record
from miga.outside_data import parse_toml
from pipeline.config import RunConfig, override, parse_config
from pipeline.records.manifest import Manifest
from pipeline.rows import ManifestRow
from pipeline.storage.local import LocalStorage
from pipeline.video import read_frames
from tests.machine import machine
from tests.processes import wait_for

ROOT: Final = Path(__file__).parents[2]
FIXTURES: Final = ROOT / "tests" / "fixtures"
LONGER: Final = 101
"""Frames that row 0 is extended to."""
ROWS: Final[tuple[dict[str, Any], ...]] = (
    {"id": "one", "prompt": "a red circle moving side to side on a grey ground", "num_frames": 61},
    {"id": "two", "prompt": ["a red circle", "a blue ring"], "num_frames": 37, "seed": 2**64 - 1, "tags": ["mine"]},
    {"id": "three", "prompt": ["a green square", "a blue ring"], "num_frames": 141},
)
SETTINGS: Final = """\
model = "sprites"
profile = "paper"
[sampler]
num_steps = 14
judged_group = 3
reflection_threshold = 0.0
[workers]
num_actors = 1
[run]
prompts_per_shard = 2
keep_latents = true
checkpoint_every_s = 5.0
"""
OTHERS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("sprites", "swift", {}),
    ("sprites", "paper", {"num_candidates": 5}),
    ("sprites", "released", {}),
    ("sprites", "fifo", {}),
    ("sprites", "fifo-literal", {}),
    ("sprites", "scalingnoise", {"num_beams": 2}),
    ("sprites", "stage-2-only", {}),
    ("sprites", "no-zigzag-no-guidance", {}),
    *(
        (f"simulated:{family}", profile, {})
        for family in ("wan", "videocrafter2")
        for profile in ("swift", "paper", "released", "fifo", "scalingnoise", "stage-2-only", "no-stage-2")
    ),
    ("simulated:videocrafter2", "paper", {"solver": "euler", "self_reflection": False}),
)
"""Model, profile and settings of the runs of which run.json alone is kept."""


def settings() -> RunConfig:
    """The run's."""
    return parse_config(parse_toml(SETTINGS.encode()), "run.toml")


def command(folder: Path, out: Path) -> list[str]:
    """Makes the run of `folder` in `out`, or goes on with it."""
    said = ("--config", str(folder / "run.toml"), "--json", "--quiet")
    return [sys.executable, "-m", "jobs.cli", "generate", str(folder / "prompts.jsonl"), str(out), *said]


def run(arguments: list[str]) -> dict[str, Any]:
    """What a command prints."""
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rows(out: Path) -> list[ManifestRow]:
    """Of the manifest."""
    return list(Manifest(LocalStorage(out), settings().run.prompts_per_shard).read_rows())


def brightness(video: str | Path) -> list[float]:
    """Means of every tenth frame, which hold on any processor."""
    return [round(float(np.mean(frame)), 3) for number, frame in enumerate(read_frames(video)) if number % 10 == 0]


def about(row: ManifestRow, file: Path) -> dict[str, Any]:
    """What must come out again."""
    assert hashlib.sha256(file.read_bytes()).hexdigest() == row.sha256
    return {"key": row.key, "sha256": row.sha256, "calls": row.network_calls, "brightness": brightness(file)}


def make_stopped_run(folder: Path, num_checkpoints: int = 1) -> None:
    """Makes the run, and stops it as soon as the last row has so many checkpoints."""
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "run.toml").write_text(SETTINGS)
    driver = subprocess.Popen(command(folder, folder / "out"), cwd=ROOT)

    def has_checkpoints() -> bool:
        made = list((folder / "out" / "checkpoint" / "00001").glob(f"*/e1a1-{num_checkpoints:04d}*"))
        assert driver.poll() is None, "it ended before"
        return bool(made) and (folder / "out" / "manifest" / "shard-00000.parquet").exists()

    wait_for(has_checkpoints, 300)
    time.sleep(3.0)  # the one that it leaves when it is stopped is another
    driver.send_signal(signal.SIGTERM)
    driver.wait()
    (folder / "out" / "report.html").unlink(missing_ok=True)
    for claim in (folder / "out" / "lease").glob("*.json"):
        values = json.loads(claim.read_text())
        values["owner"]["boot_id"] = str(uuid.UUID(int=0))  # of the machine that it was made on
        claim.write_text(json.dumps(values))


def expected(folder: Path) -> dict[str, Any]:
    """What this version makes of the stopped run; the third video is that of a run that was not stopped."""
    with tempfile.TemporaryDirectory() as name:
        resumed, straight = Path(name) / "resumed", Path(name) / "straight"
        shutil.copytree(folder / "out", resumed)
        calls = {where.name: run(command(folder, where))["network_calls"] for where in (resumed, straight)}
        assert [row.sha256 for row in rows(resumed)] == [row.sha256 for row in rows(straight)]
        first = rows(straight)[0].key
        extend = [sys.executable, "-m", "jobs.cli", "extend", str(resumed), first, "--num-frames", str(LONGER)]
        longer = ManifestRow.from_json(json.dumps(run([*extend, "--json"])))
        made = [about(row, Path(str(row.uri))) for row in rows(straight)]
        return {
            "machine": machine(),
            "rows": made,
            "longer": about(longer, Path(str(longer.uri))),
            "network_calls": calls,
        }


def other_runs() -> dict[str, Any]:
    """run.json of `OTHERS`, the keys of the rows that can be made with it, and the hash of its settings."""
    found: dict[str, Any] = {}
    for model, profile, sampler in OTHERS:
        with tempfile.TemporaryDirectory() as name:
            prompts = Path(name) / "prompts.jsonl"
            lines = [{name: value for name, value in row.items() if name != "num_frames"} for row in ROWS]
            prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
            config = override(RunConfig(), model=model, profile=profile, sampler=sampler)
            plan = make_plan(str(prompts), f"{name}/out", config)
            record = run_record(plan)
            values = json.loads(record.to_json())
            values["prompts"]["path"] = "prompts.jsonl"
            keys = [record.key(row) for row in plan.rows()]
            said = "".join(f" {key}={value}" for key, value in sampler.items())
            found[f"{model} {profile}{said}"] = {"run": values, "keys": keys, "config_hash": record.config_hash}
    return found


def main() -> int:
    """Writes what is not there yet."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "out").exists():
        make_stopped_run(folder)
    if not (folder / "expected.json").exists():
        (folder / "expected.json").write_text(json.dumps(expected(folder), indent=1) + "\n")
    if not (folder / "old_runs.json").exists():
        lines = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in other_runs().items()]
        (folder / "old_runs.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
