"""A run's storage under the IAM policy of infra/, which the S3 server enforces."""

from __future__ import annotations

import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miga.errors import OutputError
from tests.pace import paced

pytestmark = pytest.mark.s3

ROOT = Path(__file__).parents[2]
NEVER = "inf"


def ask_for_permission_from_now_on(endpoint: str, after: str) -> None:
    import urllib.request

    request = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", data=after.encode(), method="POST", headers={"Content-Type": "text/plain"}
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=paced(10)):
        pass


@pytest.fixture
def as_the_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that knows the policy's user only; the environment holds that user's keys."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    admin: dict[str, Any] = {"endpoint_url": endpoint, "region_name": "us-east-1",
                             "aws_access_key_id": "admin", "aws_secret_access_key": "admin"}  # fmt: skip
    boto3.client("s3", **admin).create_bucket(Bucket="bucket")
    iam = boto3.client("iam", **admin)
    user = f"run-{uuid.uuid4().hex}"  # the server keeps users as long as this process lives
    iam.create_user(UserName=user)
    policy = (ROOT / "infra/aws/iam-run-policy.json").read_text()
    iam.put_user_policy(UserName=user, PolicyName="miga", PolicyDocument=policy)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    ask_for_permission_from_now_on(endpoint, after="0")
    yield endpoint
    ask_for_permission_from_now_on(endpoint, after=NEVER)
    server.stop()


def test_storage_needs_no_more_than_the_policy_grants(as_the_run: str, tmp_path: Path) -> None:
    from pipeline.storage.open import open_storage

    storage = open_storage("s3://bucket/run")
    storage.probe()
    assert storage.write_bytes("run.json", b"{}", if_absent=True)
    assert not storage.write_bytes("run.json", b"[]", if_absent=True)
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(b"small")
    with large.open("wb") as file:
        file.truncate(70 << 20)  # goes up in parts
    storage.put_file(small, "video/00000/small.mp4")
    storage.put_file(large, "video/00000/large.mp4")
    assert storage.read_bytes("video/00000/small.mp4") == b"small"
    assert storage.exists("video/00000/large.mp4")
    assert storage.children("video/00000") == ["large.mp4", "small.mp4"]
    storage.delete("video/00000/small.mp4")
    assert list(storage.list()) == ["run.json", "video/00000/large.mp4"]


def test_the_policy_reaches_no_other_run(as_the_run: str) -> None:
    # In a process of its own: what it leaves of the S3 client dies with it.
    script = (
        "from pipeline.storage.open import open_storage\n"
        "open_storage('s3://bucket/other').write_bytes('run.json', b'{}')\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=paced(60)
    )
    assert done.returncode != 0
    assert OutputError.__name__ in done.stderr
    assert "s3://bucket/other" in done.stderr
