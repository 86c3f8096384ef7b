"""A whole run with prompts and OUT in object storage."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from actors.messages import VideoFailed
from actors.runtime import Slots
from actors.worker.backbone import BackboneWorker
from jobs.run.make import worker_settings
from jobs.run.plan import make_plan
from pipeline.config import RunConfig
from pipeline.storage.open import open_storage
from pipeline.upkeep.verify import verify
from tests.actors.hosts import MODEL, Making, task
from tests.faulty_s3 import FaultyS3
from tests.pace import paced

pytestmark = [pytest.mark.ray, pytest.mark.s3]

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # test_storage_s3.py has every call, test_generate_run.py the run
def test_prompts_and_out_may_lie_in_a_bucket(s3_root: str, s3_server: dict[str, str], tiny_model: Path) -> None:
    bucket = open_storage(s3_root)
    bucket.write_bytes("prompts.jsonl", b'{"prompt": "a red circle"}\n{"prompt": ""}\n')
    command = [sys.executable, "-m", "jobs.cli", "generate", bucket.uri("prompts.jsonl"), f"{s3_root}/run",
               "--model", str(tiny_model), "--num-actors", "1", "--json"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | s3_server, capture_output=True, text=True, check=False, timeout=paced(240)
    )
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["failed"]) == (1, 1)
    good, bad = pq.read_table(io.BytesIO(bucket.read_bytes("run/manifest/shard-00000.parquet"))).to_pylist()
    assert good["uri"].startswith("video/00000/")
    assert bucket.stat(f"run/{good['uri']}").bytes == good["bytes"]
    assert bad["status"] == "failed"
    assert verify(open_storage(f"{s3_root}/run")).is_sound
    secret = s3_server["AWS_SECRET_ACCESS_KEY"]
    assert secret not in done.stdout + done.stderr
    for path in bucket.list():
        assert secret.encode() not in bucket.read_bytes(path), path


@pytest.mark.slow
def test_workers_are_as_patient_as_the_driver_was_told(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment of their node says."""
    (tmp_path / "prompts.txt").write_text("a cat\n")
    plan = make_plan(str(tmp_path / "prompts.txt"), s3_root, RunConfig(model=MODEL, profile="paper", num_frames=61))
    monkeypatch.setenv("MIGA_S3_PATIENCE_S", "1")
    settings = worker_settings(plan, s3_root, Slots(num_actors=1, cpus=1, gpus=0))
    monkeypatch.setenv("MIGA_S3_PATIENCE_S", "1000")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        worker = BackboneWorker(settings)
        worker.load()
        proxy.is_gone = True
        ended = Making(worker, task(61), "a cat").end()
    assert isinstance(ended, VideoFailed)
    assert "no usable answer for 1 s" in ended.error
    assert (ended.scope, ended.error_type) == ("run", "OutputError")
