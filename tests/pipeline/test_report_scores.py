"""The scores of an evaluation on the page: in the cards, and the worst videos first."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.page_scores import RESULTS_OF_A_RUN, read_scores
from pipeline.evaluation.records import EvaluatedRow
from pipeline.evaluation.results import write_results
from pipeline.evaluation.scores import Result
from pipeline.evaluation.videos import Video
from pipeline.report import pieces
from pipeline.report.page import render_report, write_report
from pipeline.storage.local import LocalStorage
from tests.pace import paced

VALUES = [0.9, None, 0.3, 0.6]


def _rows(values: list[float | None] = VALUES) -> list[dict[str, Any]]:
    rows = []
    for index, value in enumerate(values):
        scores = {} if value is None else {"scores": {"sprites.all_right": value, "x": 1.0}, "score": value}
        rows.append({"row": index, "id": f"id-{index}", "status": "ok", "prompts": ["a red circle"], **scores})
    return rows


RUN = {"model": "sprites", "scored_by": "sprites.all_right"}


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_a_page_has_scores_where_the_run_was_evaluated() -> None:
    page = render_report(_rows(), RUN, out_uri="/runs/one")
    data = _data(page)
    assert data["scored"] == "sprites.all_right"
    assert [card["score"] for card in data["cards"]] == VALUES
    assert data["cards"][0]["scores"] == {"sprites.all_right": 0.9, "x": 1.0}
    assert "Score, worst first (sprites.all_right)" in page


def test_a_page_without_scores_is_as_ever() -> None:
    page = render_report(_rows([None, None]), {"model": "sprites"}, out_uri="/runs/one")
    assert _data(page)["scored"] is None
    assert "worst first" not in page.partition("<script")[0]


def test_the_worst_of_many_rows_are_the_worst_by_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MOST_EMBEDDED", 10)
    monkeypatch.setattr(pieces, "MOST_WORST", 3)
    monkeypatch.setattr(pieces, "MOST_SAMPLED", 1)
    values: list[float | None] = [1 - abs(index - 33) / 100 for index in range(80)]
    page = write_report(_rows(values), RUN, tmp_path).read_text()
    data = _data(page)
    assert {0, 78, 79} <= {card["row"] for card in data["cards"]}
    assert "the 3 worst videos" in page


def test_scores_of_a_run_are_of_the_videos_that_are_there(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert not read_scores(storage).by
    results = {"temporal_flickering": Result(value=0.5, made_of="v1"), "sprites": Result.failed("too large", "v1")}
    evaluated = EvaluatedRow(video=Video(row=3, id="x", path="x.mp4"), sha256="ab", results=results)
    (tmp_path / "evaluation").mkdir()
    write_results([evaluated], tmp_path / RESULTS_OF_A_RUN)
    scores = read_scores(storage)
    assert scores.by == "temporal_flickering"
    assert scores.of(3, "ab") == {"scores": {"temporal_flickering": 0.5}, "score": 0.5}
    assert scores.of(3, "cd") == {}  # it was made anew since
    assert scores.of(4, "ab") == {}
    storage.write_bytes(RESULTS_OF_A_RUN, b"no table")
    assert not read_scores(storage).by


@pytest.mark.slow
@pytest.mark.browser
def test_the_worst_come_first(browser: Any, tmp_path: Path) -> None:
    path = write_report(_rows(), RUN, tmp_path)
    context = browser.new_context()
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector(".card")
    cards = page.locator(".card")
    assert [card.get_attribute("data-row") for card in cards.all()] == ["2", "3", "0", "1"]
    assert "all right 0.300" in cards.first.inner_text().lower()
    page.select_option("select[name=sort]", "row")
    assert [card.get_attribute("data-row") for card in cards.all()] == ["0", "1", "2", "3"]
    context.close()
    assert not wrong
