"""`repair`: whatever is done to a run's records, they are put right from what is there, and no row is made again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from miga.errors import LeaseHeldError
from pipeline.records.lease import Lease
from pipeline.records.manifest import to_parquet
from pipeline.records.run_folder import latents_path, manifest_path
from pipeline.storage.local import LocalStorage
from pipeline.upkeep import repair as repair_module
from pipeline.upkeep import verify as verify_module
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.repair import repair
from pipeline.upkeep.verify import verify
from pipeline.video import count_frames
from tests.made_run import NUM_FRAMES, PER_SHARD, MadeRun, make_run, video_bytes

NUM_ROWS = 7


@pytest.fixture(autouse=True)
def _each_video_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is in it: the same few videos are looked at again and again."""

    def count(path: Path) -> int:
        return counted(Path(path).read_bytes(), path)

    def counted(data: bytes, path: Path) -> int:
        if data not in COUNTS:
            COUNTS[data] = count_frames(path)
        return COUNTS[data]

    for module in (repair_module, verify_module):
        monkeypatch.setattr(module, "count_frames", count)


COUNTS: dict[bytes, int] = {}


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, NUM_ROWS, failed=(4,))


def sidecar(run: MadeRun, row: int) -> str:
    (path,) = [path for path in run.storage.list() if f"/{row:08d}-" in path and path.startswith(("done", "dead"))]
    return path


def change(run: MadeRun, row: int, **values: object) -> None:
    """Another value in a sidecar, as a damaged disk or a hand leaves it."""
    content = json.loads(run.storage.read_bytes(sidecar(run, row)))
    run.storage.write_bytes(sidecar(run, row), json.dumps(content | values).encode())


def unseal(run: MadeRun, *shards: int) -> None:
    for shard in shards:
        run.storage.delete(manifest_path(shard))


def shard_file(run: MadeRun, shard: int = 0) -> Path:
    return Path(run.storage.uri(manifest_path(shard)))


def wrong_type(run: MadeRun) -> None:
    unseal(run, 0)
    change(run, 1, num_frames="x")


def wrong_type_of_an_earlier_version(run: MadeRun) -> None:
    """Which wrote no checksum."""
    unseal(run, 0)
    for row in range(PER_SHARD):
        content = json.loads(run.storage.read_bytes(sidecar(run, row)))
        del content["checksum"]
        run.storage.write_bytes(
            sidecar(run, row), json.dumps(content | ({"num_frames": "x"} if row == 1 else {})).encode()
        )


def empty_sidecar(run: MadeRun) -> None:
    unseal(run, 0)
    run.storage.write_bytes(sidecar(run, 1), b"")


def of_another_row(run: MadeRun) -> None:
    unseal(run, 0)
    run.storage.write_bytes(sidecar(run, 1), run.storage.read_bytes(sidecar(run, 2)))


def flipped(run: MadeRun) -> None:
    unseal(run, 0)
    data = bytearray(run.storage.read_bytes(sidecar(run, 1)))
    at = data.index(b'"fps": 8.0') + len(b'"fps": ')
    data[at] ^= 1  # 9.0
    run.storage.write_bytes(sidecar(run, 1), bytes(data))


def all_sidecars_broken(run: MadeRun) -> None:
    unseal(run, 0, 1, 2)
    for path in [*run.storage.list("done")]:
        run.storage.write_bytes(path, b"\0" * 100)


def shard_file_lost_after_gc(run: MadeRun) -> None:
    collect_garbage(run.storage, sidecars=True)
    unseal(run, 0)


def shard_file_broken_after_gc(run: MadeRun) -> None:
    collect_garbage(run.storage, sidecars=True)
    data = bytearray(shard_file(run).read_bytes())
    data[len(data) // 3] ^= 4
    shard_file(run).write_bytes(bytes(data))


def all_records_of_a_shard_lost(run: MadeRun) -> None:
    """As the remedies of earlier versions left it: no sidecars any more, no packs, and the shard's file deleted."""
    for path in [*run.storage.list("done/00000")]:
        run.storage.delete(path)
    unseal(run, 0)


def shard_file_broken_and_nothing_else(run: MadeRun) -> None:
    for path in [*run.storage.list("done/00000")]:
        run.storage.delete(path)
    shard_file(run).write_bytes(b"PAR1" + b"\0" * 1000 + b"PAR1")


def row_twice_and_one_missing(run: MadeRun) -> None:
    rows = run.manifest.read_shard(0)
    for path in [*run.storage.list("done/00000")]:
        run.storage.delete(path)
    shard_file(run).write_bytes(to_parquet([rows[0], rows[0], rows[2]]))


def row_twice(run: MadeRun) -> None:
    rows = run.manifest.read_shard(0)
    for path in [*run.storage.list("done/00000")]:
        run.storage.delete(path)
    shard_file(run).write_bytes(to_parquet([*rows, rows[1]]))


def unsorted_rows(run: MadeRun) -> None:
    shard_file(run).write_bytes(to_parquet(run.manifest.read_shard(0)[::-1]))


def row_of_another_shard(run: MadeRun) -> None:
    shard_file(run).write_bytes(to_parquet([*run.manifest.read_shard(0), *run.manifest.read_shard(2)]))


def other_prompt_in_the_file(run: MadeRun) -> None:
    rows = run.manifest.read_shard(0)
    shard_file(run).write_bytes(to_parquet([replace(rows[0], prompts=("x",)), *rows[1:]]))


def other_seed_and_no_sidecar(run: MadeRun) -> None:
    rows = run.manifest.read_shard(0)
    run.storage.delete(sidecar(run, 0))
    shard_file(run).write_bytes(to_parquet([replace(rows[0], seed=9), *rows[1:]]))


def columns_of_a_later_version(run: MadeRun) -> None:
    table = pq.read_table(shard_file(run))
    pq.write_table(table.append_column("colour", [["red"] * PER_SHARD]), shard_file(run))


def column_lost(run: MadeRun) -> None:
    pq.write_table(pq.read_table(shard_file(run)).drop_columns(["device"]), shard_file(run))


def recorded_twice(run: MadeRun) -> None:
    """A record of the row from a run of other prompts, sound in itself, whose name comes first."""
    other = replace(run.row(1), key="0" * 64, uri=None, prompts=("another",))
    run.storage.write_bytes(f"done/00000/{1:08d}-{'0' * 16}.json", other.to_record())
    unseal(run, 0)


def junk_beside_a_sidecar(run: MadeRun) -> None:
    run.storage.write_bytes(f"done/00000/{1:08d}-{'0' * 16}.json", b"{}")


def sidecar_in_another_shard(run: MadeRun) -> None:
    run.storage.write_bytes(
        sidecar(run, 1).replace("done/00000", "done/00002"), run.storage.read_bytes(sidecar(run, 1))
    )


def latents_lost(run: MadeRun) -> None:
    rows = run.manifest.read_shard(0)
    kept = run.storage.uri(latents_path(0, 1, rows[1].key, 1, 1))
    shard_file(run).write_bytes(to_parquet([rows[0], replace(rows[1], latents_uri=kept), rows[2]]))


def pack_broken(run: MadeRun) -> None:
    collect_garbage(run.storage, sidecars=True)
    (path,) = run.storage.list("records/00000")
    run.storage.write_bytes(path, b"\x1f\x8b no")


def shard_file_and_pack_broken(run: MadeRun) -> None:
    pack_broken(run)
    shard_file(run).write_bytes(b"")


def sidecar_of_a_failure(run: MadeRun) -> None:
    unseal(run, 1)
    run.storage.write_bytes(sidecar(run, 4), b"{")


def unsealed(run: MadeRun) -> None:
    unseal(run, 1)


def moved(run: MadeRun) -> None:
    """Addresses are of where OUT was."""
    for shard in range(3):
        rows = run.manifest.read_shard(shard)
        elsewhere = [replace(row, uri=row.uri and row.uri.replace("/out/", "/then/out/")) for row in rows]
        shard_file(run, shard).write_bytes(to_parquet(elsewhere))


BREAKS = [
    wrong_type, wrong_type_of_an_earlier_version, empty_sidecar, of_another_row, flipped, all_sidecars_broken,
    shard_file_lost_after_gc,
    shard_file_broken_after_gc, all_records_of_a_shard_lost, shard_file_broken_and_nothing_else,
    row_twice_and_one_missing, row_twice, unsorted_rows, row_of_another_shard, other_prompt_in_the_file,
    other_seed_and_no_sidecar, columns_of_a_later_version, column_lost, recorded_twice, junk_beside_a_sidecar,
    sidecar_in_another_shard, latents_lost, pack_broken, shard_file_and_pack_broken, unsealed, moved,
]  # fmt: skip


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda break_it: break_it.__name__)
@pytest.mark.sampled(24)
def test_it_is_sound_again_and_nothing_is_made_again(run: MadeRun, break_it: Callable[[MadeRun], None]) -> None:
    before = {row.row: row for row in run.manifest.read_rows()}
    videos = {path: run.storage.read_bytes(path) for path in run.storage.list("video")}
    break_it(run)
    files = {path: run.storage.read_bytes(path) for path in run.storage.list()}
    if break_it not in (moved, shard_file_lost_after_gc):
        found = verify(run.storage)
        assert found.faults
        assert all("miga repair" in fault.remedy for fault in found.faults), [str(fault) for fault in found.faults]
    said = repair(run.storage, dry_run=True)
    assert said.steps
    assert {path: run.storage.read_bytes(path) for path in run.storage.list()} == files, "it only said so"
    done = repair(run.storage)
    assert (done.steps, done.is_done, done.left, done.to_make) == (said.steps, True, [], [])
    assert verify(run.storage).faults == []
    assert {path: run.storage.read_bytes(path) for path in run.storage.list("video")} == videos
    after = {row.row: row for row in run.manifest.read_rows()}
    assert after.keys() == before.keys()
    for index, row in before.items():
        made = after[index]
        for name in ("key", "id", "status", "prompts", "seed", "num_frames", "uri", "bytes", "sha256", "fps", "height",
                     "width", "duration_s", "config", "config_hash", "model", "model_revision", "profile", "metadata",
                     "attempt", "shard", "error"):  # fmt: skip
            assert getattr(made, name) == getattr(row, name), name
    raw = pq.read_table(Path(run.storage.root) / "manifest")
    assert raw["row"].to_pylist() == list(range(NUM_ROWS))
    assert [uri for uri in raw["uri"].to_pylist() if uri is not None and not run.storage.exists(uri)] == []
    again = repair(run.storage)
    assert (again.steps, again.left, again.is_done) == ([], [], False)
    collect_garbage(run.storage, sidecars=True)
    assert verify(run.storage).faults == []


def test_nothing_is_done_to_what_is_sound(run: MadeRun) -> None:
    before = {path: run.storage.read_bytes(path) for path in run.storage.list() if not path.startswith("lease/")}
    assert repair(run.storage).steps == []
    assert before == {p: run.storage.read_bytes(p) for p in run.storage.list() if not p.startswith("lease/")}


def lost(run: MadeRun) -> None:
    run.storage.delete(run.video(1))


def cut(run: MadeRun) -> None:
    run.storage.write_bytes(run.video(1), video_bytes(1)[:-1])


def bit_of_a_video(run: MadeRun) -> None:
    run.storage.write_bytes(run.video(1), video_bytes(1)[:-1] + b"\xff")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("has_sidecars", [True, False])
@pytest.mark.parametrize("break_it", [lost, cut, bit_of_a_video])
def test_a_record_whose_video_is_lost_is_taken_back(
    run: MadeRun, break_it: Callable[[MadeRun], None], has_sidecars: bool
) -> None:
    if not has_sidecars:
        collect_garbage(run.storage, sidecars=True)
    break_it(run)
    done = repair(run.storage)
    assert (done.to_make, done.left) == ([1], [])
    assert 1 not in run.manifest.statuses(0)
    assert [(fault.kind, fault.where) for fault in verify(run.storage).faults] == [("missing", "row 1")]
    run.settle(1, epoch=9)
    run.manifest.seal(0)
    assert verify(run.storage).faults == []


def test_another_attempt_stands_in_for_a_video_that_is_lost(run: MadeRun) -> None:
    run.storage.delete(run.video(1))
    run.storage.write_bytes(run.video(1, epoch=1, attempt=2), video_bytes(1))
    done = repair(run.storage)
    assert (done.to_make, done.left) == ([], [])
    assert verify(run.storage).faults == []
    assert (run.manifest.read_shard(0)[1].uri or "").endswith("-e1a2.mp4")


def test_a_video_of_another_row_or_length_is_not_taken(run: MadeRun) -> None:
    all_records_of_a_shard_lost(run)
    of_other_key = f"video/00000/{1:08d}-{run.row(2).key[:16]}-e1a1.mp4"
    run.storage.write_bytes(of_other_key, run.storage.read_bytes(run.video(1)))
    run.storage.delete(run.video(1))
    run.storage.write_bytes(run.video(2), run.storage.read_bytes(run.video(2))[:-100])
    assert repair(run.storage).is_done
    assert [row.row for row in run.manifest.read_shard(0)] == [0]
    assert [(fault.kind, fault.where) for fault in verify(run.storage).faults] == [("missing", "rows 1 to 2")]


def test_a_row_whose_failure_is_broken_is_settled_anew(run: MadeRun) -> None:
    sidecar_of_a_failure(run)
    done = repair(run.storage)
    assert (done.to_make, done.left) == ([4], [])
    assert 4 not in run.manifest.statuses(1)


def test_without_the_prompt_file_nothing_is_lost(run: MadeRun) -> None:
    wrong_type(run)
    away = run.prompts.rename(run.prompts.with_name("away.jsonl"))
    done = repair(run.storage)
    assert len(done.left) == 1
    assert "--prompts" in done.left[0]
    assert len(list(run.storage.list("video"))) == NUM_ROWS - 1
    assert repair(run.storage, prompts=str(away)).is_done
    assert verify(run.storage, prompts=str(away)).faults == []


def test_what_is_replaced_is_put_aside(run: MadeRun) -> None:
    shard_file(run).write_bytes(b"PAR1 of no use")
    junk_beside_a_sidecar(run)
    repair(run.storage)
    aside = {path.partition("/")[2].partition("/")[2]: path for path in run.storage.list("aside")}
    assert aside.keys() == {manifest_path(0), f"done/00000/{1:08d}-{'0' * 16}.json"}
    assert run.storage.read_bytes(aside[manifest_path(0)]) == b"PAR1 of no use"


def test_not_beside_a_run(run: MadeRun) -> None:
    unseal(run, 0)
    with Lease.held(run.storage, ttl_s=1.0), pytest.raises(LeaseHeldError):
        repair(run.storage, ttl_s=1.0)


def test_an_out_of_an_earlier_version_that_was_moved_reads_as_it_is_and_is_written_anew(
    run: MadeRun, tmp_path: Path
) -> None:
    """Its manifest has the addresses of where it was made."""
    for shard in range(3):
        rows = run.manifest.read_shard(shard)
        assert all(Path(row.uri).is_absolute() for row in rows if row.uri)
        shard_file(run, shard).write_bytes(to_parquet(rows))
        for row in rows:
            path = f"{'done' if row.status == 'ok' else 'dead'}/{shard:05d}/{row.row:08d}-{row.key[:16]}.json"
            run.storage.write_bytes(path, row.to_record())
    assert verify(run.storage).counts["shards_of_another_place"] == 0, "they are those of where it is"
    assert repair(run.storage).steps == []
    shutil.move(tmp_path / "out", tmp_path / "there")
    storage = LocalStorage(tmp_path / "there")
    there = MadeRun(storage, run.prompts, run.record, type(run.manifest)(storage, PER_SHARD))
    assert all(Path(row.uri).is_file() for row in there.manifest.read_rows() if row.uri)
    assert verify(storage).faults == []
    assert verify(storage).counts["shards_of_another_place"] == 3
    assert there.manifest.settled(0)[:2] == (dict.fromkeys(range(PER_SHARD), "ok"), False), (
        "the next run seals it again"
    )
    repair(storage)
    uris = pq.read_table(tmp_path / "there" / "manifest")["uri"].to_pylist()
    assert [(tmp_path / "there" / uri).is_file() for uri in uris if uri] == [True] * (NUM_ROWS - 1)
    assert not any(Path(uri).is_absolute() for uri in uris if uri)
    assert verify(storage).counts["shards_of_another_place"] == 0


def test_a_length_that_only_the_model_knows_is_read_off_the_video(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 3)
    config = json.loads(run.storage.read_bytes("run.json"))
    config["config"]["num_frames"] = None
    run.storage.write_bytes("run.json", json.dumps(config).encode())
    all_records_of_a_shard_lost(run)
    assert repair(run.storage).left == []
    assert verify(run.storage).faults == []
    assert {row.num_frames for row in run.manifest.read_rows()} == {NUM_FRAMES}
