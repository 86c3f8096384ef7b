"""`miga extend`: a longer video from kept latents is the one that the longer length gives from the start."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actors.driver.progress import ProgressBoard
from actors.driver.rows import RowMaker
from actors.messages import Hosted
from actors.worker.backbone import BackboneWorker
from jobs.cli import main
from jobs.run.plan import make_plan, run_record
from pipeline.config import RunConfig, RunSection
from pipeline.records.lease import Lease
from pipeline.records.manifest import Manifest
from pipeline.records.run_folder import latents_path, open_run, open_state_path, video_path
from pipeline.rows import ManifestRow, PromptRow
from pipeline.storage.open import open_storage
from pipeline.upkeep.verify import verify
from tests.actors.hosts import FEWER_STEPS, MODEL, make, task, worker
from tests.actors.test_progress import LINE

SHORT, LONG = 61, 101


def finish_run(out: str | Path, folder: Path) -> None:
    """A run of three rows: one with its latents kept, one without, one that failed."""
    (folder / "prompts.txt").write_text("a cat\na dog\nfault: nan\n")
    run = RunSection(keep_latents=True)
    config = RunConfig(model=MODEL, profile="paper", num_frames=SHORT, run=run, sampler=FEWER_STEPS)
    plan = make_plan(str(folder / "prompts.txt"), str(out), config)
    storage = open_storage(out)
    record, _ = open_run(storage, run_record(plan))
    maker, manifest = RowMaker(record, plan.spec), Manifest(storage, 1000)
    for row in plan.rows():
        assert isinstance(row, PromptRow)
        key, number = maker.key(row), row.index
        if number == 2:
            manifest.record(maker.failed(row, 1, "NonFiniteError", "NaN"))
            continue
        kept = latents_path(0, number, key, 1, 1) if number == 0 else None
        what = task(SHORT, number, seed=row.seed, path=video_path(0, number, key, 1, 1), latents_path=kept)
        result = make(worker(out), what, *row.prompts).result
        manifest.record(maker.finished(row, key, 1, 0.0, result))
    manifest.seal(0)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    finish_run(folder / "out", folder)
    return folder / "out"


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of it, in another place than it was made in."""
    return Path(shutil.copytree(finished_run, tmp_path / "moved"))


def rows(out: str | Path) -> list[ManifestRow]:
    return list(Manifest(open_storage(out), 1000).read_rows())


def extend(capsys: pytest.CaptureFixture[str], out: str | Path, key: str, num_frames: int) -> tuple[int, str]:
    status = main(["extend", str(out), key, "--num-frames", str(num_frames), "--json"])
    captured = capsys.readouterr()
    return status, captured.out if status == 0 else captured.err


def from_the_start(tmp_path: Path, num_frames: int) -> str:
    return make(worker(tmp_path / "anew"), task(num_frames, seed=0)).result.sha256


@pytest.mark.slow
def test_it_is_the_video_of_that_length_and_the_run_stays_as_it_is(
    capsys: pytest.CaptureFixture[str], out: Path, tmp_path: Path
) -> None:
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    status, text = extend(capsys, out, rows(out)[0].key[:8], LONG)
    assert status == 0, text
    longer = ManifestRow.from_json(text)
    assert longer.sha256 == from_the_start(tmp_path, LONG)
    assert longer.num_frames == LONG
    assert longer.key != rows(out)[0].key
    assert Path(str(longer.uri)).parent == out / "extended"
    assert {file: file.read_bytes() for file in before} == before
    new = {file.name.rpartition("-")[2] for file in out.rglob("*") if file.is_file() and file not in before}
    assert new == {f"{LONG}.mp4", f"{LONG}.json", f"{LONG}.safetensors", "open.safetensors"}

    # The same again: it is there.
    written = {file: file.stat().st_mtime_ns for file in (out / "extended").iterdir()}
    status, text = extend(capsys, out, rows(out)[0].key, LONG)
    assert (status, ManifestRow.from_json(text)) == (0, longer)
    assert {file: file.stat().st_mtime_ns for file in (out / "extended").iterdir()} == written

    # What was extended can be extended in turn.
    status, text = extend(capsys, out, longer.key, LONG + 40)
    assert status == 0, text
    assert ManifestRow.from_json(text).sha256 == from_the_start(tmp_path, LONG + 40)


@pytest.mark.slow
def test_it_counts_calls_of_the_network_those_of_the_kept_latents_too(
    capsys: pytest.CaptureFixture[str], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    shown = ProgressBoard.video_calls

    def listen(board: ProgressBoard, worker: str, hosted: Hosted) -> None:
        told.append(hosted.num_calls)
        shown(board, worker, hosted)

    monkeypatch.setattr(ProgressBoard, "video_calls", listen)
    news = BackboneWorker.news
    monkeypatch.setattr(BackboneWorker, "news", lambda worker, seconds: news(worker, 0.001))  # it is a short video
    first = rows(out)[0]
    assert main(["extend", str(out), first.key, "--num-frames", str(LONG)]) == 0
    captured = capsys.readouterr()
    lines = [LINE.sub("", line) for line in captured.err.splitlines()]
    for step in ("encoding prompts", "loading the model"):
        assert any(line.startswith(f"{step}: done in ") for line in lines)
    total = make(worker(tmp_path / "anew"), task(LONG, seed=0)).result.num_calls
    assert f"[1/1 videos, 100 % of about {total:,} calls" in lines[-1]
    assert f"{LONG} frames, {total:,} calls" in lines[-1]
    assert "latent" not in captured.err
    begun = [calls for calls in told if calls]
    assert begun == sorted(begun)
    assert 0 < begun[0] <= begun[-1] <= total
    kept_calls = first.network_calls
    assert kept_calls is not None
    assert begun[0] > kept_calls / 2, "it goes on behind what the shorter video had in common with it"


@pytest.mark.slow  # test_storage_s3.py has every call, the tests here all else
@pytest.mark.s3
def test_out_may_be_in_a_bucket(capsys: pytest.CaptureFixture[str], s3_root: str, tmp_path: Path) -> None:
    finish_run(s3_root, tmp_path)
    bucket = open_storage(s3_root)
    before = {path: bucket.read_bytes(path) for path in bucket.list()}
    status, text = extend(capsys, s3_root, rows(s3_root)[0].key[:8], LONG)
    assert status == 0, text
    longer = ManifestRow.from_json(text)
    assert str(longer.uri).startswith(f"{s3_root}/extended/")
    video = bucket.read_bytes(str(longer.uri).removeprefix(f"{s3_root}/"))
    assert hashlib.sha256(video).hexdigest() == longer.sha256 == from_the_start(tmp_path, LONG)
    after = {path: bucket.read_bytes(path) for path in bucket.list()}
    assert {path: after[path] for path in before} == before
    ends = {path.rpartition("-")[2] for path in after.keys() - before}
    assert ends == {f"{LONG}.mp4", f"{LONG}.json", f"{LONG}.safetensors", "open.safetensors"}
    assert verify(bucket).is_sound

    # The same again: it is there.
    assert extend(capsys, s3_root, rows(s3_root)[0].key, LONG)[0] == 0
    assert {path: bucket.read_bytes(path) for path in bucket.list()} == after


@pytest.mark.slow
def test_a_half_made_one_is_gone_on_with(capsys: pytest.CaptureFixture[str], out: Path, tmp_path: Path) -> None:
    row = rows(out)[0]
    folder = f"extended/{row.row:08d}-{row.key[:16]}-{LONG}-checkpoint"
    kept = open_state_path(latents_path(0, 0, row.key, 1, 1))
    half = task(LONG, seed=0, checkpoints=folder, resume_from=kept)
    host = worker(out)
    host.suspend(0, 1)
    host.make_video(half, *[(vector, 0.0) for vector in _embeddings()])
    assert len(list((out / folder).iterdir())) == 1
    status, text = extend(capsys, out, row.key, LONG)
    assert status == 0, text
    assert ManifestRow.from_json(text).sha256 == from_the_start(tmp_path, LONG)
    assert not (out / folder).exists() or not list((out / folder).iterdir())


def _embeddings() -> list:
    from tests.actors.hosts import embeddings

    return [vector for vector, _ in embeddings("a cat")]


@pytest.mark.parametrize(
    ("key", "num_frames", "named"),
    [
        ("", LONG, "too short"),
        ("zzzz", LONG, "no row"),
        ("0", SHORT, "no more than the 61"),
        ("0", 60, "57 or 61"),
        ("0", 37, "no more than the 61"),
        ("1", LONG, "keep_latents"),
        ("2", LONG, "was not made"),
    ],
)
def test_what_cannot_be_is_refused(
    capsys: pytest.CaptureFixture[str], finished_run: Path, key: str, num_frames: int, named: str
) -> None:
    before = sorted(finished_run.rglob("*"))
    status, message = extend(
        capsys, finished_run, rows(finished_run)[int(key)].key if key.isdecimal() else key, num_frames
    )
    assert status == 2
    assert named in message
    assert "hint: " in message
    assert sorted(finished_run.rglob("*")) == before


def test_latents_that_are_gone_are_named(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    kept = out / latents_path(0, 0, rows(out)[0].key, 1, 1)
    Path(open_state_path(str(kept))).unlink()
    assert "independent of its length" in extend(capsys, out, rows(out)[0].key, LONG)[1]
    kept.unlink()
    assert "gone" in extend(capsys, out, rows(out)[0].key, LONG)[1]


def test_a_model_of_another_revision_is_refused(
    capsys: pytest.CaptureFixture[str], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sidecar,) = (out / "done").rglob("00000000-*.json")
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record))
    row = replace(rows(out)[0], model_revision="another")
    sidecar.write_text(row.to_json())
    (out / "manifest" / "shard-00000.parquet").unlink()
    status, message = extend(capsys, out, row.key, LONG)
    assert status == 2
    assert "another" in message


def test_a_second_one_at_the_same_time_is_refused(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    record = json.loads((out / "run.json").read_text())
    record["config"]["run"]["lease_ttl_s"] = 1.0
    (out / "run.json").write_text(json.dumps(record))
    row = rows(out)[0]
    place = open_storage(out / f"extended/{row.row:08d}-{row.key[:16]}-{LONG}-lease")
    with Lease.held(place, ttl_s=1.0):
        before = sorted(out.rglob("*.*"))
        status, message = extend(capsys, out, row.key, LONG)
        assert status == 2
        assert "another run is writing" in message
        assert "wait until it ends" in message
        assert {path.suffix for path in set(out.rglob("*.*")) - set(before)} <= {".beat"}


def test_notes_that_are_not_of_their_name_are_refused(capsys: pytest.CaptureFixture[str], out: Path) -> None:
    """Nothing is made in these: what is there is read first."""
    row = rows(out)[0]
    folder = out / "extended"
    folder.mkdir()
    note = folder / f"{row.row:08d}-{row.key[:16]}-{LONG}.json"
    for content in (
        row.to_json(),  # of the shorter video
        replace(row, num_frames=LONG).to_json(),  # its key is of the shorter video
        replace(row, row=1, num_frames=LONG).to_json(),
        "{}",
        "",
    ):
        note.write_text(content)
        status, message = extend(capsys, out, row.key, LONG)
        assert status == 2, message
        assert str(note) in message
        assert "delete it" in message
    note.unlink()
    (folder / f"._{note.name}").write_bytes(b"\0\5\x16\7")
    (folder / "notes.json").write_text("mine")
    assert "no row" in extend(capsys, out, "zzzz", LONG)[1]
