"""The same behaviour of a local folder and of an S3 prefix (a moto server in this process)."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from miga.errors import InputError, OutputError
from pipeline.prompts.read import read_prompts
from pipeline.storage import open as storage_module
from pipeline.storage.addresses import check_address, refuse_secrets, without_secrets
from pipeline.storage.base import FileInfo, Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3), "gs", "az"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = tmp_path / "out put" if request.param == "local" else request.getfixturevalue(f"{request.param}_root")
    return open_storage(root)


def test_a_range_of_a_file(storage: Storage) -> None:
    data = bytes(range(256)) * 4
    storage.write_bytes("a.bin", data)
    for start, num_bytes in ((0, 1), (0, 1024), (1000, 24), (1000, 9999), (1023, 1)):
        assert storage.read_range("a.bin", start, num_bytes) == data[start : start + num_bytes]
    with pytest.raises(FileNotFoundError):
        storage.read_range("none", 0, 1)


@pytest.mark.s3
def test_a_signed_address_is_read_without_credentials(s3_root: str) -> None:
    import urllib.request

    storage = open_storage(s3_root)
    storage.write_bytes("video/00000/a.mp4", b"0123456789")
    address = storage.signed_address("video/00000/a.mp4", 3600)
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Range": "bytes=2-4"})) as answer:
        assert (answer.status, answer.read()) == (206, b"234")
    assert "Signature=" in address
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in address


def test_a_folder_has_no_signed_addresses(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        LocalStorage(tmp_path).signed_address("a.mp4", 60)


@pytest.mark.s3
def test_without_credentials_nothing_is_signed(s3_root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OutputError, match="credentials"):
        open_storage(s3_root).signed_address("a.mp4", 60)


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
    [
        "s3://key:secret@bucket/x", "s3://key@bucket/x", "https://host/x?X-Amz-Signature=secret", "gs://u:secret@b/x",
        "s3://key:sec/ret@bucket/x", "s3://key:/secret@bucket/x", "s3://ke/y:secret@bucket/x", "s3://:secret@bucket/x",
        "s3://key:s/e/c/ret@bucket/x", "s3:///key:secret@bucket/x", "s3://key:secret", "s3://key:secret/x",
        "s3://bucket/key:secret@x", "s3://bucket@key:secret/x", "s3://key:12345/secret@bucket/x", "S3://key:secret@b/x",
        "s3://key%3Asecret%40bucket/x", "s3://key:sec%2Fret@bucket/x", "s3://key%253Asecret%2540bucket/x",
        "s3://key:sec?ret@bucket/x", "s3://key:sec#ret@bucket/x", "s3://key:sec\\ret@bucket/x", "s3://key:sec ret@b/x",
        "https://user:secret@host/x.csv", "https://user:se/cret@host/x.csv", "https://secret@host/x.csv",
        "file://user:secret@host/x", "s3://s3://key:secret@bucket/x", "https://user@host:80/secret",
    ],
)  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(OutputError, match="OUT: ") as caught:
        open_storage(address)
    for part in ("secret", "sec/", "/ret", "sec%", "se/cret", "ret@"):
        assert part not in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    assert str(refusal(address)).startswith("prompts: ")


@pytest.mark.parametrize(
    "address",
    [
        "simplecache::s3://key:secret@bucket/x", "s3://key:sec::ret@bucket/x", "zip://x::s3://key:secret@b/x.zip",
        "s3:/key:secret@bucket/x", "s3:key:secret@bucket/x", "s3:\\\\key:secret@bucket", "S3:/key:secret@bucket/x",
        "https:/user:secret@host/x", "gs:user:secret@bucket",
    ],
)  # fmt: skip
def test_so_are_those_that_only_look_like_a_path(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for error, name in ((OutputError, "OUT"), (InputError, "prompts")):
        with pytest.raises(error) as caught:
            check_address(address, error, name)
        assert "secret" not in str(caught.value)
        assert "ret@" not in str(caught.value)
        assert caught.value.hint


@pytest.mark.parametrize(
    "address",
    [
        "a@b/out", "/home/x?token=1", "s3://bucket/a@b", "hf://datasets/x?design=1", "s3://bucket/dir/a@b.jsonl",
        "s3://bucket/12:30/a.jsonl", "s3://bucket/a@b/12:30.jsonl", "https://host:8080/a@b.csv", "./s3:/x", "a:b@c",
        "https://[::1]:80/x.csv", "file:///data/12:30/a@b", "hf://datasets/org/name@main/x.parquet", "/a/12:30@x",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint:mine/x", "s3://bucket/100%/a.jsonl",
    ],
)  # fmt: skip
def test_innocent_addresses_are_not(address: str) -> None:
    assert refusal(address) is None


def test_secrets_in_messages_of_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "wJalr/XUtn+FEMI K7"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for text in (
        f"cannot sign with {secret}",
        f"url {quote(secret, safe='')}",
        f"url {quote(secret)}",
        "connect to http://user:wJalr/XUtn@proxy:3128/x failed",
        "GET https://host/x?X-Amz-Signature=wJalr&a=b",
    ):
        said = without_secrets(text)
        assert "wJalr" not in said
        assert said.split()[0] == text.split()[0]


@pytest.mark.parametrize("address", ["s3://bucket/in/a::b.jsonl", "zip://a.csv::b.zip", "https://host/a::b.csv"])
def test_chains_of_file_systems_are_refused(address: str) -> None:
    with pytest.raises(InputError, match="'::'"):
        check_address(address, InputError, "prompts")
    with pytest.raises(OutputError, match="'::'"):
        open_storage(address)


def test_a_chain_as_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="'::'"):
        open_storage(tmp_path / "a::b")


@pytest.mark.parametrize("bad", ["\n", "\x1b[2J", "\x7f", "\x9b", "\u202e", "\u2028"])
@pytest.mark.parametrize("address", ["s3://bucket/a{}b", "s3://buck{}et/a", "{}/out"])
def test_unprintable_characters(tmp_path: Path, address: str, bad: str) -> None:
    with pytest.raises(OutputError) as caught:
        open_storage(str(tmp_path / address.format(bad)) if address.startswith("{}") else address.format(bad))
    assert bad not in caught.value.message


@pytest.mark.parametrize(
    "bucket", ["buck et", "bücket", "-bucket", "x" * 256, "buck*et", 'buck"et', "..", ".bucket", "bucket%20x"]
)
def test_names_that_are_none_of_a_bucket(bucket: str) -> None:
    with pytest.raises(OutputError, match="no name of a bucket") as caught:
        open_storage(f"s3://{bucket}/x")
    assert bucket not in str(caught.value)


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


@pytest.mark.parametrize("out", ["ftp://host/x", "", " ", "a\0b", "s3://", "s3:///x", "s3://b/../x", "s3://b//x"])
def test_out_is_nonsense(out: str) -> None:
    with pytest.raises(OutputError):
        open_storage(out)


def test_a_path_that_is_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / os.fsdecode(b"out\xff")
    for out in (folder, folder / "below", f"file://{folder}", "s3://bucket/" + os.fsdecode(b"\xff")):
        with pytest.raises(OutputError, match="is not UTF-8") as caught:
            open_storage(out)
        assert r"\xff" in caught.value.message
        str(caught.value).encode()
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(OutputError, match="is not UTF-8"):
        open_storage("out")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("below", ["", "run", "deep/er/run"])
def test_a_link_to_a_disk_that_is_not_mounted(tmp_path: Path, below: str) -> None:
    (tmp_path / "OUT").symlink_to("/mnt/disk-not-mounted/out")
    with pytest.raises(OutputError, match=r"OUT points to /mnt/disk-not-mounted/out, which is not there") as caught:
        open_storage(tmp_path / "OUT" / below)
    assert "mount" in caught.value.hint


def test_links_that_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match="leads back to itself"):
        open_storage(tmp_path / "a" / "out")
    (tmp_path / "c").symlink_to("d")
    (tmp_path / "d").symlink_to("nothing")
    with pytest.raises(OutputError, match="which is not there"):
        open_storage(tmp_path / "c")


def test_out_may_lie_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for out in ("link", "link/out"):
        storage = open_storage(tmp_path / out)
        storage.write_bytes("done/a", b"1")
        assert list(storage.list()) == ["done/a"]
        assert storage.root == str(tmp_path / out), "as it was named"
        storage.delete("done/a")
    assert (tmp_path / "disk" / "out" / "done").is_dir()


@pytest.mark.parametrize("out", ["x" * 256, "é" * 128, "/".join(["x" * 200] * 20)])
def test_paths_that_are_too_long(tmp_path: Path, out: str) -> None:
    with pytest.raises(OutputError, match="path is too long") as caught:
        open_storage(tmp_path / out)
    assert "shorter" in caught.value.hint


def test_a_folder_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        open_storage(tmp_path / "pipe")
    with pytest.raises(OutputError, match="no such user"):
        open_storage("~no-such-user/out")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(OutputError, match="working folder"):
        open_storage("out")


# ---- links within a folder -------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> LocalStorage:
    """A folder with links out of it, at the places of files and of folders, and what they lead to."""
    outside = tmp_path / "outside"
    (outside / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mp4", ".probe-1", ".x.123.partial"):
        (outside / name).write_bytes(b"mine")
    out = tmp_path / "out"
    (out / "video" / "00000").mkdir(parents=True)
    (out / "video" / "00000" / "real.mp4").write_bytes(b"ours")
    (out / "video" / "00000" / "linked.mp4").symlink_to(outside / "a.mp4")
    (out / "video" / "00000" / "folder").symlink_to(outside)
    (out / "video" / "00001").symlink_to(outside)
    (out / "done").symlink_to(outside)
    (out / ".probe-2").symlink_to(outside / ".probe-1")
    (out / ".y.123.partial").symlink_to(outside / ".x.123.partial")
    return LocalStorage(out)


def test_listings_leave_links_out(linked: LocalStorage) -> None:
    assert list(linked.list()) == list(linked.list("video")) == ["video/00000/real.mp4"]
    assert [file.path for file in linked.files()] == ["video/00000/real.mp4"]
    assert linked.children("video") == ["00000"]
    assert linked.children("video/00000") == ["real.mp4"]
    assert list(linked.leftovers()) == []
    assert linked.children() == [".probe-2", "done", "video"], "the folder is not empty"


@pytest.mark.parametrize("path", ["video/00000/linked.mp4", "video/00000/folder/a.mp4", "video/00001/a.mp4", "done/x"])
def test_no_path_leads_over_a_link(linked: LocalStorage, path: str, tmp_path: Path) -> None:
    before = contents(tmp_path / "outside")
    for use in (
        linked.exists, linked.stat, linked.read_bytes, linked.delete, linked.create_empty,
        lambda path: linked.get_file(path, tmp_path / "got"),
        lambda path: linked.put_file(__file__, path),
        lambda path: linked.write_bytes(path, b"1"),
        lambda path: linked.write_bytes(path, b"1", if_absent=True),
        lambda path: linked.delete_many([path]),
    ):  # fmt: skip
        with pytest.raises(OutputError, match="is a link, and no link within OUT is followed") as caught:
            use(path)
        assert caught.value.hint
    assert contents(tmp_path / "outside") == before
    assert not (tmp_path / "got").exists()


def test_nor_does_a_folder_to_list(linked: LocalStorage) -> None:
    for look in (linked.list, linked.files, linked.children):
        with pytest.raises(OutputError, match="is a link"):
            list(look("done"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    os.mkfifo(tmp_path / "a")
    assert not storage.exists("a")
    assert list(storage.list()) == []
    for use in (storage.read_bytes, lambda path: storage.get_file(path, tmp_path / "got")):
        with pytest.raises(OutputError, match="no regular file"):
            use("a")


def test_folders_deeper_than_python_recurses(tmp_path: Path) -> None:
    deep = tmp_path / "out" / "/".join("d" * 1050)
    os.makedirs(tmp_path / "out" / "/".join("d" * 525))
    os.makedirs(deep)
    (deep / "a").write_bytes(b"1")
    storage = LocalStorage(tmp_path / "out")
    assert list(storage.list()) == ["d/" * 1050 + "a"]
    assert [file.bytes for file in storage.files()] == [1]
    assert list(storage.leftovers()) == []
    (deep / "a").unlink()
    os.removedirs(deep)  # pytest would remove it by recursion


def test_more_than_belongs_there_is_not_read(storage: Storage) -> None:
    storage.write_bytes("a", b"x" * 100)
    assert storage.read_bytes("a", max_bytes=100) == b"x" * 100
    with pytest.raises(OutputError, match="has 100 bytes, and at most 99 belong there"):
        storage.read_bytes("a", max_bytes=99)


def test_empty_files_are_made_once(storage: Storage) -> None:
    assert storage.create_empty("x/a")
    assert not storage.create_empty("x/a")
    storage.write_bytes("x/b", b"1")
    assert not storage.create_empty("x/b")
    assert (storage.read_bytes("x/a"), storage.read_bytes("x/b")) == (b"", b"1")


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
