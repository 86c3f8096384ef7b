from __future__ import annotations

import io
import json
import math
import random
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from miga.errors import OutputError
from miga.outside_data import OutsideDataError
from pipeline.records.manifest import SCHEMA, Manifest, to_parquet
from pipeline.records.run_folder import manifest_path, pack_path, sidecar_path
from pipeline.rows import ManifestRow
from pipeline.storage.local import LocalStorage

KEY = "ab" * 32


def row(index: int, status: str = "ok", **values: object) -> ManifestRow:
    made = ManifestRow(
        key=KEY,
        id=f"id \U0001f408 {index}",
        row=index,
        shard=index // 4,
        status=status,  # type: ignore[arg-type]
        prompts=("nul \x00 esc \x1b[0m", "b"),
        seed=2**64 - 1,
        profile="paper",
        model="m",
        model_revision="r",
        config="{}",
        config_hash="h",
        consistency=(0.125, math.nan, 0.1),
        consistency_latents=(4, 8, 12),
        searched_at=(1,),
        final_consistency=(0.3,),
        error=None if status == "ok" else "why",
        created_at=datetime(2024, 2, 29, 12, tzinfo=UTC),
        version="0.1.0",
    )
    return replace(made, **values)  # type: ignore[arg-type]


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


@pytest.fixture
def manifest(storage: LocalStorage) -> Manifest:
    return Manifest(storage, prompts_per_shard=4)


def texts(rows: object) -> list[str]:
    return [each.to_json() for each in rows]  # type: ignore[attr-defined]


def test_rows_are_the_same_before_and_after_sealing(manifest: Manifest) -> None:
    rows = [row(3, "failed"), row(0), row(2), row(1), row(5)]
    assert all(manifest.record(each) for each in rows)
    expected = texts(sorted(rows, key=lambda each: each.row))
    assert texts(manifest.read_rows()) == expected
    assert manifest.seal(0) == 4
    assert texts(manifest.read_rows()) == expected
    assert manifest.seal(1) == 1
    assert texts(manifest.read_rows()) == expected
    assert manifest.shards() == manifest.sealed_shards() == [0, 1]
    assert (manifest.is_sealed(0), manifest.is_sealed(1), manifest.is_sealed(1, 1)) == (True, False, True)


def test_statuses_of_sealed_and_unsealed_shards(manifest: Manifest) -> None:
    assert manifest.statuses(0) == {}
    for each in (row(0), row(2, "failed")):
        manifest.record(each)
    assert manifest.statuses(0) == {0: "ok", 2: "failed"}
    manifest.seal(0)
    manifest.record(row(3))
    assert manifest.statuses(0) == {0: "ok", 2: "failed", 3: "ok"}


def test_full_shard_needs_no_sidecars(manifest: Manifest, storage: LocalStorage) -> None:
    for index in range(4):
        manifest.record(row(index))
    manifest.seal(0)
    for path in list(storage.list("done")):
        storage.delete(path)
    assert len(manifest.read_shard(0)) == len(manifest.statuses(0)) == 4


def test_short_shard_grows_with_the_limit(manifest: Manifest, storage: LocalStorage) -> None:
    manifest.record(row(0))
    manifest.seal(0)
    before = storage.read_bytes(manifest_path(0))
    for index in (1, 2, 3):
        manifest.record(row(index))
    assert manifest.seal(0) == 4
    assert storage.read_bytes(manifest_path(0)) != before
    assert [each.row for each in manifest.read_rows()] == [0, 1, 2, 3]


def test_rows_of_one_key_are_kept_apart(manifest: Manifest) -> None:
    assert manifest.record(row(0))
    assert manifest.record(row(1))
    assert [each.row for each in manifest.read_rows()] == [0, 1]


def test_a_row_is_settled_once(manifest: Manifest) -> None:
    assert manifest.record(row(0))
    assert manifest.record(row(0)), "the same again is fine"
    assert not manifest.record(row(0, attempt=2))
    assert manifest.read_shard(0)[0].attempt == 0


def test_success_counts_over_failure(manifest: Manifest) -> None:
    manifest.record(row(0, "failed"))
    manifest.seal(0)
    manifest.record(row(0, "ok"))
    assert manifest.statuses(0) == {0: "ok"}
    assert [each.status for each in manifest.read_rows()] == ["ok"]


def test_a_retried_row_of_a_full_sealed_shard_counts_and_is_sealed(manifest: Manifest, storage: LocalStorage) -> None:
    for index in range(4):
        manifest.record(row(index, "failed" if index == 2 else "ok"))
    manifest.seal(0)
    manifest.record(row(2, "ok", attempt=7))
    assert manifest.statuses(0) == dict.fromkeys(range(4), "ok")
    assert [each.attempt for each in manifest.read_shard(0)] == [0, 0, 7, 0]
    assert manifest.sealed_statuses(0)[2] == "failed"
    assert not manifest.is_sealed(0, 4), "its file says otherwise"
    manifest.seal(0)
    assert manifest.sealed_statuses(0) == dict.fromkeys(range(4), "ok")
    assert manifest.is_sealed(0)
    assert pq.read_table(io.BytesIO(storage.read_bytes(manifest_path(0))))["attempt"].to_pylist() == [0, 0, 7, 0]


def test_what_is_sealed_as_made_stays(manifest: Manifest, storage: LocalStorage) -> None:
    """A coordinator that was taken for dead may still commit: by then its row is settled."""
    for index in range(4):
        manifest.record(row(index))
    manifest.seal(0)
    storage.delete(sidecar_path("ok", 0, 1, KEY))
    manifest.record(row(1, attempt=9))
    assert [each.attempt for each in manifest.read_shard(0)] == [0, 0, 0, 0]


def test_wrong_shard_is_a_mistake_of_the_program(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="shard"):
        manifest.record(row(0, shard=1))


def test_file_is_deterministic_whatever_the_order(tmp_path: Path) -> None:
    files = []
    for name, order in (("a", (0, 1, 2, 3)), ("b", (3, 1, 0, 2))):
        storage = LocalStorage(tmp_path / name)
        manifest = Manifest(storage, 4)
        for index in order:
            manifest.record(row(index))
        manifest.seal(0)
        files.append(storage.read_bytes(manifest_path(0)))
    assert files[0] == files[1]


def test_schema_is_the_same_for_every_file_and_opens_as_a_dataset(manifest: Manifest, tmp_path: Path) -> None:
    manifest.record(row(0, searched_at=(), consistency=(), consistency_latents=(), final_consistency=()))
    manifest.record(row(4, "failed", prompts=(), seed=None))
    manifest.seal(0)
    manifest.seal(1)
    for shard in (0, 1):
        assert pq.read_schema(tmp_path / manifest_path(shard)).equals(SCHEMA, check_metadata=True)
    table = ds.dataset(tmp_path / "manifest").to_table()
    assert table["seed"].to_pylist() == [2**64 - 1, None]
    assert table["prompts"].to_pylist() == [["nul \x00 esc \x1b[0m", "b"], []]
    assert table.to_pandas().shape == (2, len(SCHEMA)) if _has_pandas() else True


def _has_pandas() -> bool:
    try:
        import pandas  # noqa: F401
    except ImportError:
        return False
    return True


def test_empty_shard_can_be_written() -> None:
    assert pq.read_table(io.BytesIO(to_parquet([]))).num_rows == 0


def test_broken_files_are_named(manifest: Manifest, storage: LocalStorage) -> None:
    manifest.record(row(0))
    storage.write_bytes(sidecar_path("ok", 0, 1, KEY), b'{"key": ')
    with pytest.raises(OutputError, match=r"00000001-abababababababab\.json is broken"):
        manifest.read_shard(0)
    storage.write_bytes(manifest_path(1), b"PAR1 no")
    with pytest.raises(OutputError, match=r"shard-00001\.parquet"):
        manifest.statuses(1)


def test_foreign_files_are_left_alone(manifest: Manifest, storage: LocalStorage) -> None:
    manifest.record(row(0))
    storage.write_bytes("done/00000/notes.txt", b"")
    storage.write_bytes("done/README", b"")
    storage.write_bytes("manifest/index.html", b"")
    assert [each.row for each in manifest.read_rows()] == [0]


def test_a_broken_sidecar_gives_way_to_a_sound_one_beside_it(manifest: Manifest, storage: LocalStorage) -> None:
    base = sidecar_path("ok", 0, 1, KEY)
    storage.write_bytes(base, b"{")
    assert manifest.settled(0)[0] == {}
    assert [file.path for file in manifest.settled(0)[2].values()] == [base]
    assert manifest.record(row(1, attempt=3))
    assert not manifest.record(row(1, attempt=4)), "it is settled now"
    assert [each.attempt for each in manifest.read_shard(0)] == [3]
    assert manifest.settled(0)[::2] == ({1: "ok"}, {})
    assert storage.read_bytes(base) == b"{", "nothing is overwritten"


def test_a_success_that_is_broken_is_no_failure(manifest: Manifest, storage: LocalStorage) -> None:
    """Its video would go with the next `gc`."""
    manifest.record(row(1, "failed"))
    manifest.record(row(1))
    storage.write_bytes(sidecar_path("ok", 0, 1, KEY), b"{}")
    assert manifest.look(0).rows == {}
    assert manifest.look(0).broken_rows.keys() == {1}
    with pytest.raises(OutputError, match="miga repair"):
        manifest.seal(0)


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": "x"}, {"num_frames": 1.5}, {"num_frames": True}, {"num_frames": 2**63}, {"bytes": -1},
        {"height": 2**31}, {"shard": 1}, {"row": 5}, {"seed": 2**64}, {"seed": -1}, {"fps": "8"}, {"fps": None, "x": 1},
        {"id": 7}, {"prompts": "a"}, {"prompts": [1]}, {"consistency": "0.5"}, {"consistency": [None, "x"]},
        {"created_at": "yesterday"}, {"created_at": 1.0}, {"created_at": "0001-01-01T00:00:00+09:00"},
        {"uri": "/etc/passwd"}, {"uri": "video/00000/../x"}, {"uri": "video/00000/00000001-abababababababab-e1a1.mp4"},
        {"latents_uri": "s3://b/x"}, {"status": "fine"}, {"status": "failed"}, {"key": "cd" * 32}, {"metadata": {}},
    ],
)  # fmt: skip
def test_sidecars_of_earlier_versions_are_read_and_not_believed(
    manifest: Manifest, storage: LocalStorage, values: dict[str, object]
) -> None:
    content = json.loads(row(0).to_json())
    path = sidecar_path("ok", 0, 0, KEY)
    storage.write_bytes(path, json.dumps(content).encode())
    assert texts(manifest.read_shard(0)) == [row(0).to_json()]
    storage.write_bytes(path, json.dumps(content | values).encode())
    with pytest.raises(OutputError, match="is broken"):
        manifest.read_shard(0)


def test_one_flipped_bit_is_found_wherever_it_is(manifest: Manifest, storage: LocalStorage) -> None:
    """Or it is in what no reader looks at, and changes nothing."""
    for index in range(4):
        manifest.record(row(index))
    manifest.seal(0)
    manifest.pack(0, 1, manifest.read_shard(0))
    expected = texts(manifest.read_shard(0))
    draw = random.Random(5)
    readers = {
        manifest_path(0): lambda: manifest.read_sealed(0),
        pack_path(0, 1): lambda: manifest.read_pack(pack_path(0, 1)),
        sidecar_path("ok", 0, 2, KEY): lambda: [manifest.read_sidecar(sidecar_path("ok", 0, 2, KEY))],
    }
    for path, read in readers.items():
        data = storage.read_bytes(path)
        for at in (draw.randrange(len(data)) for _ in range(300)):
            flipped = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
            Path(storage.uri(path)).write_bytes(flipped)
            with suppress(OutsideDataError):
                assert set(texts(read())) <= set(expected)
        storage.write_bytes(path, data)
        assert set(texts(read())) <= set(expected)


def test_a_file_with_a_row_twice_or_of_another_shard_is_refused(manifest: Manifest, storage: LocalStorage) -> None:
    for rows in ([row(0), row(0)], [row(0), row(5)], [row(0, shard=7)]):
        storage.write_bytes(manifest_path(0), to_parquet(rows))
        for read in (manifest.read_shard, manifest.sealed_statuses):
            if rows[0].shard == 0 or read == manifest.read_shard:
                with pytest.raises(OutputError, match="miga repair"):
                    read(0)


def test_packs_complete_an_older_file_and_sidecars_that_come_late_do_not_count(
    manifest: Manifest, storage: LocalStorage
) -> None:
    manifest.record(row(0))
    manifest.seal(0)
    older = storage.read_bytes(manifest_path(0))
    manifest.pack(0, 3, [row(index, attempt=1) for index in range(4)])
    storage.write_bytes(manifest_path(0), older)
    manifest.record(row(2, attempt=9))
    assert [each.attempt for each in manifest.read_shard(0)] == [0, 1, 1, 1]
    assert manifest.statuses(0) == dict.fromkeys(range(4), "ok")
    assert not manifest.is_sealed(0)
    assert manifest.seal(0) == 4
    assert manifest.is_sealed(0)
    assert manifest.shards() == [0]
