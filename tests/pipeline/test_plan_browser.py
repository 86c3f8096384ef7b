"""The page of `miga plan` in a real Chromium: what is drawn is seen, on wide screens and on narrow ones."""

from pathlib import Path
from typing import Any

import pytest

from jobs.profiles.drawing import draw

pytestmark = pytest.mark.browser

WIDTHS = (1800, 700)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("a plan #1") / "plan.html"
    draw("sprites", ["paper", "fifo"], 133, str(file))
    return file


@pytest.fixture(params=WIDTHS)
def page(browser: Any, page_file: Path, request: pytest.FixtureRequest) -> Any:
    page = browser.new_page(viewport={"width": request.param, "height": 900})
    page.messages = []
    page.on("console", lambda message: page.messages.append(message.text))
    page.on("requestfailed", lambda failed: page.messages.append(failed.url))
    page.on("request", lambda asked: page.messages.append(asked.url) if asked.url != page_file.as_uri() else None)
    page.goto(page_file.as_uri())
    yield page
    page.close()


def boxes(page: Any, selector: str) -> list[dict[str, float]]:
    found = page.eval_on_selector_all(selector, "all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert found, selector
    return list(found)


def test_it_asks_for_nothing_and_says_nothing(page: Any) -> None:
    assert page.messages == []


def test_the_two_plans_stand_side_by_side(page: Any) -> None:
    (left, right) = boxes(page, "figure svg")
    assert left["right"] <= right["left"]
    assert abs(left["top"] - right["top"]) < 2 * 20, "their rows can be compared"
    assert min(left["width"], right["width"]) >= 600, "it is read without a glass; a narrow screen scrolls"


def test_only_the_plans_scroll_sideways(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.sampled(2)
def test_everything_drawn_lies_in_its_picture(page: Any) -> None:
    for number, svg in enumerate(boxes(page, "figure svg")):
        for kind in ("rect", "path", "text"):
            for box in boxes(page, f"figure:nth-child({number + 1}) svg {kind}"):
                assert svg["left"] - 1 <= box["left"] and box["right"] <= svg["right"] + 1, (kind, box)  # noqa: PT018
                assert svg["top"] - 1 <= box["top"] and box["bottom"] <= svg["bottom"] + 1, (kind, box)  # noqa: PT018


@pytest.mark.slow
def test_no_words_cover_others(page: Any) -> None:
    for number in (1, 2):
        words = sorted(boxes(page, f"figure:nth-child({number}) svg text"), key=lambda box: box["top"])
        for index, one in enumerate(words):
            for other in words[index + 1 :]:
                if other["top"] >= one["bottom"] - 1:
                    break
                apart = other["left"] >= one["right"] - 1 or one["left"] >= other["right"] - 1
                assert apart or one["bottom"] - other["top"] < 0.35 * one["height"], (one, other)
