"""`export`: what other programs read of it, filters, and going on after being stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from miga.errors import MigaError, OutputError, UsageError
from pipeline.records.manifest import Manifest
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.export import ExportOptions, Format, export
from tests.made_run import MadeRun, make_run, video_bytes

FORMATS: tuple[Format, ...] = ("parquet", "csv", "hf", "webdataset")


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    """Eight rows in three shards; row 4 was given up. Mean consistency of row n is 0.6 + n / 100."""
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,))


@pytest.fixture
def dest(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "dest")


def content(storage: Storage) -> dict[str, str]:
    return {path: hashlib.sha256(storage.read_bytes(path)).hexdigest() for path in storage.list()}


def table_of(dest: LocalStorage, format: str) -> list[dict[str, Any]]:
    """The rows as others read them: file_name, seed, prompts, final_consistency, status."""
    if format == "csv":
        rows = list(csv.DictReader(io.StringIO(dest.read_bytes("dataset.csv").decode())))
        assert pyarrow.csv.read_csv(dest.uri("dataset.csv")).num_rows == len(rows)
        lists = {"prompts", "final_consistency"}
        return [{k: json.loads(v) if k in lists else v for k, v in row.items()} for row in rows]
    where = "train/metadata.parquet" if format == "hf" else "dataset.parquet"
    rows: list[dict[str, Any]] = pq.read_table(dest.uri(where)).to_pylist()
    return rows


@pytest.mark.parametrize("format", ["parquet", "csv", "hf"])
@pytest.mark.parametrize("videos", ["copy", "link"])
def test_a_table_and_its_videos(run: MadeRun, dest: LocalStorage, format: Format, videos: Any) -> None:
    before = content(run.storage)
    summary = export(run.storage, dest, ExportOptions(format=format, videos=videos))
    assert (summary["rows"], summary["left_out_failed"]) == (7, 1)
    base = Path(dest.root) / ("train" if format == "hf" else "")
    rows = table_of(dest, format)
    assert [int(row["row"]) for row in rows] == [0, 1, 2, 3, 5, 6, 7]
    for row in rows:
        index = int(row["row"])
        assert (base / row["file_name"]).read_bytes() == video_bytes(index % 4)
        assert row["prompts"] == [f"a cat \U0001f408 number {index}"]
        assert row["final_consistency"] == [0.5 + index / 100, 0.7 + index / 100]
        assert int(row["seed"]) == index
        assert row["id"] == f"id-{index}"
        assert row["uri"] == (f"train/{row['file_name']}" if format == "hf" else row["file_name"])
        if format == "hf":
            assert row["text"] == row["prompts"][0]
    linked = Path(run.storage.uri(run.video(0))).stat().st_nlink
    assert linked == (2 if videos == "link" else 1)
    assert content(run.storage) == before
    assert all(Path(file).is_file() for file in summary["files"])


def test_videos_may_stay_where_they_are(run: MadeRun, dest: LocalStorage) -> None:
    export(run.storage, dest, ExportOptions(format="parquet", videos="reference"))
    assert set(dest.children()) == {"README.md", "dataset.parquet", "export.json"}
    assert [row["file_name"] for row in table_of(dest, "parquet")][:1] == [f"../out/{run.video(0)}"]


def test_webdataset(run: MadeRun, dest: LocalStorage) -> None:
    export(run.storage, dest, ExportOptions(format="webdataset"))
    found: dict[str, dict[str, bytes]] = {}
    shards = json.loads(dest.read_bytes("index.json"))["shards"]
    assert [(shard["name"], shard["rows"]) for shard in shards] == [
        ("shard-00000.tar", 3),
        ("shard-00001.tar", 2),
        ("shard-00002.tar", 2),
    ]
    for shard in shards:
        assert hashlib.sha256(dest.read_bytes(shard["name"])).hexdigest() == shard["sha256"]
        with tarfile.open(dest.uri(shard["name"])) as tar:
            names = tar.getnames()
            assert names == sorted(names, key=lambda name: name[:8]), "parts of a sample stand together"
            for member in tar:
                key, _, kind = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[kind] = file.read()
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
    assert sorted(found) == [f"{index:08d}" for index in (0, 1, 2, 3, 5, 6, 7)]
    for key, sample in found.items():
        assert sample["mp4"] == video_bytes(int(key) % 4)
        assert sample["txt"].decode() == f"a cat \U0001f408 number {int(key)}"
        assert json.loads(sample["json"])["seed"] == int(key)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bytes_again_and_after_being_stopped_anywhere(
    run: MadeRun, tmp_path: Path, format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(format=format)
    export(run.storage, whole := LocalStorage(tmp_path / "whole"), options)
    dest = LocalStorage(tmp_path / "dest")
    real = LocalStorage.put_file
    allowed = 0
    for _ in range(20):
        left = [allowed]

        def put(self: LocalStorage, local: Any, path: str, left: list[int] = left) -> None:
            if not left[0]:
                raise OutputError("full", "free some space")
            left[0] -= 1
            real(self, local, path)

        monkeypatch.setattr(LocalStorage, "put_file", put)
        try:
            export(run.storage, dest, options)
            break
        except OutputError:
            assert not dest.exists("dataset.parquet") or dest.exists("dataset.csv")
            allowed = 1
    assert content(dest) == content(whole)
    monkeypatch.undo()
    monkeypatch.setattr(LocalStorage, "get_file", None)
    export(run.storage, dest, options)
    assert content(dest) == content(whole)


def test_filters(run: MadeRun, tmp_path: Path) -> None:
    def rows(name: str, **options: Any) -> list[int]:
        dest = LocalStorage(tmp_path / name)
        export(run.storage, dest, ExportOptions(format="parquet", **options))
        return [row["row"] for row in table_of(dest, "parquet")]

    assert rows("a", status="all") == list(range(8))
    assert rows("b", status="failed") == [4]
    assert rows("c", min_consistency=0.655) == [6, 7]
    assert rows("d", min_consistency=0.655, status="all") == [6, 7], "a row without a score has not reached it"
    assert rows("e", min_consistency=2.0) == []
    failed = table_of(LocalStorage(tmp_path / "b"), "parquet")[0]
    assert (failed["file_name"], failed["error"]) == (None, "NaN")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\n=1", "'=1", "''-1", "\uff1d1"]
PLAIN = ["a = b", "1-1", "'quoted'", "", " =1"]


def test_no_cell_of_a_csv_is_a_formula(run: MadeRun, dest: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a spreadsheet reads it; taking an apostrophe away again gives every text as it was."""
    texts = [*FORMULAS, *PLAIN]
    (row,) = [row for row in Manifest(run.storage, 3).read_shard(0) if row.row == 0]
    rows = [replace(row, id=text, negative_prompt=text, error=text, final_consistency=(-1.0,)) for text in texts]
    monkeypatch.setattr(Manifest, "read_shard", lambda self, shard: rows if shard == 0 else [])
    export(run.storage, dest, ExportOptions(format="csv"))
    there = list(csv.reader(io.StringIO(dest.read_bytes("dataset.csv").decode(), newline="")))
    column = {name: i for i, name in enumerate(there[0])}
    for text, cells in zip(texts, there[1:], strict=True):
        for name in ("id", "negative_prompt", "error"):
            cell = cells[column[name]]
            assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d")
            assert (cell == text) == (text in PLAIN)
            assert (cell[1:] if re.match("'+[=+\\-@\t\r\n\uff1d]", cell) else cell) == text
        assert cells[column["final_consistency"]] == "[-1.0]"
        assert not any(cell.startswith("'") for name, cell in zip(there[0], cells, strict=True) if name not in
                       ("id", "negative_prompt", "error"))  # fmt: skip


@pytest.mark.parametrize("uri", ["", "..", "video/00000/..", "/etc/passwd", "a/../../b.mp4", "00000000-x-e1a1.mp4/"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.sampled(3)
def test_a_row_that_names_no_video_of_a_run(
    run: MadeRun, dest: LocalStorage, format: Format, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(row, uri=uri) for row in Manifest(run.storage, 3).read_shard(0)]
    monkeypatch.setattr(Manifest, "read_shard", lambda self, shard: rows if shard == 0 else [])
    with pytest.raises(OutputError) as caught:
        export(run.storage, dest, ExportOptions(format=format))
    assert "row 0" in caught.value.message
    assert "verify" in caught.value.hint


@pytest.mark.parametrize("index", [b"", b"[]", b"{", b'{"name": 3}', b"\xff", b"[" * 5000])
def test_a_broken_index_is_made_again(run: MadeRun, dest: LocalStorage, index: bytes) -> None:
    export(run.storage, dest, ExportOptions(format="webdataset"))
    whole = content(dest)
    dest.write_bytes("index/shard-00000.json", index)
    export(run.storage, dest, ExportOptions(format="webdataset"))
    assert content(dest) == whole


def test_an_unfinished_run_gives_what_is_settled(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, unsettled=(1, 5))
    dest = LocalStorage(tmp_path / "dest")
    assert export(run.storage, dest, ExportOptions(format="parquet"))["rows"] == 6
    run.settle(1)
    assert export(run.storage, dest, ExportOptions(format="parquet"))["rows"] == 7
    assert [row["row"] for row in table_of(dest, "parquet")] == [0, 1, 2, 3, 4, 6, 7]


def test_a_grown_shard_is_packed_again(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, unsettled=(1,))
    dest = LocalStorage(tmp_path / "dest")
    export(run.storage, dest, ExportOptions(format="webdataset"))
    untouched = Path(dest.uri("shard-00001.tar")).stat().st_ino
    run.settle(1)
    export(run.storage, dest, ExportOptions(format="webdataset"))
    with tarfile.open(dest.uri("shard-00000.tar")) as tar:
        assert [name for name in tar.getnames() if name.endswith("mp4")] == [f"{n:08d}.mp4" for n in range(3)]
    assert Path(dest.uri("shard-00001.tar")).stat().st_ino == untouched


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("data", [None, b"other"])
def test_videos_that_are_missing_or_others_stop_it(
    run: MadeRun, dest: LocalStorage, format: Format, data: bytes | None
) -> None:
    if data is None:
        run.storage.delete(run.video(2))
    else:
        run.storage.write_bytes(run.video(2), data)
    with pytest.raises(OutputError, match=r"row 2") as caught:
        export(run.storage, dest, ExportOptions(format=format))
    assert "verify" in caught.value.hint


@pytest.mark.parametrize(
    "options",
    [
        {"format": "hf", "status": "all"},
        {"format": "webdataset", "status": "failed"},
        {"format": "hf", "videos": "reference"},
        {"format": "webdataset", "videos": "link"},
        {"format": "parquet", "min_consistency": float("nan")},
    ],
)
def test_options_that_do_not_go_together(options: Any) -> None:
    with pytest.raises(UsageError) as caught:
        ExportOptions(**options)
    assert caught.value.hint


@pytest.mark.parametrize("where", ["out", "out/export", "."])
def test_dest_must_be_outside_of_out(run: MadeRun, tmp_path: Path, where: str) -> None:
    with pytest.raises(UsageError, match="overlap"):
        export(run.storage, LocalStorage(tmp_path / where), ExportOptions(format="parquet"))


def test_dest_holds_something_else(run: MadeRun, tmp_path: Path) -> None:
    dest = LocalStorage(tmp_path / "dest")
    dest.write_bytes("thesis.tex", b"")
    with pytest.raises(OutputError, match=r"not empty and holds no export \(thesis.tex\)"):
        export(run.storage, dest, ExportOptions(format="csv"))
    assert dest.children() == ["thesis.tex"]


def test_dest_holds_another_export(run: MadeRun, dest: LocalStorage) -> None:
    export(run.storage, dest, ExportOptions(format="csv"))
    before = content(dest)
    with pytest.raises(MigaError, match="with other options"):
        export(run.storage, dest, ExportOptions(format="csv", min_consistency=0.1))
    assert content(dest) == before


def test_no_run(tmp_path: Path, dest: LocalStorage) -> None:
    with pytest.raises(OutputError, match="holds no run"):
        export(LocalStorage(tmp_path / "none"), dest, ExportOptions(format="csv"))
    assert not Path(dest.root).exists()


@pytest.mark.s3
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.sampled(4)
def test_between_buckets_and_folders(s3_root: str, tmp_path: Path, format: Format) -> None:
    run = make_run(open_storage(f"{s3_root}/out"), tmp_path, 4)
    there, here = open_storage(f"{s3_root}/dest"), LocalStorage(tmp_path / "dest")
    export(run.storage, there, ExportOptions(format=format))
    export(run.storage, here, ExportOptions(format=format))
    assert content(there) == content(here)
    with pytest.raises(UsageError, match="linked"):
        export(run.storage, LocalStorage(tmp_path / "x"), ExportOptions(format="csv", videos="link"))
