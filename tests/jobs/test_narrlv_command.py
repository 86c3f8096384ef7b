"""`miga prompts narrlv` and `miga narrlv`: a run asked about by a judge that fails in places."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.narrlv import score_video
from pipeline.evaluation.narrlv_run import MOST_FAILED_IN_A_ROW
from tests.cli import run
from tests.pipeline.evaluation.conftest import make_run
from tests.pipeline.evaluation.faulty_judge import Endpoint, endpoint, question_of

__all__ = ["make_run"]

PROMPTS = [["A beach by day.", "A beach by night."], ["A cat sits.", "A cat runs."], ["A door.", "An open door."]]


def suite(path: Path) -> Path:
    entries = [
        {
            "prompt_gen": " Then ".join(texts),
            "prompt_gen_list_extract": texts,
            "auto_gen_question": {
                "Scene Type": [f"Scene {number}?"],
                "Main Target Category": None,
                "Scene Attribute Evolution_0": [f"First {number}?", f"Second {number}?"],
                "Scene Attribute Evolution_1": [f"Change {number}?"],
                "Scene Anomaly Detection": [f"Odd {number}?"],
            },
        }
        for number, texts in enumerate(PROMPTS)
    ]
    path.write_text(json.dumps({"4": entries}))
    return path


@pytest.fixture
def files(tmp_path: Path, make_run: Any) -> tuple[str, Path, Path]:
    """OUT, NarrLV's file, and where answers go."""
    out = make_run(tmp_path / "out", 40, [*PROMPTS, "another prompt"], num_frames=21)
    return out, suite(tmp_path / "prompt_suit_v4_scene_attribute_tna_2.json"), tmp_path / "answers.jsonl"


def ask(capsys: pytest.CaptureFixture[str], files: Any, server: Endpoint | str, *more: object) -> tuple[int, str, str]:
    out, suite_file, answers = files
    url = server if isinstance(server, str) else server.url
    arguments = ["--judge", url, "--judge-model", "vlm", "--answers", answers, *more]
    return run(capsys, "narrlv", out, suite_file, *arguments)


def test_prompts_of_narrlv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = suite(tmp_path / "prompt_suit_v4_scene_attribute_tna_2.json"), tmp_path / "ours.jsonl"
    status, text, _ = run(capsys, "prompts", "narrlv", file, "--out", out, "--json")
    assert (status, json.loads(text)["rows"]) == (0, 3)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == PROMPTS
    assert run(capsys, "prompts", "narrlv", file)[1].splitlines() == out.read_text().splitlines()
    status, _, message = run(capsys, "prompts", "narrlv", file, file)
    assert status == 2
    assert "same entries" in message


def test_a_whole_run(files: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every sample is asked once; the judge sees ten frames or the first alone; scores are those of its answers."""

    def behave(server: Endpoint, body: dict[str, Any]) -> str:
        question = question_of(body)
        if question.startswith("Odd"):
            return "No, nothing is"
        return "yes" if question != "Second 1?" or body["seed"] < 2 else "no"

    quality = tmp_path / "quality.jsonl"
    quality.write_text("".join(json.dumps({"row": row, "quality": 4.0}) + "\n" for row in range(3)))
    results = tmp_path / "results.json"
    with endpoint(behave) as server:
        status, text, _ = ask(capsys, files, server, "--quality", quality, "--results", results, "--json")
        assert status == 0
        assert len(server.requests) == 3 * 5 * 5
        for body in server.requests:
            parts = body["messages"][1]["content"][:-1]
            assert len(parts) == (1 if question_of(body).startswith("Scene") else 10)
    values = json.loads(text)
    assert values == json.loads(results.read_text())
    one = score_video(
        {
            "Scene Type": [1.0],
            "Scene Attribute Evolution_0": [1.0, 0.4],
            "Scene Attribute Evolution_1": [1.0],
            "Scene Anomaly Detection": [0.0],
        },
        4.0,
    )
    assert [video["coverage"] for video in values["videos"]] == pytest.approx([0.9, one.coverage, 0.9])
    assert values["suites"]["scene_attribute, 2 atoms"]["fidelity"] == {"mean": pytest.approx(0.9), "videos": 3}
    frames = [base_jpeg(part) for part in server.requests[-1]["messages"][1]["content"][:-1]]
    shades = [round(float(frame.mean())) for frame in frames]
    assert shades == pytest.approx([40 + 2 * n for n in (0, 2, 4, 6, 8, 11, 13, 15, 17, 20)][: len(shades)], abs=2)


def base_jpeg(part: dict[str, Any]) -> np.ndarray:
    import base64

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))))


def test_faults_are_reported_by_row_and_count_nowhere(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 0: nonsense. Row 1: one question is answered 500, one times out now and then. Row 2: all well."""
    lock, calls = threading.Lock(), {"n": 0}

    def behave(server: Endpoint, body: dict[str, Any]) -> Any:
        question = question_of(body)
        with lock:
            calls["n"] += 1
        if question == "First 0?":
            return "As an AI I cannot say"
        if question == "First 1?":
            return (500, {})
        if question == "Change 1?":
            return "half" if body["seed"] < 3 else "yes"
        return "no" if question.startswith("Odd") else "Yes!"

    with endpoint(behave) as server:
        status, text, _ = ask(capsys, files, server, "--tries", 1, "--json")
    assert status == 0
    videos = {video["row"]: video for video in json.loads(text)["videos"]}
    assert (videos[0]["void_questions"], videos[0]["unusable_answers"], videos[0]["missing_answers"]) == (1, 5, 0)
    assert (videos[1]["void_questions"], videos[1]["unusable_answers"], videos[1]["missing_answers"]) == (2, 0, 8)
    assert (videos[2]["void_questions"], videos[2]["faults"]) == (0, {})
    assert set(videos[1]["faults"]) == {
        "Scene Attribute Evolution_0: First 1?",
        "Scene Attribute Evolution_1: Change 1?",
    }
    assert "HTTP 500" in videos[1]["faults"]["Scene Attribute Evolution_0: First 1?"]
    for row in videos:  # of the one atom that was answered, and of the transition
        assert videos[row]["coverage_without_quality"] == 1.0
    assert videos[1]["coherence_without_quality"] is None
    assert videos[0]["fidelity"] is None  # no quality was named
    assert calls["n"] == 3 * 5 * 5
    with endpoint(behave_well(asked := [])) as again:  # the next run asks for what is missing alone
        answers = files[2]
        answers.write_text(answers.read_text().replace(server_name(answers), f"vlm at {again.url}"))
        text = ask(capsys, files, again, "--json")[1]
    assert len(asked) == 8
    assert set(asked) == {"First 1?", "Change 1?"}
    videos = {video["row"]: video for video in json.loads(text)["videos"]}
    assert videos[1]["missing_answers"] == 0
    assert videos[1]["coherence_without_quality"] == 1.0


def behave_well(asked: list[str]) -> Any:
    def behave(server: Endpoint, body: dict[str, Any]) -> str:
        asked.append(question_of(body))
        return "Yes"

    return behave


def server_name(answers: Path) -> str:
    name: str = json.loads(answers.read_text().splitlines()[0])["judge"]
    return name


@pytest.mark.slow
def test_a_judge_that_is_out_of_order_stops_it(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda server, body: "garbage") as server:
        status, _, message = ask(capsys, files, server, "--tries", 1, "--at-once", 1)
        assert status == 1
        assert f"{MOST_FAILED_IN_A_ROW} calls in a row" in message
        assert len(server.requests) <= MOST_FAILED_IN_A_ROW + 2
    with endpoint(lambda server, body: 401) as server:
        answers = files[2]
        answers.unlink()
        status, _, message = ask(capsys, files, server, "--at-once", 1)
        assert status == 1
        assert "401" in message
        assert len(server.requests) <= 3


@pytest.mark.slow
def test_it_goes_on_after_a_kill(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever of the file is there is not asked again, its torn last line is."""
    asked: list[str] = []
    with endpoint(behave_well(asked)) as server:
        ask(capsys, files, server, "--json")
        answers = files[2]
        lines = answers.read_bytes().splitlines(keepends=True)
        assert len(lines) == 1 + 75
        answers.write_bytes(b"".join(lines[:31]) + lines[31][:-9])
        asked.clear()
        _, _, said = ask(capsys, files, server)
    assert len(asked) == 45
    assert "its write was cut off" in said
    assert "45 calls" in said
    assert "30 answers are there already" in said


def test_the_cost_is_shown_and_nothing_asked(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda server, body: "Yes") as server:
        status, text, _ = ask(capsys, files, server, "--dry-run", "--json")
        assert server.requests == []
    assert status == 0
    values = json.loads(text)
    # 15 questions of 5 samples; of 3 of them the first frame alone; 64 x 64 is 3 x 3 of Qwen's patches
    assert (values["num_videos"], values["num_questions"], values["num_calls"]) == (3, 15, 75)
    assert values["num_frames"] == 5 * (3 * 1 + 12 * 10)
    assert values["num_tokens"] >= 9 * values["num_frames"]
    assert not files[2].exists()
    text = ask(capsys, files, "http://127.0.0.1:9/v1", "--dry-run", "--price", "2.5", "--per-minute", "30")[1]
    assert "75 calls about 15 questions on 3 videos" in text
    assert "at 2.5 for a million; 3 min or more" in text


@pytest.mark.slow
def test_report_asks_nothing(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out, suite_file, answers = files
    assert run(capsys, "narrlv", out, suite_file, "--report", "--answers", answers)[0] == 2
    with endpoint(lambda server, body: "Yes") as server:
        first = json.loads(ask(capsys, files, server, "--json")[1])
    status, text, said = run(capsys, "narrlv", out, suite_file, "--report", "--answers", answers, "--json")
    assert (status, json.loads(text)) == (0, first)
    text, said = run(capsys, "narrlv", out, suite_file, "--report", "--answers", answers)[1:]
    assert "fidelity without quality" in text
    assert "row 3 (3) is of no prompt in these files" in said


@pytest.mark.slow
def test_other_answers_are_not_mixed(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with endpoint(lambda server, body: "Yes") as server:
        ask(capsys, files, server)
        for more in (["--judge-model", "other"], ["--samples", 3]):
            status, _, message = ask(capsys, files, server, *more)
            assert status == 2
            assert "holds other answers" in message


def test_a_video_that_cannot_be_read_is_a_fault_of_its_row(files: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = files[0]
    videos = sorted(Path(out).glob("video/*/*.mp4"))
    videos[0].write_bytes(videos[0].read_bytes()[:300])
    videos[1].unlink()
    with endpoint(lambda server, body: "Yes") as server:
        text = ask(capsys, files, server, "--json")[1]
        assert len(server.requests) == 25
    videos_of = {video["row"]: video for video in json.loads(text)["videos"]}
    assert [videos_of[row]["missing_answers"] for row in range(3)] == [25, 25, 0]
    assert "is not there" in next(iter(videos_of[1]["faults"].values()))
    assert videos_of[0]["coverage_without_quality"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--judge names who answers"), (["--judge", "http://localhost/v1"], "--judge-model"),
        (["--judge", "http://localhost/v1", "--judge-model", "m", "--samples", "0"], "--samples 0"),
        (["--judge", "x", "--quality", "none.jsonl"], "there is no such file"),
        (["--judge", "x", "--quality", "no.such:function"], "cannot be imported"),
        (["--judge", "http://u:p@localhost/v1", "--judge-model", "m"], "holds a password"),
    ],
)  # fmt: skip
def test_refusals(files: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    out, suite_file, answers = files
    status, _, message = run(capsys, "narrlv", out, suite_file, "--answers", answers, *arguments)
    assert status == 2
    assert said in message
    assert not answers.exists()


def test_a_run_of_other_prompts(files: Any, tmp_path: Path, make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_run(tmp_path / "other", 40, ["a cat"])
    status, _, message = run(capsys, "narrlv", out, files[1], "--judge", "x")
    assert status == 2
    assert "no video of a prompt in these files" in message


@pytest.mark.slow
def test_quality_by_a_function(files: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "my_quality.py").write_text("def by_shade(frame):\n    return 1 + frame.mean() / 64\n")
    monkeypatch.syspath_prepend(tmp_path)
    with endpoint(lambda server, body: "Yes") as server:
        values = json.loads(ask(capsys, files, server, "--quality", "my_quality:by_shade", "--json")[1])
    assert values["videos"][0]["quality"] == pytest.approx(1 + 40 / 64, abs=0.03)
