"""Files of the lease, and of ~/.aws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import certifi

from miga.errors import OutputError
from pipeline.records import lease as lease_module
from pipeline.records.lease import Lease, Owner
from pipeline.storage.cloud_settings import check_cloud_settings
from pipeline.storage.open import open_storage
from pipeline.storage.s3_settings import check_s3_settings
from tests.fuzz.reader import Reader

ELSEWHERE = Owner(host="elsewhere", boot_id="b", pid_space="pid:[1]", pid=1, process_start=1)
CONFIG = b"""[default]
region = us-east-1
endpoint_url = http://localhost:9000
[profile other]
services = mine
[services mine]
s3 =
  endpoint_url = https://host.example
"""


@contextmanager
def _time_that_flies() -> Iterator[list[float]]:
    """Waiting takes no time."""
    now_s = [0.0]
    with (
        mock.patch.object(lease_module, "_now_s", side_effect=lambda: now_s[0]),
        mock.patch.object(lease_module, "_LOOKS_PER_TTL", 3),
    ):
        yield now_s


CREDENTIALS = b'{"type": "service_account", "client_email": "miga@project.iam.example.com", "private_key": "-----"}'


def _prepare_lease(folder: Path) -> list[bytes]:
    Lease.acquire(open_storage(folder / "sound"), ELSEWHERE, 30.0, lambda _: None)
    Lease.acquire(open_storage(folder / "here"), Owner.this_process(), 30.0, lambda _: None)
    return [(folder / name / "lease" / "000001.json").read_bytes() for name in ("sound", "here")]


def _acquire(folder: Path) -> None:
    with _time_that_flies() as now_s:

        def wait(seconds: float) -> None:
            now_s[0] += seconds

        for file in folder.glob("lease/00000[2-9]*"):
            file.unlink()
        assert Lease.acquire(open_storage(folder), ELSEWHERE, 1.0, wait).epoch == 2


def _read_lease(folder: Path, data: bytes) -> None:
    (folder / "lease").mkdir(exist_ok=True)
    (folder / "lease" / "000001.json").write_bytes(data)
    _acquire(folder)


def _prepare_beat(folder: Path) -> list[bytes]:
    (claim, _) = _prepare_lease(folder)
    (folder / "lease").mkdir()
    (folder / "lease" / "000001.json").write_bytes(claim)
    return [b"17"]


def _read_beat(folder: Path, data: bytes) -> None:
    """Any will do, so that a refusal is never right; every other reading is told as one for the harness's count."""
    (folder / "lease" / "000001.beat").write_bytes(data)
    _acquire(folder)
    if data != b"17":
        raise OutputError("read as any other beat")


def _read_config(folder: Path, data: bytes) -> None:
    (folder / "config").write_bytes(data)
    names = {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none")}
    with mock.patch.dict(os.environ, names):
        check_s3_settings(OutputError)


def _prepare_certificates(_: Path) -> list[bytes]:
    first, end, _ = Path(certifi.where()).read_bytes().partition(b"-----END CERTIFICATE-----\n")
    return [first + end]


def _read_certificates(folder: Path, data: bytes) -> None:
    (folder / "ca.pem").write_bytes(data)
    with mock.patch.dict(os.environ, {"AWS_CA_BUNDLE": str(folder / "ca.pem")}):
        check_s3_settings(OutputError)


def _read_credentials(folder: Path, data: bytes) -> None:
    (folder / "key.json").write_bytes(data)
    with mock.patch.dict(os.environ, {"GOOGLE_APPLICATION_CREDENTIALS": str(folder / "key.json")}):
        check_cloud_settings("gs", OutputError)


READERS = [
    Reader("lease", _prepare_lease, _read_lease),
    Reader("beat of a lease", _prepare_beat, _read_beat),
    Reader("config of AWS", lambda _: [CONFIG], _read_config),
    Reader("credentials of Google", lambda _: [CREDENTIALS], _read_credentials),
    Reader("bundle of certificates", _prepare_certificates, _read_certificates),
]
