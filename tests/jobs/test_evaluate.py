"""`miga evaluate` from the command line to its table: workers in this process, but for one slow test on a local Ray."""

from __future__ import annotations

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from actors.runtime import Slots
from actors.worker.evaluation import EvaluationWorker
from miga.evaluation.networks.raft import Raft
from pipeline.evaluation.evaluator import EvaluationSettings, Evaluator
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.cli import run
from tests.made_run import make_run
from tests.pipeline.evaluation.test_scores import networks
from tests.pipeline.evaluation.videos import make_video, rotated


class _Method:
    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> Any:
        future: Future[Any] = Future()
        future.set_result(self._call(*arguments))

        class Reference:
            def future(self) -> Future[Any]:
                return future

        return Reference()


class _Here:
    """A worker in this process."""

    def __init__(self, settings: EvaluationSettings) -> None:
        worker = EvaluationWorker(settings)
        self.load, self.evaluate = _Method(worker.load), _Method(worker.evaluate)
        self.num_steps = _Method(worker.num_steps)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[str, ...]]]:
    """Workers in this process; what was looked at, in order: (path, measures)."""
    from actors.driver.pool import Pool

    @contextlib.contextmanager
    def session(*arguments: Any) -> Iterator[Slots]:
        yield Slots(num_actors=2, cpus=1.0, gpus=0.0)

    looked: list[tuple[str, tuple[str, ...]]] = []
    evaluate = Evaluator.evaluate

    def noted(self: Evaluator, video: Any, measures: Any) -> Any:
        looked.append((video.path, tuple(measures)))
        return evaluate(self, video, measures)

    monkeypatch.setattr(Evaluator, "evaluate", noted)
    monkeypatch.setattr("actors.runtime.ray_session", session)
    monkeypatch.setattr("actors.driver.pool.Pool", functools.partial(Pool, kill=lambda actor: None))
    monkeypatch.setattr("actors.driver.evaluation.evaluator_starter", lambda settings, slots: lambda: _Here(settings))
    return looked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    videos = tmp_path / "videos"
    videos.mkdir()
    make_video(videos / "a dog-0.mp4")
    make_video(videos / "a dog-1.mp4", source="color=black:size=64x48:rate=8")
    (videos / "broken.mp4").write_bytes((videos / "a dog-0.mp4").read_bytes()[:2000])
    return videos


def _lines(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "evaluation" / "results.parquet").to_pylist()
    return found


def test_a_folder_of_videos(folder: Path, in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a dog"}\n{"id": "broken", "prompt": "a cat"}\n')
    results = tmp_path / "vbench.json"
    options = ["--metrics", "temporal_flickering", "--json", "--vbench-json", results]
    status, out, _ = run(capsys, "evaluate", folder, "--prompts", prompts, *options)
    summary = json.loads(out)
    assert status == 3
    assert (summary["videos"], summary["failed"]) == (3, 1)
    assert "broken.mp4 does not decode to its end" in summary["failures"][0]["reason"]
    lines = _lines(folder)
    assert [(line["path"], line["prompts"]) for line in lines] == [
        ("a dog-0.mp4", ["a dog"]),
        ("a dog-1.mp4", ["a dog"]),
        ("broken.mp4", ["a cat"]),
    ]
    assert lines[1]["value"] == 1.0
    assert 0.5 < lines[0]["value"] < 1.0
    assert lines[2]["error"].startswith("BadVideoError: ")
    values = json.loads(results.read_text())
    assert [video["video_path"] for video in values["temporal_flickering"][1]] == ["a dog-0.mp4", "a dog-1.mp4"]


def test_the_same_again_looks_at_nothing(folder: Path, in_process: list, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--json", "--failed-rows-ok")
    before = _lines(folder)
    assert len(in_process) == 3
    status, out, _ = run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--json", "--failed-rows-ok")
    assert status == 0
    assert json.loads(out)["evaluated_now"] == 0
    assert len(in_process) == 3
    assert _lines(folder) == before


def test_what_failed_is_tried_again_when_asked_for(
    folder: Path, in_process: list, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--quiet")
    run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--quiet", "--retry-failed")
    assert [path for path, _ in in_process] == ["a dog-0.mp4", "a dog-1.mp4", "broken.mp4", "broken.mp4"]
    make_video(folder / "broken.mp4")  # mended: it is another file now, and needs no asking
    status, _, _ = run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--quiet")
    assert status == 0
    assert in_process[-1][0] == "broken.mp4"


def test_a_further_metric_costs_only_itself(
    folder: Path, in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (folder / "broken.mp4").unlink()
    run(capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--quiet")
    weights = tmp_path / "raft.safetensors"
    state = {name: tensor.clone() for name, tensor in Raft().state_dict().items()}
    save_file(state, weights)
    options = ["--weights", f"raft={weights}", "--quiet"]
    status, _, _ = run(capsys, "evaluate", folder, "--metrics", "temporal_flickering,dynamic_degree", *options)
    assert status == 0
    assert [measures for _, measures in in_process[2:]] == [("dynamic_degree",)] * 2
    lines = {(line["path"], line["measure"]): line for line in _lines(folder)}
    assert lines["a dog-0.mp4", "temporal_flickering"]["value"] is not None
    small = lines["a dog-0.mp4", "dynamic_degree"]
    assert small["value"] is None
    assert "needs sides of 121 pixels at least for its network (raft), and the video is 64x48" in small["error"]


@pytest.mark.slow
def test_a_run_by_its_manifest(in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = make_run(LocalStorage(tmp_path / "out"), tmp_path, 7, failed={2})
    lost = tmp_path / "out" / made.video(4)
    lost.write_bytes(lost.read_bytes()[:-20])
    status, out, error = run(capsys, "evaluate", tmp_path / "out", "--quiet")
    assert status == 3, error
    assert "5 of 6 videos evaluated" in out
    assert "1 rows of the run have no video" in out
    lines = _lines(tmp_path / "out")
    assert {line["row"] for line in lines} == {0, 1, 3, 4, 5, 6}
    by = {(line["row"], line["measure"]): line for line in lines}
    assert by[0, "temporal_flickering"]["value"] == 1.0  # its frames are of one colour
    assert by[0, "sampler_consistency"]["value"] == pytest.approx(0.6)
    assert "is not the video that was made" in by[4, None]["error"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert '"scored":"temporal_flickering"' in page
    assert "Score, worst first" in page


@pytest.mark.slow
def test_odd_videos_side_by_side_hold_up_no_other(
    in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of bad or odd video in one folder: what can be scored is, what cannot says why, by its name."""
    monkeypatch.setattr("pipeline.evaluation.evaluator.load_network", lambda file, device: networks("raft"))
    videos = tmp_path / "videos"
    videos.mkdir()
    plain = make_video(videos / "plain.mp4", size="128x128")
    make_video(videos / "black.mp4", source="color=black:size=144x128:rate=8")
    make_video(videos / "one.mp4", size="128x128", frames=1)
    make_video(videos / "small.mp4", size="112x128")
    make_video(videos / "ten-bit.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le", size="160x128")
    make_video(videos / "varying.mp4", "-vf", "select='not(between(n,5,14))'", "-fps_mode", "vfr", size="128x136")
    rotated(make_video(tmp_path / "upright.mp4", size="160x128"), videos / "turned.mp4")
    (videos / "cut.mp4").write_bytes(plain.read_bytes()[: plain.stat().st_size // 2])
    weights = tmp_path / "raft.safetensors"
    save_file({name: tensor.clone() for name, tensor in Raft().state_dict().items()}, weights)
    options = ["--metrics", "temporal_flickering,dynamic_degree", "--weights", f"raft={weights}", "--json"]
    status, out, error = run(capsys, "evaluate", videos, *options)
    assert status == 3, error
    assert [failure["id"] for failure in json.loads(out)["failures"]] == ["cut"]
    lines = _lines(videos)
    by = {(line["id"], line["measure"]): line for line in lines}
    assert {line["id"]: (line["width"], line["height"]) for line in lines if line["width"]} == {
        "black": (144, 128), "one": (128, 128), "plain": (128, 128), "small": (112, 128), "ten-bit": (160, 128),
        "turned": (128, 160), "varying": (128, 136),
    }  # fmt: skip
    scored = {name for (name, measure), line in by.items() if line["value"] is not None and measure == "dynamic_degree"}
    assert scored == {"black", "one", "plain", "ten-bit", "turned", "varying"}
    assert "needs sides of 121 pixels" in by["small", "dynamic_degree"]["error"]
    assert by["small", "temporal_flickering"]["value"] is not None
    assert "needs 2 frames" in by["one", "temporal_flickering"]["error"]
    assert by["black", "temporal_flickering"]["value"] == 1.0
    assert by["black", "dynamic_degree"]["value"] == 0.0
    assert "its frame rate varies" in by["varying", "dynamic_degree"]["note"]
    assert by["cut", None]["error"].startswith("BadVideoError")


def test_missing_weights_are_refused_before_any_work(
    folder: Path, in_process: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIGA_WEIGHTS", str(tmp_path / "nothing"))
    monkeypatch.setattr("miga.evaluation.weights._cached", lambda hub, files: None)
    before = sorted(folder.rglob("*"))
    status, _, message = run(capsys, "evaluate", folder, "--metrics", "vbench")
    assert status == 2
    for name in ("dino", "clip-b32", "amt", "raft", "clip-l14", "aesthetic-head", "musiq"):
        assert f"{name}: " in message
    assert "hf download lalala125/AMT" in message
    assert "nothing is fetched on its own" in message
    assert sorted(folder.rglob("*")) == before
    assert not in_process


def test_weights_of_another_network_are_refused_before_any_work(
    folder: Path, in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    options = ["--metrics", "dynamic_degree", "--weights", f"raft={tmp_path / 'other.safetensors'}"]
    status, _, message = run(capsys, "evaluate", folder, *options)
    assert status == 2
    assert "holds the weights of another network" in message
    assert not (folder / "evaluation").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrics", "beauty"], "'beauty' is no metric"),
        (["--metrics", "background_consistency_long"], "needs DreamSim's ensemble"),
        (["--weights", "raft"], "is not NAME=PATH"),
        (["--weights", "beauty=x"], "is no network"),
        (["--limit", "0"], "--limit 0 is less than 1"),
        (["--semantic", "nowhere.json"], "there is no file nowhere.json"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str) -> None:
    status, _, message = run(capsys, "evaluate", folder, *options)
    assert status == 2
    assert said in message
    assert "Traceback" not in message
    assert not (folder / "evaluation").exists()


def test_it_lists_metrics_and_their_weights(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "evaluate", "--list")
    assert status == 0
    assert "motion_smoothness" in out
    assert "CC-BY-NC-4.0: not for commercial use" in out
    assert run(capsys, "evaluate")[0] == 2


@pytest.mark.s3
@pytest.mark.slow
def test_a_run_in_a_bucket(in_process: list, capsys: pytest.CaptureFixture[str], tmp_path: Path, s3_root: str) -> None:
    address = f"{s3_root}/run"
    storage = open_storage(address)
    make_run(storage, tmp_path, 4)
    status, out, error = run(capsys, "evaluate", address, "--json")
    assert status == 0, error
    assert json.loads(out)["page"] is None
    table = pq.read_table(io.BytesIO(storage.read_bytes("evaluation/results.parquet")))
    assert sorted(set(table["measure"].to_pylist())) == ["sampler_consistency", "temporal_flickering"]
    assert len(list(storage.list("evaluation/features"))) == 4  # rows have videos of four shades
    assert len(in_process) == 4
    status, out, _ = run(capsys, "evaluate", address, "--json")
    assert (status, json.loads(out)["evaluated_now"]) == (0, 0)


@pytest.mark.ray
@pytest.mark.slow
def test_on_a_local_ray(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = run(
        capsys, "evaluate", folder, "--metrics", "temporal_flickering", "--json", "--num-actors", "2"
    )
    assert status == 3, error
    summary = json.loads(out)
    assert (summary["videos"], summary["failed"], summary["evaluated_now"]) == (3, 1, 3)
    assert {line["path"] for line in _lines(folder)} == {"a dog-0.mp4", "a dog-1.mp4", "broken.mp4"}
