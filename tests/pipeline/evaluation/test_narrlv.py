"""NarrLV's prompts, answers and scores, against figures of its own program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from miga.errors import InputError
from pipeline.evaluation.narrlv import (
    NarrlvScores,
    frames_seen,
    mean_scores,
    num_unusable,
    prompt_lines,
    read_answer,
    read_prompts,
    score_video,
    share_of_yes,
)
from pipeline.prompts.read import read_prompts as read_our_prompts

RECORDED = json.loads((Path(__file__).parent / "narrlv.json").read_text())
PARTS = ("fidelity", "coverage", "coherence")


def shares_of(answers: dict[str, list[list[int]]]) -> dict[str, list[float | None]]:
    words = {1: "Yes", 0: "No"}
    return {
        category: [share_of_yes([words[answer] for answer in question]) for question in questions]
        for category, questions in answers.items()
    }


@pytest.mark.parametrize("suite", RECORDED["sets"], ids=lambda suite: suite["file"][16:-5])
def test_scores_as_recorded(suite: dict[str, Any]) -> None:
    found = []
    for video in suite["videos"]:
        scores = score_video(shares_of(video["answers"]), video["first_frame_quality"])
        for part in PARTS:
            assert getattr(scores, part) == pytest.approx(video[part], abs=1e-12), video["video"]
        found.append(scores)
    means, counts = mean_scores(found)
    assert [getattr(means, part) for part in PARTS] == pytest.approx(suite["set_means"], abs=1e-12)
    assert set(counts.values()) == {len(suite["videos"])}


def test_without_the_quality_of_the_first_frame() -> None:
    """The parts that need none, under names of their own: with it, each is one more term of a mean."""
    for video in RECORDED["sets"][0]["videos"]:
        scores = score_video(shares_of(video["answers"]))
        assert (scores.fidelity, scores.coverage, scores.coherence) == (None, None, None)
        q = 0.2 * video["first_frame_quality"]
        assert scores.fidelity_without_quality == pytest.approx(2 * video["fidelity"] - q, abs=1e-12)
        assert scores.coverage_without_quality == pytest.approx(2 * video["coverage"] - q, abs=1e-12)
        assert scores.coherence_without_quality == pytest.approx((3 * video["coherence"] - q) / 2, abs=1e-12)


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        (["Yes"] * 5, 1.0), (["No"] * 5, 0.0), (["yes", "no", "Yes.", "No.", "maybe"], 0.5),
        (["Yes, nothing changes"] * 5, 1.0), (["yes and no"] * 5, 1.0), (["**No**, it does not"] * 5, 0.0),
        (["Not sure", "yes", "yes", "yes", "no"], 0.75), (["I cannot tell", "Yes", "Yes", "Yes", "Yes"], 1.0),
        (["unknown", "y", "n", "Yes", "Yes"], None), ([None, None, "Yes", "No", "Yes"], 2 / 3),
        ([None, None, None, "No", "Yes"], None), (["True"] * 5, None), ([], None),
        (["", " ", "...", "Yes", "No"], None),
    ],
)  # fmt: skip
def test_answers_are_read_by_their_first_word(answers: list[str | None], share: float | None) -> None:
    assert share_of_yes(answers) == share


def test_where_upstream_reads_otherwise_ours_is_by_the_first_word() -> None:
    for recorded in RECORDED["word_reading"]:
        read = [read_answer(answer) for answer in recorded["answers"]]
        assert [bool(r) for r in read if r is not None] == [
            answer.lower().lstrip().startswith("yes")
            for answer in recorded["answers"]
            if answer and answer.lower().strip(".").split()[0].strip(",.") in ("yes", "no")
        ]


def test_unusable_answers_are_counted() -> None:
    assert num_unusable(["Yes", "maybe", None, "", "no"]) == 2


def test_void_questions_count_nowhere() -> None:
    void = {
        "Scene Type": [None],
        "Main Target Category": [1.0, None],
        "Main Target Layout": [0.8],
        "Scene Attribute Evolution_0": [1.0, None, 0.4],
        "Scene Attribute Evolution_1": [0.5, 0.7],
    }
    scores = score_video(void, 5.0)
    assert scores.fidelity == pytest.approx(((1.0 + 0.8) / 2 + 1) / 2)
    assert scores.coverage_without_quality == pytest.approx(0.7)
    assert scores.coherence == pytest.approx((0.6 + 1 + 1) / 3)
    nothing = score_video({name: [None] * len(values) for name, values in void.items()}, 5.0)
    assert nothing == NarrlvScores()
    half = score_video(void | {"Scene Attribute Evolution_1": [None, None]}, 5.0)
    assert half.coherence is None
    assert half.coverage == scores.coverage


def test_what_is_not_there_has_no_layout_and_no_transition() -> None:
    shares: dict[str, list[float | None]] = {
        "Scene Type": [0.2],
        "Main Target Layout": [1.0],
        "Main Target Action Evolution_0": [1.0, 0.25, 1.0, 1.0],
        "Main Target Action Evolution_1": [1.0, 1.0, 1.0],
    }
    scores = score_video(shares)
    assert scores.fidelity_without_quality == pytest.approx((0.2 + 0.0) / 2)
    assert scores.coherence_without_quality == pytest.approx((1 / 3 + 1.0) / 2)
    assert score_video({"Scene Type": [1.0], "Scene Attribute Evolution_0": [1.0]}).coherence_without_quality is None


def test_means_are_over_the_videos_that_have_a_score() -> None:
    means, counts = mean_scores([NarrlvScores(fidelity=0.5, coverage=0.2), NarrlvScores(fidelity=0.7)])
    assert (means.fidelity, means.coverage, means.coherence) == (pytest.approx(0.6), 0.2, None)
    assert (counts["fidelity"], counts["coverage"], counts["coherence"]) == (2, 1, 0)


def test_frames_that_are_seen() -> None:
    assert frames_seen(161) == [0, 17, 35, 53, 71, 88, 106, 124, 142, 160]
    assert frames_seen(5, 10) == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert frames_seen(1) == [0]
    assert frames_seen(9, 1) == [0]


# ---- prompt files ----


def entry(**changes: Any) -> dict[str, Any]:
    questions = {"Scene Type": ["Is it a beach?"], "Scene Attribute Evolution_0": ["Is it day?", "Is it night?"]}
    questions |= {"Scene Attribute Evolution_1": ["Does night fall?"], "Main Target Layout": None}
    return {
        "prompt_gen": "A beach by day, then by night.",
        "prompt_gen_list_extract": ["A beach by day.", "A beach by night."],
        "element_extract": {},
        "auto_gen_question": questions,
    } | changes


def test_prompt_files(tmp_path: Path) -> None:
    file = tmp_path / "prompt_suit_v4_scene_attribute_tna_2.json"
    file.write_text(json.dumps({"12": [entry(), entry()], "8": [entry()]}))
    found = read_prompts(str(file))
    assert [each.id for each in found] == ["scene_attribute-2-12_0", "scene_attribute-2-12_1", "scene_attribute-2-8_0"]
    assert found[0].suite == "scene_attribute, 2 atoms"
    assert [(q.category, q.index, q.sees_first_frame_alone) for q in found[0].questions] == [
        ("Scene Type", 0, True), ("Scene Attribute Evolution_0", 0, False), ("Scene Attribute Evolution_0", 1, False),
        ("Scene Attribute Evolution_1", 0, False),
    ]  # fmt: skip
    ours = tmp_path / "prompts.jsonl"
    ours.write_text("".join(json.dumps(line) + "\n" for line in prompt_lines(found)))
    rows = list(read_our_prompts(str(ours), seed=0, num_frames=45))
    assert [row.prompts for row in rows] == [("A beach by day.", "A beach by night.")] * 3
    assert [row.metadata["narrlv"] for row in rows] == [each.id for each in found]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"[]", b'{"1": {}}', b'{"1": [1]}', b'{"1": [{"prompt_gen": "x"}]}',
        json.dumps({"1": [entry(prompt_gen_list_extract=[])]}).encode(),
        json.dumps({"1": [entry(prompt_gen_list_extract=[" "])]}).encode(),
        json.dumps({"1": [entry(auto_gen_question={"Scene Type": "Is it?"})]}).encode(),
        json.dumps({"1": [entry(auto_gen_question={"Scene Type": [3]})]}).encode(),
    ],
)  # fmt: skip
def test_no_prompt_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "target_attribute_tna_6.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match="no prompt file of NarrLV"):
        read_prompts(str(file))
    with pytest.raises(InputError, match="there is no file"):
        read_prompts(str(tmp_path / "none.json"))
