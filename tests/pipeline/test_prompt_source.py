"""A prompt file that is edited while it is read: no row of other bytes than those looked at first, at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miga.errors import InputError, OutputError
from pipeline.config import RunConfig
from pipeline.prompts import source as prompt_source
from pipeline.prompts.read import count_rows, read_prompts
from pipeline.prompts.source import PromptFile, look_at
from pipeline.records.run_folder import RunRecord, fingerprint, open_run
from pipeline.rows import PromptRow
from pipeline.storage.local import LocalStorage

NUM_ROWS = 80


def content(kind: str, word: str) -> bytes:
    """A file of `NUM_ROWS` prompts with that word in each, always of the same size for words of one length."""
    prompts = [f"{word} number {i:03d} " + "x" * 40 for i in range(NUM_ROWS)]
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"prompt": prompts}), sink, row_group_size=10, compression="none", use_dictionary=False)
        return sink.getvalue().to_pybytes()
    lines = {"txt": prompts, "csv": ["prompt", *prompts], "jsonl": [json.dumps({"prompt": text}) for text in prompts]}
    return "".join(line + "\n" for line in lines[kind]).encode()


def edit(path: Path, data: bytes) -> None:
    """Puts other bytes into the same file, so that its time does not tell."""
    about = path.stat()
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a file of a few kilobytes is of many blocks, none of which is kept."""
    monkeypatch.setattr(prompt_source, "BLOCK_BYTES", 512)
    monkeypatch.setattr(prompt_source, "_KEPT_BLOCKS", 1)


def with_one_bit_flipped(data: bytes) -> bytes:
    at = len(data) * 3 // 4
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


EDITS: dict[str, Callable[[bytes], bytes]] = {
    "other words": lambda data: data.replace(b"old", b"new"),
    "one bit": with_one_bit_flipped,
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + data,
    "empty": lambda data: b"",
}


def read_and_edit(path: Path, moment: int, changed: bytes) -> tuple[list[Any], InputError | None]:
    """The rows of a file that is edited after row `moment` (-1: before the first), and what ended the reading."""
    file, rows = look_at(str(path)), list[Any]()
    if moment < 0:
        edit(path, changed)
    try:
        for row in read_prompts(file, seed=0, num_frames=9):
            rows.append(row)
            if row.index == moment:
                edit(path, changed)
    except InputError as error:
        return rows, error
    return rows, None


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("how", EDITS)
def test_no_row_of_other_bytes_whenever_the_file_is_edited(tmp_path: Path, kind: str, how: str) -> None:
    path, data = tmp_path / f"p.{kind}", content(kind, "old")
    noticed = []
    for moment in range(-1, NUM_ROWS - 1, 3):
        path.write_bytes(data)
        rows, error = read_and_edit(path, moment, EDITS[how](data))
        assert all(isinstance(row, PromptRow) for row in rows)
        assert all(row.prompts[0].startswith(f"old number {row.index:03d}") for row in rows)
        if error is None:
            assert len(rows) == NUM_ROWS
        else:
            assert "was changed while the run read it" in error.message
            assert "resumes" in error.hint
        noticed.append(error is not None)
    has_size_changed = how in ("cut", "longer", "empty")
    assert all(noticed) if has_size_changed else all(noticed[:10]), "where the file was read already, all is as it was"


def test_an_edit_is_noticed_by_size_and_time_though_all_was_read_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_source, "BLOCK_BYTES", 1 << 20)
    path = tmp_path / "p.txt"
    path.write_bytes(content("txt", "old"))
    rows = read_prompts(str(path), seed=0, num_frames=9)
    assert next(rows).index == 0
    with path.open("ab") as file:
        file.write(b"one more\n")
    with pytest.raises(InputError, match=rf"it had {path.stat().st_size - 9} bytes and has {path.stat().st_size} now"):
        next(rows)


def test_a_touch_and_a_copy_in_its_place_are_no_edits(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content("txt", "old"))
    rows = read_prompts(str(path), seed=0, num_frames=9)
    num_read = 1 + next(rows).index
    os.utime(path, ns=(0, 0))
    num_read += 1 + (next(rows).index - num_read)
    (tmp_path / "copy").write_bytes(content("txt", "old"))
    os.replace(tmp_path / "copy", path)
    assert num_read + sum(1 for _ in rows) == NUM_ROWS


def test_a_file_put_in_its_place_is_not_read_on_with(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content("txt", "old"))
    file = look_at(str(path))
    rows = read_prompts(file, seed=0, num_frames=9)
    first = next(rows)
    (tmp_path / "new").write_bytes(content("txt", "new"))
    os.replace(tmp_path / "new", path)
    others = list(rows)  # of the file that was opened, which has no name any more
    assert len(others) == NUM_ROWS - 1
    assert all(row.prompts[0].startswith("old") for row in (first, *others) if isinstance(row, PromptRow))
    for again in (lambda: count_rows(file), lambda: read_prompts(file, seed=0, num_frames=9)):
        with pytest.raises(InputError, match="was changed"):
            again()


def test_a_file_that_is_being_written_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(content("txt", "old"))
    read = prompt_source._Raw.read

    def read_and_write(self: Any, start: int, size: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"more\n")
        return read(self, start, size) if start < 2000 else b""

    monkeypatch.setattr(prompt_source._Raw, "read", read_and_write)
    with pytest.raises(InputError, match="is being written"):
        look_at(str(path))


def test_in_object_storage_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_source, "_REMOTE_LOOK_S", 0.0)
    fs = fsspec.filesystem("memory")
    for kind in ("txt", "parquet"):
        fs.pipe(f"/bucket/p.{kind}", content(kind, "old"))
        rows = read_prompts(f"memory://bucket/p.{kind}", seed=0, num_frames=9)
        assert next(rows).index == 0
        fs.pipe(f"/bucket/p.{kind}", content(kind, "new"))
        with pytest.raises(InputError, match="was changed"):
            list(rows)


@pytest.mark.parametrize("look_s", [0.0, 1e9], ids=["by its tag", "by its bytes"])
def test_on_s3(s3_root: str, look_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_source, "_REMOTE_LOOK_S", look_s)
    fs = fsspec.filesystem("s3")
    address, data = f"{s3_root}/in/a b.jsonl", content("jsonl", "old")
    fs.pipe_file(address.removeprefix("s3://"), data)
    file = look_at(address)
    assert (file.bytes, count_rows(file)) == (len(data), NUM_ROWS)
    rows = read_prompts(file, seed=0, num_frames=9)
    assert next(rows).index == 0
    fs.pipe_file(address.removeprefix("s3://"), data)  # the same again
    assert next(rows).index == 1
    fs.pipe_file(address.removeprefix("s3://"), content("jsonl", "new"))
    later: list[Any] = []
    if look_s:  # all of so small a file was fetched at once
        later.extend(rows)
        assert all(row.prompts[0].startswith("old") for row in later)
    else:
        with pytest.raises(InputError, match=r"it still has .* bytes, but other ones"):
            later.extend(rows)
    with pytest.raises(InputError, match="was changed"):
        count_rows(file)
    with pytest.raises(InputError, match="does not exist"):
        look_at(f"{s3_root}/in/none.jsonl")
    for folder in (f"{s3_root}/in", f"{s3_root}/in/", f"s3://{s3_root.split('/')[2]}"):
        with pytest.raises(InputError, match="is a folder"):
            look_at(folder)
    with pytest.raises(InputError, match="the bucket does not exist"):
        look_at("s3://no-such-bucket/p.txt")
    for address in ("s3://", "s3://b c/p.txt"):
        with pytest.raises(InputError, match="begins with no name of a bucket"):
            look_at(address)


def test_the_bytes_of_a_file_known_before_it_is_written(tmp_path: Path) -> None:
    path, data = tmp_path / "p.txt", content("txt", "old")
    file = PromptFile.of(str(path), [data[:700], data[700:]])
    path.write_bytes(data)
    assert file == look_at(str(path))
    assert count_rows(file) == NUM_ROWS


def test_a_run_is_not_resumed_with_another_prompt_file_and_says_what_changed(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    storage = LocalStorage(tmp_path / "out")

    def record(text: str) -> RunRecord:
        path.write_text(text)
        return RunRecord(
            config=RunConfig().to_dict(), model="m", model_revision="r", profile="p", sampler={},
            prompts=fingerprint(look_at(str(path))), version="1", created_at="2026-01-01T00:00:00+00:00",
        )  # fmt: skip

    open_run(storage, record("a\n"))
    with pytest.raises(OutputError) as caught:
        open_run(storage, record("a\nb\n"))
    assert f"the prompt file {path}: 2 bytes, " in caught.value.message
    assert "4 bytes, " in caught.value.message
    assert "restore the prompt file as it was" in caught.value.hint
    assert open_run(storage, record("a\n"))[1]


# ---- addresses -------------------------------------------------------------------------------------------------------


def test_two_colons_in_a_name(tmp_path: Path) -> None:
    (tmp_path / "a::b.txt").write_text("a cat\n")
    assert count_rows(str(tmp_path / "a::b.txt")) == 1
    for address in (f"file://{tmp_path}/a::b.txt", "s3://bucket/a::b.txt", "zip://a.txt::s3://bucket/b.zip"):
        with pytest.raises(InputError, match=r"holds '::'"):
            look_at(address)


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "gone.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for name, message in (
        (str(tmp_path / "pipe.txt"), "is a pipe or a device"),
        ("/dev/null", "is a pipe or a device"),
        (str(tmp_path / "link.txt"), "is a link to .*gone.txt, which does not exist"),
        (str(tmp_path / "loop.txt"), "cannot be read"),
        (f"file://{tmp_path}/pipe.txt", "is a pipe or a device"),
        (str(tmp_path / "a\0b.txt"), "cannot be read"),
        (str(tmp_path / ("x" * 300 + ".txt")), "cannot be read"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            look_at(name)
        assert caught.value.hint


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(name, "wb") as file:
        file.write(b"a cat\n")
    with pytest.raises(InputError, match=r"is not UTF-8: .*caf\\xe9") as caught:
        look_at(os.fsdecode(name))
    str(caught.value).encode()


def test_a_folder_whose_name_is_no_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    monkeypatch.chdir(os.fsdecode(folder))
    Path("p.txt").write_text("a cat\n")
    with pytest.raises(InputError, match="not UTF-8"):
        look_at("p.txt")


@pytest.mark.parametrize(
    "address",
    ["bogus://bucket/p.txt", "simplecache::memory://in/p.txt", "://p.txt", "http://127.0.0.1:1/p.txt",
     "s3:///p.txt", "github://p.txt", "zip://p.txt"],
)  # fmt: skip
def test_addresses_that_lead_nowhere(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError) as caught:
        look_at(address)
    assert caught.value.hint


def test_the_hub_while_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"hf://datasets/a/b/p\.txt cannot be read"):
        look_at("hf://datasets/a/b/p.txt")
