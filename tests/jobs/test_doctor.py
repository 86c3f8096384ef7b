"""`miga doctor` says what is wrong, whatever it is; it neither hangs nor shows a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import jobs.doctor.checks as checks
import jobs.doctor.examine as examine
import jobs.doctor.packages as packages
from jobs.doctor.findings import Finding, note, ok, wrong
from pipeline.storage.open import open_storage
from pipeline.storage.s3 import S3Storage
from tests.cli import run
from tests.faulty_s3 import FaultyS3
from tests.pace import paced
from tests.processes import is_running, wait_for

FAULTS = "tests.jobs.doctor_faults"


def said_by(check: str, *arguments: object) -> list[Finding]:
    """What a check says, run as its own process would run it, but here."""
    file = Path(os.environ["DOCTOR_SAID"])
    assert checks.main([check, str(file), *map(json.dumps, arguments)]) == 0
    return examine._read(file)[0]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DOCTOR_SAID", str(tmp_path / "said"))
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


# ---- checks that misbehave ----


def test_a_check_that_hangs_is_ended_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine, "GRACE_S", 0.5)
    pids = tmp_path / "pids"
    limit_s = paced(3.0)
    (finding,) = examine.run_check("hang", [str(pids)], limit_s, FAULTS)
    assert finding.state == "wrong"
    assert finding.found == f"no answer within {limit_s:g} s while trying to hang"
    assert finding.to_do
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    wait_for(lambda: not any(is_running(pid) for pid in started), 30, "their end")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("crash", "its process was killed by SIGSEGV while trying to crash: it printed nothing"),
        ("exit", "its process ended with status 1 while trying to exit: the library says no"),
        ("garble", "the check said nothing"),
    ],
)
def test_a_check_that_fails_is_a_finding(name: str, found: str) -> None:
    (finding,) = examine.run_check(name, [], 60.0, FAULTS)
    assert (finding.name, finding.state, finding.found) == (name, "wrong", found)
    assert finding.to_do


def test_what_a_check_raises_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(doing: checks.Doing) -> Iterator[Finding]:
        doing("trying")
        yield ok("gpu", "one")
        raise RuntimeError("driver says no\nTraceback ...")

    monkeypatch.setitem(checks.CHECKS, "gpu", fails)
    first, second = said_by("gpu")
    assert first == ok("gpu", "one")
    assert (second.state, second.found) == ("wrong", "RuntimeError: driver says no")


def test_what_fails_in_this_process_is_a_finding_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> str:
        raise OSError("metadata cannot be read")

    monkeypatch.setattr(packages.metadata, "version", broken)
    (finding,) = examine._in_this_process(packages.check_packages)
    assert (finding.name, finding.state) == ("packages", "wrong")
    assert "metadata cannot be read" in finding.found


def test_a_folder_of_the_user_is_not_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    (first, *_) = examine.run_check("storage", [str(tmp_path / "out")], 60.0)
    assert first.state == "ok", first.found


# ---- the command ----


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What all checks together say."""
    findings: list[Finding] = [ok("python", "3.11"), note("gpu", "none", "get one")]
    monkeypatch.setattr(examine, "examine", lambda *arguments, **options: iter(findings))
    return findings


def test_a_line_for_each_and_the_exit_status(capsys: pytest.CaptureFixture[str], found: list[Finding]) -> None:
    status, text, message = run(capsys, "doctor")
    assert (status, message) == (0, "")
    assert text.splitlines() == [
        "ok     python: 3.11", "note   gpu: none", "       to do: get one", "nothing is wrong",
    ]  # fmt: skip
    found.append(wrong("ffmpeg", "it is gone", "install it"))
    status, text, _ = run(capsys, "doctor")
    assert status == 1
    assert text.splitlines()[-3:] == ["wrong  ffmpeg: it is gone", "       to do: install it", "1 wrong"]


def test_for_machines(capsys: pytest.CaptureFixture[str], found: list[Finding]) -> None:
    assert json.loads(run(capsys, "doctor", "--json")[1])["ok"] is True
    found.append(wrong("ffmpeg", "it is gone", "install it"))
    status, text, _ = run(capsys, "doctor", "--json")
    values = json.loads(text)
    assert (status, values["ok"]) == (1, False)
    assert values["findings"][2] == {"name": "ffmpeg", "state": "wrong", "found": "it is gone", "to_do": "install it"}


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "inf"])
def test_a_limit_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], limit: str) -> None:
    status, _, message = run(capsys, "doctor", "--limit-s", limit)
    assert status == 2
    assert "--limit-s" in message


# ---- packages ----


def test_this_environment_has_what_is_needed() -> None:
    first, *_ = packages.check_packages()
    assert first.state == "ok", first.found
    (python,) = packages.check_python()
    assert python.state == "ok"


def test_versions_are_held_against_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    version = packages.metadata.version("numpy")
    lock.write_text(
        f"numpy=={version}\n    # via torch\nnot-installed==1.0 \\\n    --hash=sha256:00\n--extra-index-url x\n"
    )
    assert list(packages.check_packages(lock))[-1] == ok("lock", "the versions that this one is tested with")
    lock.write_text('numpy==0.1 ; python_version > "3"\npydantic==0.2\nray==9 ; sys_platform == "none"\n')
    finding = list(packages.check_packages(lock))[-1]
    assert finding.state == "note"
    assert finding.found.startswith("2 packages are of other versions")
    assert f"numpy {version} (tested: 0.1)" in finding.found
    assert str(lock) in finding.to_do


def test_a_build_is_the_version_that_it_is_of() -> None:
    assert packages._is_same("2.13.0+cpu", "2.13.0")
    assert not packages._is_same("2.13.1", "2.13.0")
    assert packages._is_same("not a version", "not a version")


def test_what_is_missing_or_too_old_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "pyproject.toml"
    needed = ["numpy>=2", "no-such-package>=3", "ray<1", 'absent ; sys_platform == "none"']
    project.write_text(f"[project]\nname = 'miga-on-ray'\ndependencies = {json.dumps(needed)}\n")
    monkeypatch.setattr(packages, "PYPROJECT", project)
    missing, unfit = packages.check_packages(tmp_path / "none.lock")
    assert (missing.state, missing.found) == ("wrong", "not installed: no-such-package>=3")
    assert unfit.state == "wrong"
    assert unfit.found == f"of another version: ray {packages.metadata.version('ray')} (needs <1)"
    assert "pip install" in unfit.to_do


def test_a_wheel_knows_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own metadata, where there is no pyproject.toml."""
    monkeypatch.setattr(packages.metadata, "requires", lambda name: ["numpy>=2", 'pytest>=99 ; extra == "dev"'])
    (tmp_path / "other.toml").write_text("[project]\nname = 'other'\ndependencies = ['absent']\n")
    for name in ("none.toml", "other.toml"):
        monkeypatch.setattr(packages, "PYPROJECT", tmp_path / name)
        (finding,) = packages.check_packages(tmp_path / "none.lock")
        assert finding.found == "all 1 that are needed are there, in versions that fit"


def test_variables_are_named_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-mine")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:a-secret-of-mine@host:9000")
    (finding,) = packages.check_environment()
    assert "AWS_ENDPOINT_URL=http://" in finding.found
    assert "a-secret-of-mine" not in finding.found


# ---- storage ----


def test_a_folder_is_looked_at_and_left_as_it_was(tmp_path: Path) -> None:
    storage, room = said_by("storage", str(tmp_path / "new" / "run"))
    assert (storage.state, room.state) == ("ok", "ok")
    assert not (tmp_path / "new").exists()
    there = tmp_path / "there"
    there.mkdir()
    (there / "run.json").write_text("{}")
    assert [finding.state for finding in said_by("storage", str(there))] == ["ok", "ok"]
    assert [path.name for path in there.iterdir()] == ["run.json"]


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (str(file), f"{file}/run", "", "gopher://x", "x" * 5000):
        (finding,) = said_by("storage", out)
        assert finding.state == "wrong", out
        assert finding.to_do
    assert file.read_text() == "mine"


def test_a_disk_that_is_full_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LOW_DISK_BYTES", 2**60)
    _, room = said_by("storage", str(tmp_path / "run"))
    assert room.state == "wrong"


@pytest.mark.slow
@pytest.mark.s3
def test_a_bucket_is_looked_at_and_left_as_it_was(s3_root: str) -> None:
    storage, *_ = said_by("storage", s3_root)
    assert storage.state == "ok", storage.found
    assert open_storage(s3_root).children() == []


@pytest.mark.s3
def test_a_server_that_ignores_conditions_is_wrong(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put = S3Storage._put
    monkeypatch.setattr(S3Storage, "_put", lambda self, path, data, sha256, _: put(self, path, data, sha256, False))
    (finding,) = said_by("storage", s3_root)
    assert finding.state == "wrong"
    assert "ignores If-None-Match" in finding.found
    assert "single_coordinator" in finding.to_do
    assert open_storage(s3_root).children() == []


@pytest.mark.s3
def test_a_server_that_refuses_or_is_gone_is_wrong(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGA_S3_PATIENCE_S", "1")
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.fail("denied", times=100, method="PUT")
        (finding,) = said_by("storage", s3_root)
        assert finding.state == "wrong"
        assert finding.to_do
        proxy.recover()
        proxy.is_gone = True
        (finding,) = said_by("storage", s3_root)
        assert finding.state == "wrong"


# ---- weights, GPU, ffmpeg ----


def test_whole_weights_are_right_and_broken_ones_wrong(tiny_model: Path, tmp_path: Path) -> None:
    weights, memory = said_by("weights", str(tiny_model))
    assert (weights.state, memory.state) == ("ok", "ok")
    assert "32x32, clips of 29 frames" in weights.found
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    (file,) = (broken / "vae").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    (finding,) = said_by("weights", str(broken))
    assert finding.state == "wrong"
    assert file.name in finding.found
    (finding,) = said_by("weights", str(tmp_path / "nowhere"))
    assert finding.state == "wrong"


def test_weights_that_are_not_downloaded_are_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    weights, *rest = said_by("weights", "Wan-AI/Wan2.1-T2V-14B-Diffusers")
    assert weights.state == "note"
    assert "hf download Wan-AI/Wan2.1-T2V-14B-Diffusers" in weights.to_do
    assert [finding.name for finding in rest] in ([], ["memory"])
    (unknown,) = said_by("weights", "somebody/something")
    assert unknown.state == "note"


def test_cards_that_pytorch_does_not_see_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks, "_nvidia_smi", lambda: [])
    (finding,) = said_by("gpu")
    assert finding.state == "note"
    monkeypatch.setattr(checks, "_nvidia_smi", lambda: ["570.86, NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr(torch.version, "cuda", None)
    (finding,) = said_by("gpu")
    assert finding.state == "wrong"
    assert "pip install torch" in finding.to_do
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (finding,) = said_by("gpu")
    assert "driver" in finding.to_do


def test_a_card_that_computes_wrongly_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class About:
        name, total_memory = "Card", 24 * 10**9

    ones = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: About)
    monkeypatch.setattr(checks, "_nvidia_smi", lambda: ["570.86, Card, 24 GB"])
    factor = {"cuda:0": 1.0, "cuda:1": 2.0}
    monkeypatch.setattr(torch, "ones", lambda *size, device: factor[device] * ones(*size))
    first, second = said_by("gpu")
    assert first.state == "ok"
    assert "Card, 24.0 GB, driver 570.86" in first.found
    assert second.state == "wrong"


def test_an_ffmpeg_that_is_not_there_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, as it is found once in each."""
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    (finding,) = examine.run_check("ffmpeg", [], 60.0)
    assert (finding.name, finding.state) == ("ffmpeg", "wrong")
    assert finding.to_do


@pytest.mark.slow
@pytest.mark.ray
def test_of_this_machine_nothing_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, text, message = run(capsys, "doctor", tmp_path / "out", "--model", "sprites", "--json")
    assert (status, message) == (0, "")
    names = [finding["name"] for finding in json.loads(text)["findings"]]
    for name in (
        "python",
        "packages",
        "machine",
        "environment",
        "imports",
        "ffmpeg",
        "codecs",
        "ray",
        "storage",
        "weights",
    ):
        assert name in names
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_cluster_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    (finding,) = examine.run_check("ray", ["127.0.0.1:9"], 120.0)
    assert finding.state == "wrong"
    assert "no Ray cluster answers at 127.0.0.1:9" in finding.found


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_that_hangs_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of Ray's own have its folder in their command lines."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        (finding,) = examine.run_check("ray", [None], paced(40), FAULTS)
        assert finding.found.endswith("while running a task on Ray")
        wait_for(lambda: not running_with(folder), 30, "their end")


def running_with(text: str) -> list[str]:
    """Command lines of running processes that hold it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in line and is_running(int(folder.name)) and int(folder.name) != os.getpid():
                found.append(line)
    return found
