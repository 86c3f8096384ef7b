"""A Ray of the run's own is nobody else's: loopback, a token, a folder of its own. And what is said where none starts.

Sockets are those that the kernel lists for the session's processes.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors import runtime
from actors.runtime import cluster_address, ray_session
from actors.worker.scratch import new_folder, remove_abandoned
from miga.errors import MigaError
from pipeline.config import WorkersConfig
from tests.cli import run
from tests.processes import descendants
from tests.sockets import listening

MODEL = "simulated:wan?call_s=0&decode_s=0"
ONE = WorkersConfig(num_actors=1)


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A temporary folder of this test whose path is short enough for sockets."""
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.mark.ray
@pytest.mark.slow
def test_it_is_on_loopback_with_a_token_that_stands_in_no_file(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    home = short_tmp / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = dict(os.environ)
    with ray_session(ONE):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        token = os.environ["RAY_AUTH_TOKEN"]
        assert len(token) >= 32
        assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_TOKEN"]).remote()) == token, "its workers have it"
        processes = descendants(os.getpid())
        sockets = listening({os.getpid(), *processes})
        assert len(sockets) >= 5, "GCS, raylet and agents listen somewhere"
        assert [str(one) for one in sockets if not one.address.is_loopback] == []
        assert not any(token in title for title in processes.values())
        (folder,) = short_tmp.glob("miga-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
        assert files
        assert [file for file in files if token.encode() in file.read_bytes()] == []
    assert list(home.rglob("*")) == []
    assert list(short_tmp.glob("miga-*")) == []
    changed = {name for name in before | dict(os.environ) if before.get(name) != os.environ.get(name)}
    assert changed <= {"PYTHONBREAKPOINT"}, "Ray's own"


@pytest.fixture
def one_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "one.txt"
    file.write_text("a red circle\n")
    return file


def refused_before_out(capsys: pytest.CaptureFixture[str], prompts: Path, *options: object) -> tuple[int, str]:
    out = prompts.with_name("out")
    status, stdout, message = run(capsys, "generate", prompts, out, "--model", MODEL, "--quiet", *options)
    assert stdout == ""
    assert message.startswith("miga: ")
    assert message.count("miga: ") == 1
    assert "hint: " in message
    assert "Traceback" not in message
    assert not out.exists()
    return status, message


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_path_too_long_for_sockets(
    capsys: pytest.CaptureFixture[str], one_prompt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    folder = tmp_path / "scratch_of_project_alpha" / "slurm_jobdir" / "1234567" / "node_0001" / "tmp.t0016"
    folder.mkdir(parents=True)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    status, message = refused_before_out(capsys, one_prompt)
    assert status == 2
    assert f"{variable} is too long for Ray's sockets" in message
    assert "107" in message
    assert "set RAY_TMPDIR to a short folder" in message


def test_the_longest_path_that_is_taken_is_one_that_ray_takes(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's limit is 107 bytes; the longest socket's name is as Ray 2.60 makes it."""
    room = 107 - len("/miga-12345678/r") - len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store")
    longest = short_tmp / ("x" * (room - len(str(short_tmp)) - 1))
    for folder, is_taken in ((longest, True), (longest.with_name(f"{longest.name}x"), False)):
        folder.mkdir()
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        if is_taken:
            assert runtime._own_folder().parent == folder
        else:
            with pytest.raises(MigaError, match="108 bytes"):
                runtime._own_folder()


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because ..."),
        OSError(28, "No space left on device"),
        RuntimeError("Failed to start GCS\nsecond line"),
        ValueError("port 52365 is taken"),
    ],
)
def test_a_ray_that_does_not_start(
    capsys: pytest.CaptureFixture[str],
    one_prompt: Path,
    monkeypatch: pytest.MonkeyPatch,
    short_tmp: Path,
    error: Exception,
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))

    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", fail)
    status, message = refused_before_out(capsys, one_prompt)
    assert status == 1
    assert f"Ray did not start on this machine: {str(error).splitlines()[0]}" in message
    assert f"{short_tmp}/miga-" in message, "where its logs are"
    assert "another try" in message


def test_no_room(
    capsys: pytest.CaptureFixture[str], one_prompt: Path, monkeypatch: pytest.MonkeyPatch, short_tmp: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 3 << 20}))
    status, message = refused_before_out(capsys, one_prompt)
    assert status == 1
    assert "3 MiB are free" in message
    assert list(short_tmp.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("garbage", "no address"),
        ("http://127.0.0.1:8265", "no address"),
        ("os://x:1", "no address"),
        ("127.0.0.1:0", "no address"),
        ("127.0.0.1:99999", "no address"),
        ("127.0.0.1", "no address"),
        ("a b:6379", "no address"),
        ("\x1b[31mx:1\n", "\\x1b"),
        ("\udcff:6379", "\\xff"),
        ("x" * 300 + ":6379", "no Ray cluster answers"),
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no Ray cluster answers at ray://127.0.0.1:1"),
    ],
)
def test_addresses_where_no_cluster_is(
    capsys: pytest.CaptureFixture[str], one_prompt: Path, address: str, named: str
) -> None:
    status, message = refused_before_out(capsys, one_prompt, "--address", address)
    assert status == 2
    assert named in message
    assert "\x1b" not in message


def test_which_cluster_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert (cluster_address(None), cluster_address("other:1"), cluster_address("local")) == (
        "head:6379", "other:1", None
    )  # fmt: skip
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address(None) is None


# ---- folders ----


def test_folders_of_processes_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    mine = new_folder(tmp_path)
    code = (
        f"from pathlib import Path; from actors.worker.scratch import new_folder; new_folder(Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    (left,) = set(tmp_path.glob("miga-*")) - {mine}
    (left / "video.mp4").write_bytes(b"half of it")
    owner = (left / "owner.json").read_bytes()
    others = {
        "miga-notes": None,
        "miga-1-2": b"",
        "miga-empty": b"{}",
        "miga-huge": b'{"host": "x", "pid": 99999999999999999999}',
        "miga-deep": b"[" * 100_000,
        "miga-elsewhere": owner.replace(b'"boot_id": "', b'"boot_id": "another'),
        "miga-4026531836-99999999999999999999-x": None,  # as an earlier version named its folders
    }
    for name, content in others.items():
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "owner.json").write_bytes(content)
    (tmp_path / "miga-file").write_bytes(b"")
    (tmp_path / "miga-link").symlink_to(left)
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, *others, "miga-file", "miga-link"}


def test_folders_of_another_user_are_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_folder(tmp_path)
    owner = (folder / "owner.json").read_text()
    (folder / "owner.json").write_text(owner.replace(str(os.getpid()), "4194304"))
    me = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: me + 1)
    remove_abandoned(tmp_path)
    assert folder.exists()
    monkeypatch.setattr("os.geteuid", lambda: me)
    remove_abandoned(tmp_path)
    assert not folder.exists()
