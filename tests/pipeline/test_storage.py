"""The same behaviour of a local folder and of an S3 prefix (a moto server in this process)."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import pytest

from miga.errors import InputError, OutputError
from pipeline import storage as storage_module
from pipeline.addresses import refuse_secrets
from pipeline.prompts import read_prompts
from pipeline.storage import FileInfo, LocalStorage, Storage, open_storage


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
    assert [(file.path, file.bytes) for file in storage.files("b")] == [
        (path, len(storage.read_bytes(path))) for path in storage.list("b")
    ]
    storage.get_file("b/c/file.bin", tmp_path / "new" / "copy.bin")
    assert (tmp_path / "new" / "copy.bin").read_bytes() == local.read_bytes()
    storage.delete("a.json")
    storage.delete("a.json")
    assert not storage.exists("a.json")
    storage.delete_many(["b/2.json", "b/10.json", "b/none"])
    assert list(storage.list()) == ["b/c/file.bin"]
    for look in (storage.stat, storage.read_bytes, lambda path: storage.get_file(path, tmp_path / "x")):
        with pytest.raises(FileNotFoundError):
            look("none")
    assert not (tmp_path / "x").exists()
    with pytest.raises(FileNotFoundError):
        storage.read_bytes("a.json")


def test_stat_knows_size_and_time(storage: Storage) -> None:
    before_s = time.time()
    storage.write_bytes("a", b"123")
    found = storage.stat("a")
    assert replace(found, modified_s=0.0, sha256=None) == FileInfo(path="a", bytes=3, modified_s=0.0)
    assert before_s - 2 <= found.modified_s <= time.time() + 2
    assert found.sha256 in (None, hashlib.sha256(b"123").hexdigest())


def test_what_probes_leave_is_found_and_removed(storage: Storage) -> None:
    storage.write_bytes(".probe-0123", b"probe")
    storage.write_bytes("a", b"1")
    assert [(left.kind, left.path) for left in storage.leftovers()] == [("probe", ".probe-0123")]
    for left in storage.leftovers():
        storage.remove_leftover(left)
        storage.remove_leftover(left)
    assert list(storage.list()) == ["a"]


@pytest.mark.parametrize(
    "address",
    ["s3://key:secret@bucket/x", "s3://key@bucket/x", "https://host/x?X-Amz-Signature=1", "gs://u:p@bucket/x"],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(OutputError, match="OUT: ") as caught:
        open_storage(address)
    assert "secret" not in caught.value.message
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert str(refusal(address)).startswith("prompts: ")


@pytest.mark.parametrize("address", ["a@b/out", "/home/x?token=1", "s3://bucket/a@b", "hf://datasets/x?design=1"])
def test_innocent_addresses_are_not(address: str) -> None:
    assert refusal(address) is None


def refusal(address: str) -> str | None:
    """What is said of it where it is given for the prompts."""
    try:
        refuse_secrets(address, InputError, "prompts")
    except InputError as error:
        return error.message
    return None


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
    monkeypatch.setattr(os, "fsync", fail)
    for name in ("a", "b"):
        with pytest.raises(OutputError, match=message) as caught:
            storage.write_bytes(name, b"new", if_absent=if_absent)
        assert str(tmp_path) in caught.value.message
        assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert storage.read_bytes("b") == b"old"


def test_a_killed_write_is_never_listed(tmp_path: Path) -> None:
    partial = tmp_path / "sub" / f".a.json.123{storage_module.PARTIAL_SUFFIX}"
    partial.parent.mkdir()
    partial.write_bytes(b"{")
    storage = LocalStorage(tmp_path)
    assert storage.children("sub") == []
    assert list(storage.list()) == []
    (left,) = storage.leftovers()
    assert (left.kind, left.path) == ("partial file", f"sub/{partial.name}")
    storage.remove_leftover(left)
    assert not partial.exists()


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
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
def test_prompts_from_s3(s3_root: str) -> None:
    storage = open_storage(s3_root)
    storage.write_bytes("p.jsonl", b'{"prompt": "a"}\n\xff\n{"prompt": "b"}')
    rows = list(read_prompts(storage.uri("p.jsonl"), seed=0, num_frames=9))
    assert [row.prompts for row in rows] == [("a",), (), ("b",)]
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(storage.uri("none.jsonl"), seed=0, num_frames=9)
