"""`miga export --push-to-hub` as a process, with the real client, against a stand-in for the hub's HTTP API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.local import LocalStorage
from tests.cli import run
from tests.hub_stub import TOKEN, Hub, hub_stub
from tests.made_run import MadeRun, make_run, video_bytes
from tests.pace import paced


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 4, failed=(2,))


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stub() as hub:
        yield hub


def export(made: MadeRun, hub: Hub, dest: Path, *arguments: str, token: str | None = TOKEN) -> tuple[int, str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(dest.parent / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1"} | ({} if token is None else {"HF_TOKEN": token})
    command = [sys.executable, "-m", "jobs.cli", "export", made.storage.root, str(dest), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=paced(120), check=False)
    return done.returncode, done.stdout, done.stderr


def is_private(asked: dict[str, Any]) -> bool:
    """What was asked of a data set when it was made; versions of the client say it in either way."""
    return asked.get("visibility") == "private" or asked.get("private") is True


@pytest.mark.slow
def test_a_data_set_goes_to_the_hub(made: MadeRun, hub: Hub, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    arguments = ("--format", "hf", "--license", "cc-by-4.0", "--push-to-hub", "me/clips", "--json")
    status, out, err = export(made, hub, dest, *arguments)
    assert status == 0, err
    assert json.loads(out)["hub"] == f"{hub.url}/datasets/me/clips"
    assert is_private(hub.made["me/clips"])
    assert hub.made["me/clips"]["type"] == "dataset"
    there = hub.files["me/clips"]
    local = {path: (dest / path).read_bytes() for path in LocalStorage(dest).list() if path != "export.json"}
    assert {path: data for path, data in there.items() if path != ".gitattributes"} == local
    videos = [data for path, data in there.items() if path.endswith(".mp4")]
    assert sorted(videos) == sorted(video_bytes(index) for index in (0, 1, 3))
    assert b'license: "cc-by-4.0"' in there["README.md"]

    sent = hub.num_sent
    assert export(made, hub, dest, *arguments)[0] == 0, "again: it goes on"
    assert hub.num_sent == sent, "and nothing is sent twice"


@pytest.mark.slow
def test_a_data_set_for_all_to_see(made: MadeRun, hub: Hub, tmp_path: Path) -> None:
    arguments = ("--format", "webdataset", "--push-to-hub", "me/tars", "--public", "--quiet")
    status, out, err = export(made, hub, tmp_path / "dest", *arguments)
    assert (status, out.splitlines()[-1]) == (0, f"{hub.url}/datasets/me/tars"), err
    assert not is_private(hub.made["me/tars"])
    assert {"shard-00000.tar", "index.json", "README.md"} <= set(hub.files["me/tars"])


@pytest.mark.slow
@pytest.mark.parametrize(("token", "refuse"), [("hf_wrong", None), (TOKEN, 403)])
def test_who_may_not_write_there_is_told_so(
    made: MadeRun, hub: Hub, tmp_path: Path, token: str, refuse: int | None
) -> None:
    hub.refuse = refuse
    status, _, err = export(made, hub, tmp_path / "dest", "--push-to-hub", "me/clips", token=token)
    assert status == 2
    assert "the hub did not take me/clips" in err
    assert "hf auth login" in err
    assert "Traceback" not in err
    assert token not in err
    assert (tmp_path / "dest" / "dataset.parquet").exists(), "the export itself is there"


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(made: MadeRun, tmp_path: Path) -> None:
    nowhere = Hub(url="http://127.0.0.1:9")
    status, _, err = export(made, nowhere, tmp_path / "dest", "--push-to-hub", "me/clips")
    assert (status, "the hub did not take" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--push-to-hub", "clips"), "no name of a data set"),
        (("--push-to-hub", "me/../x"), "no name of a data set"),
        (("--push-to-hub", ""), "no name of a data set"),
        (("--push-to-hub", "me/clips", "--videos", "reference"), "of no use on the hub"),
        (("--push-to-hub", "me/clips"), "HF_HUB_OFFLINE"),
        (("--public",), "--push-to-hub"),
        (("--license", "CC BY"), "no identifier of a licence"),
        (("--license", "x\ntags: y"), "no identifier of a licence"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = run(capsys, "export", made.storage.root, tmp_path / "dest", *arguments)
    assert (status, message in err, "hint: " in err) == (2, True, True), err
    assert not (tmp_path / "dest").exists()


def test_the_hub_takes_a_folder_alone(
    capsys: pytest.CaptureFixture[str], made: MadeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    status, _, err = run(capsys, "export", made.storage.root, "s3://bucket/x", "--push-to-hub", "me/clips")
    assert (status, "name a folder as DEST" in err) == (2, True)
