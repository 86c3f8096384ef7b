"""Rows of results, their table, VBench's JSON, and the videos that are found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from miga.errors import InputError, OutputError
from miga.evaluation.measures import VideoForm
from miga.outside_data import OutsideDataError
from pipeline.evaluation.records import EvaluatedRow, merged, read_row, row_path
from pipeline.evaluation.results import Totals, dumped, read_vbench_json, vbench_json, write_results
from pipeline.evaluation.scores import Result
from pipeline.evaluation.videos import Video, find_videos
from pipeline.storage.local import LocalStorage
from tests.miga.evaluation.recorded import figures


def row(number: int = 0, **values: float) -> EvaluatedRow:
    """A video with these values; its clips have half and all of them."""
    results = {
        name: Result(value=value, made_of="v1", long=0.75 * value, clips=(0.5 * value, value), start=0.25, end=0.5)
        for name, value in values.items()
    }
    return EvaluatedRow(
        video=Video(row=number, id=f"video {number}", path=f"{number}.mp4", prompts=("a", "b"), seed=2**63),
        sha256="ab" * 32,
        form=VideoForm(10 * (number + 1) + 1, 16.0, 48, 64),
        results=results,
    )


def test_a_row_comes_back_from_its_file() -> None:
    whole = row(3, temporal_flickering=0.5)
    odd = Result(value=None, made_of="v1", clips=(None, 0.1), curve={0: 0.5, 20: 0.25}, error="too \u2028 short")
    whole = replace(whole, results={**whole.results, "imaging_quality": odd}, note="it varies", seconds=1.5, attempt=2)
    assert EvaluatedRow.from_json(whole.to_json()) == whole
    failed = EvaluatedRow(video=whole.video, error_type="BadVideoError", error="cut off")
    assert EvaluatedRow.from_json(failed.to_json()) == failed


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", row().to_json()[:-9], row().to_json().replace(b'"format": 1', b'"format": 2')]
)
def test_broken_rows_are_none(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(OutsideDataError):
        EvaluatedRow.from_json(content)
    storage = LocalStorage(tmp_path)
    storage.write_bytes(row_path(0), content)
    assert read_row(storage, 0) is None


def test_results_of_the_same_video_are_kept_together() -> None:
    earlier, now = row(0, temporal_flickering=0.5, imaging_quality=50.0), row(0, imaging_quality=60.0)
    both = merged(earlier, now)
    assert (both.results["temporal_flickering"].value, both.results["imaging_quality"].value) == (0.5, 60.0)
    assert merged(replace(earlier, sha256="cd" * 32), now) == now
    lost = EvaluatedRow(video=now.video, sha256=now.sha256, error_type="WorkerLostError", error="no memory")
    assert merged(earlier, lost) == replace(lost, results=earlier.results, form=earlier.form)
    assert merged(earlier, replace(lost, error_type="BadVideoError")).results == {}
    assert merged(merged(earlier, lost), now).error == ""
    assert merged(None, now) == now


def test_the_table_has_a_line_a_video_and_measure(tmp_path: Path) -> None:
    failed = EvaluatedRow(video=Video(row=2, id="x", path="x.mp4"), error_type="BadVideoError", error="cut off")
    rows = [row(0, temporal_flickering=0.5, motion_smoothness=0.75), row(1, temporal_flickering=0.25), failed]
    write_results(rows, tmp_path / "r.parquet")
    lines = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [(line["row"], line["measure"]) for line in lines] == [
        (0, "temporal_flickering"),
        (0, "motion_smoothness"),
        (1, "temporal_flickering"),
        (2, None),
    ]
    first = lines[0]
    assert first["clips"] == [0.25, 0.5]
    assert (first["end_less_start"], first["start_end_contrast"]) == (0.25, 0.25)
    assert first["seed"] == 2**63
    assert [line["non_commercial"] for line in lines] == [False, True, False, None]
    assert lines[3]["error"] == "BadVideoError: cut off"


def test_figures_of_a_data_set() -> None:
    totals = Totals()
    for one in (row(0, subject_consistency=0.9, imaging_quality=40.0), row(1, subject_consistency=0.6)):
        totals.add(one)
    totals.add(EvaluatedRow(video=Video(row=2, id="x", path="x.mp4"), error="cut off"))
    found = {figure.measure: figure for figure in totals.figures()}
    subject = found["subject_consistency"]
    assert subject.mean == pytest.approx(0.75)
    assert subject.vbench == pytest.approx((10 * 0.9 + 20 * 0.6) / 30)  # frames weigh
    assert subject.over_clips == pytest.approx(np.mean([0.45, 0.9, 0.3, 0.6]))
    assert subject.change == pytest.approx(0.25)
    assert found["imaging_quality"].vbench == pytest.approx(0.4)
    assert found["imaging_quality"].mean == pytest.approx(40.0)
    assert [failure[0] for failure in totals.failed] == [2]


def test_five_of_a_prompt_count_behind_the_static_filter() -> None:
    """Clips count by themselves, also those of a video that moves as a whole."""
    totals, of = Totals(), "v1"
    for number, value in enumerate([0.9, None, 0.8, 0.7]):
        video = Video(row=number, id=str(number), path=f"{number}.mp4", prompts=("a vase",))
        clips = (0.5, None, 1.0)
        result = Result(value=value, made_of=of, clips=clips, error="" if value else "moves")
        totals.add(EvaluatedRow(video=video, results={"temporal_flickering_static": result}))
    (figure,) = totals.figures()
    assert figure.over_clips == pytest.approx(np.mean([0.5, 1.0, 0.5, 1.0, 0.5]))
    assert (figure.count, figure.missing) == (3, 1)
    assert figure.vbench == pytest.approx(0.8)


def test_overall_score_stands_beside_dynamic_degree() -> None:
    totals = Totals()
    parts = ("subject_consistency", "background_consistency", "motion_smoothness", "temporal_flickering")
    totals.add(row(0, **dict.fromkeys(parts, 0.8)))
    summary = totals.summary()
    assert summary["overall_score"] == pytest.approx(0.8)
    assert summary["dynamic_degree"] is None
    assert summary["quality"] is None
    totals.add(row(1, **dict.fromkeys(parts, 0.8), dynamic_degree=1.0, aesthetic_quality=0.5, imaging_quality=50.0))
    assert totals.summary()["dynamic_degree"] == 1.0
    assert totals.summary()["quality"] is not None


def test_totals_with_the_semantic_dimensions_of_a_file(tmp_path: Path) -> None:
    """VBench's own totals, its quality dimensions as those of one video."""
    recorded = figures("formulas")["totals"]
    raw = {name.replace(" ", "_"): value for name, value in recorded["raw"].items()}
    seven = list(raw)[:7]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({name: [value, []] for name, value in raw.items() if name not in seven}))
    totals = Totals()
    values = {name: raw[name] * (100 if name == "imaging_quality" else 1) for name in seven}
    totals.add(row(0, **values))
    summary = totals.summary(read_vbench_json(file))
    assert summary["quality"] == pytest.approx(recorded["quality"])
    assert summary["semantic"] == pytest.approx(recorded["semantic"])
    assert summary["total"] == pytest.approx(recorded["total"])
    assert summary["overall_score"] == pytest.approx(recorded["os_miga"])


def test_vbench_json_comes_back(tmp_path: Path) -> None:
    rows = [row(0, dynamic_degree=1.0, imaging_quality=40.0, sprites=0.5), row(1, dynamic_degree=0.0)]
    values = vbench_json(rows)
    assert values["dynamic_degree"] == [
        0.5,
        [{"video_path": "0.mp4", "video_results": True}, {"video_path": "1.mp4", "video_results": False}],
    ]
    assert values["imaging_quality"] == [0.4, [{"video_path": "0.mp4", "video_results": 40.0}]]
    assert "sprites" not in values
    (tmp_path / "results.json").write_bytes(dumped(values))
    assert read_vbench_json(tmp_path / "results.json") == {"dynamic_degree": 0.5, "imaging_quality": 0.4}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scene": [true, []]}', '{"scene": []}', '{"other": [0.5]}'])
def test_what_is_no_result_file_of_vbench(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match="no result file of VBench"):
        read_vbench_json(tmp_path / "results.json")


def _folder(tmp_path: Path, *names: str) -> LocalStorage:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    return LocalStorage(folder)


def test_videos_of_a_folder_by_the_ids_of_rows(tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "two", "prompt": "second", "seed": 7}\n{"id": "one", "prompt": ["a", "b"]}\n')
    found = find_videos(_folder(tmp_path, "one.mp4", "two.MP4", "notes.txt"), str(prompts)).videos
    assert [(video.path, video.prompts) for video in found] == [("one.mp4", ("a", "b")), ("two.MP4", ("second",))]
    assert [video.row for video in found] == [0, 1]
    assert found[1].seed == 7


def test_videos_of_a_folder_by_prompts_as_vbench_names_them(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a dog\na cat, running\n")
    found = find_videos(_folder(tmp_path, "a cat, running-3.mp4", "a dog-0.mp4", "a dog-1.mp4"), str(prompts)).videos
    assert [video.prompts for video in found] == [("a cat, running",), ("a dog",), ("a dog",)]


def test_videos_of_a_folder_in_the_order_of_rows(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a dog\na cat\n")
    found = find_videos(_folder(tmp_path, "x1.mp4", "x2.mp4"), str(prompts)).videos
    assert [video.prompts for video in found] == [("a dog",), ("a cat",)]
    assert [video.prompts for video in find_videos(LocalStorage(tmp_path / "videos")).videos] == [(), ()]


def test_a_prompt_file_that_is_of_other_videos(tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("a dog\n")
    with pytest.raises(InputError, match=r"does not say what x1\.mp4"):
        find_videos(_folder(tmp_path, "x1.mp4", "a dog.mp4"), str(prompts))


def test_a_folder_without_videos(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds neither a run nor any \.mp4"):
        find_videos(LocalStorage(tmp_path))
