"""What all tests share: no network, one thread, and a tiny random model in the real format."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_timeout

from tests.pace import paced

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

SEEN_CASES: Counter[str] = Counter()
"""Test → its cases seen so far."""

TINY_SETTINGS = {
    "num_frames": 29,
    "height": 32,
    "width": 32,
    "fps": 8,
    "negative_prompt": "",
    "default_num_frames": 37,
    "sampler": {
        "num_steps": 8,
        "zigzag_width": 2,
        "handoff_level": 3,
        "num_guidance_latents": 2,
        "guidance_scale": 2.0,
        "flow_shift": 3.0,
        "num_eval_latents": 2,
        "num_reference_latents": 2,
        "num_reflection_guidance_latents": 4,
        "judged_group": 3,
    },
}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Of a test marked `sampled(every)`, each so-many-th case stays a fast one; all are run with the slow ones."""
    if (sampled := item.get_closest_marker("sampled")) is not None:
        test = item.nodeid.partition("[")[0]
        if SEEN_CASES[test] % sampled.args[0]:
            item.add_marker(pytest.mark.slow)
        SEEN_CASES[test] += 1


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Any:
    """A test's timeout is one of an idle machine, too."""
    return pytest_timeout.pytest_timeout_set_timer(item, settings._replace(timeout=paced(settings.timeout)))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete Wan folder with random weights: 8 latents a clip, 32 x 32 pixels."""
    from tests.tiny_wan import build_tiny_wan

    return build_tiny_wan(tmp_path_factory.mktemp("model") / "tiny", settings=TINY_SETTINGS)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """The environment variables that lead to an S3 server."""
    from tests.faulty_s3 import s3_server as start

    with start() as environment:
        yield environment


@pytest.fixture
def s3_root(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a bucket of its own; the environment leads to its server."""
    from tests.faulty_s3 import bucket_client

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    bucket_client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}/deep/prefix"


@pytest.fixture(scope="session")
def fake_clouds() -> Iterator[dict[str, Any]]:
    """A server of Google Cloud Storage and one of Azure Blob Storage, by scheme."""
    from tests.fake_clouds import FakeAzure, FakeGoogle

    with FakeGoogle() as google, FakeAzure() as azure:
        yield {"gs": google, "az": azure}


def cloud_root(server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a bucket of its own; the environment leads to its server."""
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    server.make(bucket)
    return f"{server.scheme}://{bucket}/deep/prefix"


@pytest.fixture
def gs_root(fake_clouds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """See `cloud_root`."""
    return cloud_root(fake_clouds["gs"], monkeypatch)


@pytest.fixture
def az_root(fake_clouds: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> str:
    """See `cloud_root`."""
    return cloud_root(fake_clouds["az"], monkeypatch)
