"""The same behaviour of a local folder and of an S3 prefix (a moto server in this process)."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from miga.errors import InputError, OutputError
from pipeline import storage as storage_module
from pipeline.prompts import read_prompts
from pipeline.storage import LocalStorage, S3Storage, Storage, open_storage


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_root(s3_server: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(request.node.nodeid))}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/deep/prefix"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = tmp_path / "out put" if request.param == "local" else request.getfixturevalue("s3_root")
    return open_storage(root)


def test_write_read_list_delete(storage: Storage, tmp_path: Path) -> None:
    assert list(storage.list()) == []
    assert storage.children() == []
    assert storage.write_bytes("b/2.json", b"two")
    assert storage.write_bytes("b/10.json", b"ten")
    assert storage.write_bytes("a.json", b"")
    assert storage.write_bytes("a.json", b"one")
    local = tmp_path / "file.bin"
    local.write_bytes(b"x" * 100_000)
    storage.put_file(local, "b/c/file.bin")
    assert sorted(storage.list()) == ["a.json", "b/10.json", "b/2.json", "b/c/file.bin"]
    assert list(storage.list("b/c")) == ["b/c/file.bin"]
    assert list(storage.list("none")) == []
    assert storage.children() == ["a.json", "b"]
    assert storage.children("b") == ["10.json", "2.json", "c"]
    assert storage.children("none") == []
    assert storage.read_bytes("a.json") == b"one"
    assert storage.read_bytes("b/c/file.bin") == local.read_bytes()
    assert (storage.exists("a.json"), storage.exists("b"), storage.exists("no")) == (True, False, False)
    storage.delete("a.json")
    storage.delete("a.json")
    assert not storage.exists("a.json")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a.json")


def test_conditional_write_never_overwrites_and_knows_its_own(storage: Storage) -> None:
    assert storage.write_bytes("x/a", b"1", if_absent=True)
    assert storage.write_bytes("x/a", b"1", if_absent=True), "the answer to a first try may have been lost"
    assert not storage.write_bytes("x/a", b"2", if_absent=True)
    assert storage.read_bytes("x/a") == b"1"


def test_probe_leaves_nothing(storage: Storage) -> None:
    storage.probe()
    assert list(storage.list()) == []


def test_it_pickles_and_others_see_what_is_written(storage: Storage) -> None:
    other = pickle.loads(pickle.dumps(storage))
    storage.children()
    other.write_bytes("a", b"1")
    assert storage.children() == ["a"]
    assert other.uri("a") == storage.uri("a") == f"{storage.root}/a"


@pytest.mark.parametrize("path", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a b", "a\0", "\U0001f408", "a\\b"])
def test_paths_stay_inside(storage: Storage, path: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        storage.write_bytes(path, b"")


# ---- local -----------------------------------------------------------------------------------------------------------


def test_nothing_is_made_before_the_first_write(tmp_path: Path) -> None:
    assert open_storage(tmp_path / "out").children() == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_out_is_a_file(tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="is a file, not a folder") as caught:
        open_storage(tmp_path / out)
    assert caught.value.hint
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("out", ["gs://bucket/x", "", " ", "a\0b", "s3://", "s3:///x"])
def test_out_is_nonsense(out: str) -> None:
    with pytest.raises(OutputError):
        open_storage(out)


def test_relative_roots_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = open_storage("out")
    monkeypatch.chdir("/")
    storage.write_bytes("a", b"1")
    assert (tmp_path / "out" / "a").read_bytes() == b"1"
    assert open_storage(f"file://{tmp_path}/out").exists("a")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("if_absent", [False, True])
def test_a_failing_disk_leaves_nothing_partial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str, if_absent: bool
) -> None:
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    storage = LocalStorage(tmp_path)
    storage.write_bytes("b", b"old")
    monkeypatch.setattr(storage_module.os, "fsync", fail)
    for name in ("a", "b"):
        with pytest.raises(OutputError, match=message) as caught:
            storage.write_bytes(name, b"new", if_absent=if_absent)
        assert str(tmp_path) in caught.value.message
        assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert storage.read_bytes("b") == b"old"


def test_a_killed_write_is_never_listed(tmp_path: Path) -> None:
    (tmp_path / f".a.json.123{storage_module.PARTIAL_SUFFIX}").write_bytes(b"{")
    assert LocalStorage(tmp_path).children() == []
    assert list(LocalStorage(tmp_path).list()) == []


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(storage_module.os, "link", refuse)
    storage = LocalStorage(tmp_path)
    assert storage.write_bytes("a", b"1", if_absent=True)
    assert not storage.write_bytes("a", b"2", if_absent=True)
    assert storage.children() == ["a"]


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write_bytes("a", b"1")
    with pytest.raises(OutputError, match="part of the path is a file"):
        storage.write_bytes("a/b", b"1")


# ---- S3 --------------------------------------------------------------------------------------------------------------


@pytest.mark.s3
def test_missing_bucket(s3_root: str) -> None:
    with pytest.raises(OutputError, match=r"bucket does not exist") as caught:
        open_storage("s3://no-such-bucket/x").probe()
    assert "create the bucket" in caught.value.hint


@pytest.mark.s3
def test_a_server_that_ignores_conditions_is_refused(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = S3Storage(s3_root)
    pipe_file = storage._fs.pipe_file
    monkeypatch.setattr(storage._fs, "pipe_file", lambda path, data, mode="overwrite": pipe_file(path, data))
    with pytest.raises(OutputError, match="ignores If-None-Match"):
        storage.probe()
    assert storage.children() == []


@pytest.mark.s3
def test_a_server_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setattr(storage_module, "S3_ATTEMPTS", 1)
    with pytest.raises(OutputError, match="s3://bucket/x"):
        open_storage("s3://bucket/x").write_bytes("a", b"1")


@pytest.mark.s3
def test_prompts_from_s3(s3_root: str) -> None:
    storage = open_storage(s3_root)
    storage.write_bytes("p.jsonl", b'{"prompt": "a"}\n\xff\n{"prompt": "b"}')
    rows = list(read_prompts(storage.uri("p.jsonl"), seed=0, num_frames=9))
    assert [row.prompts for row in rows] == [("a",), (), ("b",)]
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(storage.uri("none.jsonl"), seed=0, num_frames=9)
