"""A whole run with prompts and OUT in object storage (a moto server in this process)."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.s3]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def s3_env() -> Iterator[dict[str, str]]:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


def test_prompts_and_out_may_lie_in_a_bucket(
    s3_env: dict[str, str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    for name, value in s3_env.items():
        monkeypatch.setenv(name, value)
    bucket = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    bucket.mkdir("dataset")
    bucket.pipe("dataset/prompts.jsonl", b'{"prompt": "a red circle"}\n{"prompt": ""}\n')
    command = [sys.executable, "-m", "jobs.cli", "generate", "s3://dataset/prompts.jsonl", "s3://dataset/run",
               "--model", str(tiny_model), "--num-actors", "1", "--json"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | s3_env, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 3, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["ok"], summary["failed"]) == (1, 1)
    good, bad = pq.read_table(io.BytesIO(bucket.cat("dataset/run/manifest/shard-00000.parquet"))).to_pylist()
    assert good["uri"].startswith("s3://dataset/run/video/")
    assert bucket.info(good["uri"])["size"] == good["bytes"]
    assert bad["status"] == "failed"
    assert s3_env["AWS_SECRET_ACCESS_KEY"] not in done.stderr.split()
