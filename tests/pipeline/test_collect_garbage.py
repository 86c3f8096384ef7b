"""`gc`: what goes, what never does, and that it does not run beside a run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from miga.errors import LeaseHeldError, LeaseLostError, OutputError
from pipeline.records.lease import Lease, Owner
from pipeline.records.run_folder import checkpoint_folder, latents_path, open_state_path
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from pipeline.upkeep.collect_garbage import collect_garbage
from pipeline.upkeep.verify import verify
from tests.full_disk import fill_disk
from tests.made_run import MadeRun, make_run
from tests.pace import paced

ELSEWHERE = Owner(host="elsewhere", pid=1)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out" if request.param == "local" else request.getfixturevalue("s3_root"))


def files(storage: Storage) -> set[str]:
    return {path for path in storage.list() if not path.startswith("lease/")}


def put(run: MadeRun, *paths: str) -> set[str]:
    for path in paths:
        run.storage.write_bytes(path, b"12345678")
    return set(paths)


def litter(run: MadeRun) -> set[str]:
    """Files that no row refers to, of a run whose rows 0 to 2 are made, 3 was given up and 4 is not settled."""
    key = [run.row(index).key for index in range(5)]
    return put(
        run,
        run.video(0, attempt=2),
        run.video(0, epoch=2),
        run.video(3),
        latents_path(0, 1, key[1], 1, 2),
        open_state_path(latents_path(0, 1, key[1], 1, 2)),
        f"{checkpoint_folder(0, 0, key[0])}/e1a1-0001.safetensors",
        f"{checkpoint_folder(1, 3, key[3])}/e1a1-0001.safetensors",
        f"{checkpoint_folder(1, 4, key[4])}/e1a1-0001.safetensors",
        f"{checkpoint_folder(1, 4, key[4])}/e1a2-0002.safetensors",
        f"{checkpoint_folder(1, 4, key[4])}/e2a1-0004.safetensors",
    )


def keepers(run: MadeRun) -> set[str]:
    """Files that look alike, and are referred to, or are not of this program."""
    key = [run.row(index).key for index in range(5)]
    return put(
        run,
        latents_path(0, 1, key[1], 1, 1),
        open_state_path(latents_path(0, 1, key[1], 1, 1)),
        run.video(4),
        run.video(4, epoch=2),
        latents_path(1, 4, key[4], 1, 1),
        f"{checkpoint_folder(1, 4, key[4])}/e2a1-0001.safetensors",
        f"{checkpoint_folder(1, 4, key[4])}/e2a1-0002.safetensors",
        "video/00000/notes.txt",
        "video/00000/00000001-0123456789abcdef-e1a1.mp4",
        "latents/00000/00000001-0123456789abcdef-e1a1.safetensors",
        "checkpoint/00000/00000001-0123456789abcdef/e1a1-0001.safetensors",
        "video/README",
        "checkpoint/00001/mine/e1a1-0001.safetensors",
        "latents/00000/mean.safetensors",
        "report.html",
    )


@pytest.mark.sampled(2)
def test_exactly_what_nothing_refers_to_goes(storage: Storage, tmp_path: Path) -> None:
    run = make_run(storage, tmp_path, 6, failed=(3,), unsettled=(4,))
    before = files(storage) | keepers(run)
    doomed = litter(run)
    noted: list[str] = []
    found = collect_garbage(storage, dry_run=True, note=noted.append)
    assert (set(noted), found.bytes, files(storage)) == (doomed, 8 * len(doomed), before | doomed)
    assert not storage.children("lease"), "looking takes no lease"
    found = collect_garbage(storage)
    assert files(storage) == before
    assert found.files == {"video": 3, "latents": 2, "checkpoint": 5}
    assert [fault.kind for fault in verify(storage).faults] == ["missing"]
    assert collect_garbage(storage).files == {}


def test_leftovers_go(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    before = files(run.storage)
    (tmp_path / "out" / "video" / "00000" / ".x.mp4.1.partial").write_bytes(b"1")
    run.storage.write_bytes(".probe-12", b"")
    assert collect_garbage(run.storage).files == {"partial file": 1, "probe": 1}
    assert files(run.storage) == before
    assert list(run.storage.leftovers()) == []


@pytest.mark.s3
def test_uploads_of_killed_processes_are_aborted(s3_root: str, tmp_path: Path) -> None:
    from tests.faulty_s3 import bucket_client

    run = make_run(open_storage(s3_root), tmp_path)
    before = files(run.storage)
    client, bucket = bucket_client(), s3_root.split("/")[2]
    for key in ("deep/prefix/video/00000/x.mp4", "deep/other/x.mp4"):
        upload = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        client.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    assert collect_garbage(run.storage, dry_run=True).files == {"upload in parts": 1}
    assert collect_garbage(run.storage).files == {"upload in parts": 1}
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["deep/other/x.mp4"], "of other prefixes nothing is touched"
    assert files(run.storage) == before


@pytest.mark.sampled(2)
def test_sidecars_go_only_where_nothing_reads_them(storage: Storage, tmp_path: Path) -> None:
    run = make_run(storage, tmp_path, 8, failed=(1, 4))
    run.settle(4, attempt=2)  # retried, and made
    run.manifest.seal(1)
    rows = [row.to_json() for row in run.manifest.read_rows()]
    kept = {path for path in storage.list() if path.startswith(("done/00002", "dead/", "done/00001/00000004"))}
    found = collect_garbage(storage, sidecars=True)
    assert found.files == {"sidecar": 4}
    assert {path for path in storage.list() if path.startswith(("done", "dead"))} == kept
    assert [row.to_json() for row in run.manifest.read_rows()] == rows
    assert verify(storage).is_sound


def test_the_older_file_of_a_run_taken_for_dead_is_put_right(tmp_path: Path) -> None:
    """Why some sidecars stay: its file of the shard, from before the retry, may still arrive."""
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 3, failed=(1,))
    older = run.storage.read_bytes("manifest/shard-00000.parquet")
    run.settle(1, epoch=2)
    run.manifest.seal(0)
    collect_garbage(run.storage, sidecars=True)
    run.storage.write_bytes("manifest/shard-00000.parquet", older)
    assert [row.status for row in run.manifest.read_rows()] == ["ok", "ok", "ok"]
    collect_garbage(run.storage, sidecars=True)
    assert run.storage.exists(run.video(1, epoch=2))
    assert [fault.kind for fault in verify(run.storage).faults] == ["unsealed"]


def test_sidecars_are_packed_before_they_go(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, failed=(1,))
    rows = list(run.manifest.read_rows())
    collect_garbage(run.storage, sidecars=True)
    assert list(run.storage.list("records")) == [f"records/{shard:05d}/e000001.jsonl.gz" for shard in (0, 1)]
    for shard in (0, 1):
        run.storage.delete(f"manifest/shard-{shard:05d}.parquet")
    assert list(run.manifest.read_rows()) == rows, "as the shards' files said"
    run.manifest.seal(0)
    run.manifest.seal(1)
    collect_garbage(run.storage, sidecars=True)
    assert len(list(run.storage.list("records"))) == 2, "once is enough"


def test_shards_whose_sidecars_an_earlier_version_removed_get_a_second_copy(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 3)
    run.storage.delete_many([*run.storage.list("done")])
    collect_garbage(run.storage, sidecars=True)
    assert run.manifest.read_pack("records/00000/e000001.jsonl.gz") == run.manifest.read_sealed(0)


def test_a_sidecar_that_says_otherwise_stays(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 3)
    (path,) = [path for path in run.storage.list("done") if "/00000001-" in path]
    run.storage.write_bytes(path, b"notes of mine")
    assert collect_garbage(run.storage, sidecars=True).files == {"sidecar": 2}
    assert list(run.storage.list("done")) == [path]


@pytest.mark.parametrize("level", ["shard", "kind", "in a shard"])
def test_links_are_not_followed_out_of_out(tmp_path: Path, level: str) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, unsettled=(4,))
    away = tmp_path / "away"
    away.mkdir()
    inside = away / "00000" if level == "kind" else away
    inside.mkdir(exist_ok=True)
    names = [Path(run.video(row, attempt=2)).name for row in (0, 1)]
    for name in names:
        (inside / name).write_bytes(b"another's")
    if level == "shard":
        (tmp_path / "out" / "video" / "00002").symlink_to(away)
    elif level == "in a shard":
        (tmp_path / "out" / "video" / "00000" / names[0]).symlink_to(away / names[0])
    else:
        (tmp_path / "out" / "latents").symlink_to(away)
    with suppress(OutputError):  # it may as well be refused
        collect_garbage(run.storage, sidecars=True)
    assert sorted(path.name for path in inside.iterdir()) == sorted(names)


def test_not_beside_a_run(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, failed=(3,), unsettled=(4,))
    litter(run)
    before = files(run.storage)
    ttl_s = paced(1.0)
    with Lease.held(run.storage, ttl_s=ttl_s), pytest.raises(LeaseHeldError, match="another run is writing"):
        collect_garbage(run.storage, ttl_s=ttl_s)
    assert files(run.storage) == before


def test_a_run_that_starts_meanwhile_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, failed=(3,), unsettled=(4,))
    litter(run)
    before = files(run.storage)

    def take(path: str) -> None:
        if len(run.storage.children("lease")) == 2:
            run.storage.write_bytes("lease/000002.json", run.storage.read_bytes("lease/000001.json"))

    with pytest.raises(LeaseLostError):
        collect_garbage(run.storage, note=take)
    assert files(run.storage) == before


def broken_sidecar(run: MadeRun) -> None:
    (path,) = [path for path in run.storage.list("done") if "/00000005-" in path]
    run.storage.write_bytes(path, b"{")


def broken_file(run: MadeRun) -> None:
    run.storage.write_bytes("manifest/shard-00001.parquet", b"PAR1")


@pytest.mark.parametrize("break_it", [broken_sidecar, broken_file])
def test_where_rows_cannot_be_read_nothing_goes(tmp_path: Path, break_it: Callable[[MadeRun], None]) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6, unsettled=(4,))
    break_it(run)
    put(run, run.video(3, attempt=2))
    before = files(run.storage)
    with pytest.raises(OutputError):
        collect_garbage(run.storage)
    assert files(run.storage) == before


def test_a_broken_shard_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 9)
    run.storage.write_bytes("manifest/shard-00000.parquet", b"PAR1")
    orphan, kept = run.video(7, attempt=2), run.video(0, attempt=2)
    put(run, orphan, kept)
    with pytest.raises(OutputError, match="shard-00000") as caught:
        collect_garbage(run.storage)
    assert "miga repair" in caught.value.hint
    assert (run.storage.exists(orphan), run.storage.exists(kept)) == (False, True)


def test_on_a_full_disk_leftovers_go_first_and_videos_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be written until something is gone."""
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 6)
    put(run, run.video(0, attempt=2))
    (tmp_path / "out" / "video" / ".x.mp4.0123456789abcdef-1-1.partial").write_bytes(b"1")
    write, delete = LocalStorage.write_bytes, LocalStorage.delete
    is_full = True

    def write_bytes(self: LocalStorage, path: str, data: bytes, if_absent: bool = False) -> bool:
        if is_full and data and not path.startswith("lease/"):  # its claim is a matter of the lease
            raise OutputError("no space left on the device", "free some")
        return write(self, path, data, if_absent)

    def freed(self: LocalStorage, path: str) -> None:
        nonlocal is_full
        is_full = False
        delete(self, path)

    monkeypatch.setattr(LocalStorage, "write_bytes", write_bytes)
    monkeypatch.setattr(LocalStorage, "delete", freed)
    assert collect_garbage(run.storage, sidecars=True).files == {"partial file": 1, "video": 1, "sidecar": 6}


def test_no_run(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    with pytest.raises(OutputError, match="holds no run"):
        collect_garbage(LocalStorage(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["video"]


def test_a_run_killed_on_this_machine_does_not_hold_it_up(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path)
    code = (
        "import os, sys\nfrom pipeline.records.lease import Lease, Owner\n"
        "from pipeline.storage.open import open_storage\n"
        "Lease.acquire(open_storage(sys.argv[1]), Owner.this_process(), 600.0, None); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, run.storage.root], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -9
    collect_garbage(run.storage, ttl_s=600.0)
    assert run.storage.exists("lease/000002.released")


def test_a_full_disk_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is when it is needed; the lease is an empty file then."""
    storage = LocalStorage(tmp_path / "out")
    run = make_run(storage, tmp_path, 6, failed=(3,), unsettled=(4,))
    kept = files(storage) | keepers(run)
    litter(run)
    fill_disk(monkeypatch)
    collect_garbage(storage)
    assert files(storage) == kept
    assert [storage.stat(f"lease/{name}").bytes for name in storage.children("lease")] == [0, 0, 0]


def test_a_link_out_of_out_is_left_alone(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    run = make_run(storage, tmp_path, 6, failed=(3,), unsettled=(4,))
    kept = files(storage) | keepers(run)
    litter(run)
    mine = tmp_path / "mine"
    mine.mkdir()
    names = [Path(run.video(0, epoch=7)).name, "e1a1-0001.safetensors", ".probe-1", ".x.1.partial"]
    for name in names:
        (mine / name).write_bytes(b"mine")
    (tmp_path / "out" / "video" / "00099").symlink_to(mine)
    (tmp_path / "out" / "video" / "00000" / "link").symlink_to(mine)
    (tmp_path / "out" / "checkpoint" / "00098").symlink_to(mine)
    (tmp_path / "out" / "link").symlink_to(mine)
    collect_garbage(storage)
    assert files(storage) == kept
    assert sorted(path.name for path in mine.iterdir()) == sorted(names)
