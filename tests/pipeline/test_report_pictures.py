"""The pictures that rows began from, in the page: shown if they are the very files, named if not."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.report.page import write_report
from pipeline.report.pictures import HEIGHT, RowPictures


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    """A picture beside the prompt file, one that was changed, one that is gone, an address, and none."""
    Image.new("RGB", (640, 480), (200, 30, 90)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "changed.png")
    sha256 = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    names: tuple[dict[str, str], ...] = (
        {"image": "a.png", "last_image": str(tmp_path / "a.png")},
        {"image": "changed.png"},
        {"image": "gone.png"},
        {"image": "s3://bucket/a.png"},
        {},
    )
    return [
        {"row": number, "status": "ok", "prompts": ["a"], **named, "image_sha256": sha256, "last_image_sha256": sha256}
        for number, named in enumerate(names)
    ]


def test_only_the_very_files_are_shown(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    pictures = RowPictures(str(tmp_path / "prompts.jsonl"))
    first, last = pictures.of(rows[0])
    assert (first["is"], first["name"], last["is"]) == ("image", "a.png", "last_image")
    shown = Image.open(io.BytesIO(base64.b64decode(first["source"].partition(",")[2])))
    assert shown.size == (HEIGHT * 4 // 3, HEIGHT)
    red, green, blue = shown.getpixel((5, 5))
    assert (abs(red - 200) < 4, abs(green - 30) < 4, abs(blue - 90) < 4) == (True, True, True)
    assert [pictures.of(row)[0]["source"] for row in rows[1:4]] == ["", "", ""]
    assert pictures.of(rows[4]) == []
    elsewhere = RowPictures("s3://bucket/prompts.jsonl")
    assert [each["source"] != "" for each in elsewhere.of(rows[0])] == [False, True]


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_shows_them(tmp_path: Path, rows: list[dict[str, Any]], browser: Any) -> None:
    path = write_report(rows, {}, tmp_path / "page", pictures=RowPictures(str(tmp_path / "prompts.jsonl")))
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    began = page.locator(".began")
    began.first.wait_for()
    assert began.count() == 4
    assert began.first.locator("img").count() == 2
    assert began.first.locator("img").first.evaluate("each => each.naturalHeight") == HEIGHT
    assert [began.nth(number).inner_text() for number in (1, 2, 3)] == [
        "From changed.png", "From gone.png", "From s3://bucket/a.png",
    ]  # fmt: skip
    assert not said
    page.close()
