"""The page in a real Chromium, opened from disk beside real videos."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.report.page import write_report
from tests.pace import paced

pytestmark = pytest.mark.browser

NUM_VIDEOS, NUM_ROWS, FPS = 4, 60, 16
NASTY = "<img src=x onerror=alert(1)></script><b>bold</b> \u2028 \x1b🦊 \u202eright to left"


def write_video(path: Path, hue: int) -> None:
    writer = imageio_ffmpeg.write_frames(str(path), (64, 64), fps=FPS, codec="libx264", pix_fmt_out="yuv420p")
    writer.send(None)
    for step in range(33):
        frame = np.full((64, 64, 3), 40, np.uint8)
        frame[24:40, step : step + 16, hue % 3] = 230
        writer.send(frame.tobytes())
    writer.close()


def ok(index: int, uri: str, **changes: Any) -> dict[str, Any]:
    return {
        **{
            "row": index,
            "id": f"id-{index}",
            "key": f"key{index}",
            "status": "ok",
            "seed": 2**64 - 1,
            "profile": "paper",
        },
        **{"prompts": [f"a red circle, number {index}"], "num_frames": 33, "num_latents": 9, "fps": FPS, "uri": uri},
        **{
            "width": 64,
            "height": 64,
            "bytes": 1000 + index,
            "duration_s": 33 / FPS,
            "network_calls": 298,
            "attempt": 1,
        },
        **{"encode_text_s": 0.1, "denoise_s": 9.0, "decode_s": 1.0, "encode_video_s": 0.2, "upload_s": 0.0},
        **{"consistency": [0.9, 0.85, 0.7, 0.8, float("nan")], "consistency_latents": [1, 3, 5, 7, 11]},
        **{"searched_at": [2, 4], "corrected_at": [2], "final_consistency": [0.9 - index / 1000, 0.92]},
    } | changes


def failed(index: int) -> dict[str, Any]:
    error = "prompts.jsonl:9: the prompt is blank.\n  hint: Give it some words."
    return {
        **{"row": index, "id": f"id-{index}", "status": "failed", "prompts": [" "]},
        **{"error_type": "BadRowError", "error": error},
    }


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a run #1")
    (folder / "video").mkdir()
    rows = []
    for index in range(NUM_VIDEOS):
        path = folder / "video" / f"{index} %é.mp4"
        write_video(path, index)
        rows.append(ok(index, str(path)))
    rows[1]["prompts"] = [NASTY, "then a blue square"]
    rows += [failed(NUM_VIDEOS), ok(5, "s3://bucket/video/5.mp4"), ok(6, str(folder / "video" / "gone.mp4"))]
    rows += [ok(index, f"s3://bucket/video/{index}.mp4") for index in range(len(rows), NUM_ROWS)]
    write_report(rows, {"model": "sprites", "prompts": "prompts.jsonl", "config": {"num_steps": 54}}, folder)
    return folder


@pytest.fixture
def page(browser: Any, run_folder: Path) -> Iterator[Any]:
    """The page open at desktop width; afterwards nothing may have gone wrong or gone out."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((run_folder / "report.html").as_uri())
    page.wait_for_selector(".card")
    yield page
    context.close()
    assert [text for text in wrong if "ERR_FILE_NOT_FOUND" not in text] == []
    assert asked
    assert [url for url in asked if not url.startswith("file://")] == []


@pytest.mark.slow
def test_every_video_plays(page: Any) -> None:
    for index in range(NUM_VIDEOS):
        video = f".card[data-row='{index}'] video"
        page.locator(video).scroll_into_view_if_needed()
        page.wait_for_function("v => document.querySelector(v).currentTime > 0.2", arg=video, timeout=paced(20_000))
        state = page.eval_on_selector(
            video, "v => [v.readyState >= 2, v.error, v.paused, v.muted, v.loop, v.videoWidth]"
        )
        assert state == [True, None, False, True, True, 64]


def test_pause_all_and_play_all(page: Any) -> None:
    first = ".card[data-row='0'] video"
    page.wait_for_function("v => !document.querySelector(v).paused", arg=first)
    page.click("text=Pause all")
    assert page.eval_on_selector_all("video", "all => all.every(v => v.paused)")
    page.click("text=Play all")
    page.wait_for_function("v => !document.querySelector(v).paused", arg=first)


def test_a_video_that_was_paused_by_hand_stays_paused(page: Any) -> None:
    first = ".card[data-row='0'] video"
    second = ".card[data-row='1'] video"
    for video in (first, second):
        page.wait_for_function("v => !document.querySelector(v).paused", arg=video)
    page.eval_on_selector(first, "v => v.pause()")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("v => document.querySelector(v).paused", arg=second)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("v => !document.querySelector(v).paused", arg=second)
    assert page.eval_on_selector(first, "v => v.paused")


def test_videos_that_cannot_play_say_why(page: Any) -> None:
    note = page.locator(".card[data-row='5'] .note")
    assert "s3://bucket/video/5.mp4" in note.inner_text()
    assert "object storage" in note.inner_text()
    page.locator(".card[data-row='6']").scroll_into_view_if_needed()
    page.wait_for_selector(".card[data-row='6'] .note", timeout=paced(20_000))
    assert "gone.mp4" in page.inner_text(".card[data-row='6'] .note")


def test_prompts_are_text(page: Any) -> None:
    text = page.inner_text(".card[data-row='1'] .turns")
    assert "<img src=x onerror=alert(1)></script><b>bold</b>" in text
    assert "␛🦊" in text
    assert page.locator(".turns img, .turns b").count() == 0
    assert "latents 0–4" in text
    assert "frames 17–32" in text


def test_marks_are_the_searches_and_corrections(page: Any) -> None:
    card = page.locator(".card[data-row='0']")
    assert card.locator("[data-mark=search]").count() == 2
    assert card.locator("[data-mark=correction]").count() == 1
    box = card.locator("[data-mark=correction]").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "searched and corrected" in page.inner_text("#tip")
    assert "0.7000" in page.inner_text("#tip")


def test_a_click_on_the_trace_seeks_the_video(page: Any) -> None:
    video = ".card[data-row='0'] video"
    page.wait_for_function("v => document.querySelector(v).readyState >= 2", arg=video)
    page.click("text=Pause all")
    trace = page.locator(".card[data-row='0'] .trace")
    trace.focus()
    page.keyboard.press("ArrowRight")
    assert "evaluation 2 of 5" in trace.get_attribute("aria-valuetext")
    page.wait_for_function("v => Math.abs(document.querySelector(v).currentTime - 9 / 16) < 0.02", arg=video)
    cursor = float(page.locator(".card[data-row='0'] .cursor").get_attribute("x1"))
    assert cursor == pytest.approx(33 + 3 / 11 * 297, abs=2)


def test_filters_and_sorting_are_kept_in_the_address(page: Any) -> None:
    page.check("input[value=failed]", force=True)
    assert page.locator(".card").count() == 1
    text = page.text_content(".card")  # inner_text knows only what is already rendered
    assert all(part in text for part in ("BadRowError", "the prompt is blank.", "Give it some words.", "Remedy"))
    assert page.locator(".card video").count() == 0
    page.check("input[value=all]", force=True)
    page.fill("input[type=search]", "number 3 ID-3")
    page.wait_for_function("() => location.hash.includes('q=')")
    assert page.inner_text("#shown") == f"11 of {NUM_ROWS} rows"
    page.select_option("select", "consistency")
    page.click("#direction")
    order = page.eval_on_selector_all(".card", "all => all.map(card => Number(card.dataset.row))")
    assert order == [3, *range(30, 40)]
    page.click("#direction")
    page.reload()
    page.wait_for_selector(".card")
    assert page.input_value("input[type=search]") == "number 3 ID-3"
    assert page.get_attribute(".card >> nth=0", "data-row") == "39"
    page.fill("input[type=search]", "nothing like it")
    page.wait_for_selector("text=No row matches the filter.")


def test_cards_come_in_batches_until_all_are_there(page: Any) -> None:
    assert page.locator(".card").count() < NUM_ROWS
    page.wait_for_function(
        """count => {
            scrollTo(0, document.body.scrollHeight)
            return document.querySelectorAll('.card').length >= count
        }""",
        arg=NUM_ROWS,
    )
    assert page.locator(".card").count() == NUM_ROWS
    assert not page.is_visible("#more")


def test_short_cards_fill_a_tall_screen(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 2400, "height": 5000})
    page.goto(write_report([failed(index) for index in range(60)], {}, tmp_path).as_uri())
    page.wait_for_function("() => document.querySelectorAll('.card').length >= 60")
    assert page.locator(".card").count() == 60
    assert not page.is_visible("#more"), "nobody had to scroll"
    page.close()


def test_phone_width_has_no_sideways_scrolling(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.click(".settings summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.slow
def test_a_thousand_rows_open_at_once(browser: Any, tmp_path: Path) -> None:
    rows = [ok(index, f"s3://b/{index}.mp4", consistency=[0.5] * 300, prompts=["word " * 100]) for index in range(1000)]
    path = write_report(rows, {}, tmp_path)
    page = browser.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector(".card")
    assert page.inner_text("#shown") == "1,000 rows"
    assert page.evaluate("performance.now()") < 10_000
    page.fill("input[type=search]", "id-999")
    page.wait_for_function("() => document.querySelectorAll('.card').length === 1")
    page.close()


@pytest.mark.slow
def test_without_javascript_there_is_a_table(browser: Any, run_folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    page.goto((run_folder / "report.html").as_uri())
    assert page.locator("noscript table.plain tbody tr").count() == NUM_ROWS
    assert "a red circle, number 0" in page.inner_text("body")
    context.close()
