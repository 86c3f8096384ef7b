"""What the page of a run says of its quality gate: which try was kept and why, and what came of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import QualityConfig
from pipeline.records.quality import kept_row
from pipeline.report import pieces
from pipeline.report.gate import gate_of
from pipeline.report.page import render_report, write_report
from tests.pipeline.test_quality import GATE, tried
from tests.pipeline.test_report import page_data
from tests.pipeline.test_report_views import opened


def rows() -> list[dict[str, Any]]:
    """Good at once, good after one that was not, never good; and one of a run without a gate."""
    kept = [
        kept_row([tried(0, final_consistency=0.9)], GATE),
        kept_row([tried(0, final_consistency=0.5), tried(1, final_consistency=0.95)], GATE),
        kept_row([tried(number, final_consistency=score) for number, score in enumerate((0.5, 0.7, 0.6))], GATE),
        tried(0).row,
    ]
    return [{**vars(row), "row": at, "id": f"id-{at}", "uri": f"s3://bucket/{at}.mp4"} for at, row in enumerate(kept)]


def test_a_page_says_which_try_was_kept_and_why() -> None:
    page = render_report(rows(), {"model": "sprites"}, out_uri="/runs/one")
    data = page_data(page)
    good, second, marked, without = (card["gate"] for card in data["cards"])
    assert data["gated"] is True
    assert (good["good"], good["kept"], len(good["tries"])) == (True, 0, 1)
    assert (second["good"], second["kept"]) == (True, 1)
    assert second["why"].startswith("it is within all limits after 1 that were not")
    words = [each["words"] for each in second["tries"]]
    assert words == ["final_consistency 0.5 is less than 0.8", "within all limits"]
    assert [each["kept"] for each in marked["tries"]] == [False, True, False]
    assert marked["good"] is False
    assert len({each["seed"] for each in marked["tries"]}) == 3
    assert without is None
    assert "2</b> <span>of 3</span><small>1 marked; 6 tries in all" in page
    assert "Quality gate, not good enough first" in page


def test_a_page_of_a_run_without_a_gate_says_nothing_of_it() -> None:
    page = render_report(rows()[3:], {"model": "sprites"}, out_uri="/runs/one")
    assert page_data(page)["gated"] is False
    assert "Quality gate" not in page.partition("<script")[0]
    assert "Good enough" not in page.partition("<script")[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"good": 1, "tries": []}', '{"good": true, "tries": 3}', '{"good": true, "tries": [7]}']
)
def test_a_column_that_cannot_be_read_harms_no_page(text: str) -> None:
    row = rows()[0] | {"quality": text}
    gate = gate_of(row)
    assert gate is None or gate["tries"] == []
    assert page_data(render_report([row], {}, out_uri="/runs/one"))["cards"]


@pytest.mark.slow
@pytest.mark.browser
def test_marked_rows_first_in_a_browser(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a page that holds few of its rows, which sorts by the index beside it."""
    for few in (False, True):
        folder = tmp_path / str(few)
        folder.mkdir()
        if few:
            monkeypatch.setattr(pieces, "MOST_EMBEDDED", 2)
        write_report(rows(), {"model": "sprites"}, folder)
        with opened(browser, f"{(folder / 'report.html').as_uri()}#sort=gate") as page:
            page.wait_for_selector("article[data-row='2']")
            order = page.eval_on_selector_all("article", "all => all.map(one => Number(one.dataset.row))")
            assert order == [2, 0, 1, 3]  # then those that are good, then that of no gate
            card = page.locator("article[data-row='2']")
            assert card.locator(".badge.bad").inner_text() == "not good enough"
            assert "Try 2 kept: the best of 3 tries" in card.locator(".gate").inner_text()
            assert card.locator(".gate li").count() == 3
            assert page.locator("article[data-row='1'] .badge").inner_text() == "try 2 of 2"
            assert page.locator("article[data-row='3'] .gate").count() == 0


def test_a_try_that_failed_says_its_error() -> None:
    config = QualityConfig(least={"final_consistency": 0.8}, retries=1)
    failed = tried(1)
    values = json.loads(kept_row([tried(0, final_consistency=0.5)], config).quality or "")
    values["tries"].append({"number": 1, "seed": failed.seed, "error": "NonFiniteError: NaN in latent 3"})
    gate = gate_of({"quality": json.dumps(values)})
    assert gate is not None
    assert gate["tries"][1]["words"] == "NonFiniteError: NaN in latent 3"
    assert gate["tries"][1]["kept"] is False
