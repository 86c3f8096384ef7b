"""What a reader does with the page in a real Chromium: enlarge, step, compare, link, table, CSV, and many rows."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from pipeline.report.page import write_report
from pipeline.report.pieces import MOST_EMBEDDED
from tests.pace import paced

pytestmark = pytest.mark.browser

FPS, NUM_FRAMES = 8, 17
REVISION = f"sha256:{'ab' * 32}+lora:0123"
NUM_MANY = MOST_EMBEDDED + 605


def write_counting_video(path: Path, side: int = 64) -> None:
    """Frame n is grey of shade 10 n + 20: which one is shown can be read off."""
    options = {"codec": "libx264", "pix_fmt_out": "yuv420p", "output_params": ["-crf", "4"]}
    writer = imageio_ffmpeg.write_frames(str(path), (side, side), fps=FPS, **options)
    writer.send(None)
    for step in range(NUM_FRAMES):
        writer.send(np.full((side, side, 3), 10 * step + 20, np.uint8).tobytes())
    writer.close()


def ok(row: int, **changes: Any) -> dict[str, Any]:
    made = {"row": row, "id": str(row), "key": f"key{row}", "status": "ok", "seed": row, "profile": "swift"}
    made |= {"prompts": [f"a red circle, number {row}"], "num_frames": NUM_FRAMES, "num_latents": 5, "fps": FPS}
    made |= {"width": 64, "height": 64, "bytes": 1000, "duration_s": NUM_FRAMES / FPS, "network_calls": 9}
    made |= {"denoise_s": 9.0, "uri": f"s3://bucket/video/{row}.mp4", "consistency": [], "final_consistency": []}
    return made | changes


def failed(row: int) -> dict[str, Any]:
    return {"row": row, "id": str(row), "status": "failed", "prompts": [f"=1+{row}"], "error_type": "BadRowError"}


@contextmanager
def opened(browser: Any, address: str, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """The page; nothing may have gone wrong in it, or gone out."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.asked = asked
    page.wrong = wrong
    page.goto(address)
    page.wait_for_selector("#shown:not(:empty)")
    yield page
    context.close()
    base = re.match(r"\w+://[^/]*", address)
    assert base
    assert [url for url in asked if not url.startswith((base[0], "blob:", "data:"))] == []
    assert wrong == []


# ---- a few rows ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "video").mkdir()
    for row in range(3):
        write_counting_video(folder / "video" / f"{row}.mp4", 128 if row == 2 else 64)
    rows = [ok(row, uri=str(folder / "video" / f"{row}.mp4")) for row in range(3)]
    rows[0] |= {"consistency": [0.9, 0.5], "consistency_latents": [1, 2], "num_evaluations": 2}
    rows[1] |= {"consistency": [0.88, 0.87], "consistency_latents": [1, 2], "num_evaluations": 2}
    rows[2] |= {"width": 128, "height": 128, "prompts": ['@a "quoted" prompt,\nof two lines', "then another"]}
    write_report([*rows, failed(3)], {"model": "sprites", "model_revision": REVISION}, folder)
    return folder


@pytest.fixture
def page(browser: Any, folder: Path) -> Iterator[Any]:
    with opened(browser, (folder / "report.html").as_uri()) as page:
        page.click("text=Pause all")
        yield page


def shade(page: Any, pane: int) -> int:
    """Of the frame that a video of the viewer shows."""
    return page.evaluate(
        """pane => {
            const video = document.querySelectorAll('#panes video')[pane]
            const canvas = document.createElement('canvas'), draw = canvas.getContext('2d')
            draw.drawImage(video, 0, 0, 4, 4)
            return draw.getImageData(1, 1, 1, 1).data[0]
        }""",
        pane,
    )


def wait_for_frame(page: Any, frame: int, panes: int = 1) -> None:
    page.wait_for_function(
        """([frame, panes, fps]) => {
            const all = [...document.querySelectorAll('#panes video')]
            return all.length === panes && all.every(v => !v.seeking && v.readyState >= 2
                && Math.floor(v.currentTime * fps) === frame)
        }""",
        arg=[frame, panes, FPS],
    )
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/favicon.ico":
                self.send_response(204)
                self.end_headers()
            else:
                super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_video_is_enlarged_and_stepped_through(page: Any) -> None:
    page.click(".card[data-row='1'] >> text=Enlarge")
    wait_for_frame(page, 0)
    assert page.eval_on_selector("#panes video", "v => v.clientHeight") > 300
    assert "a red circle, number 1" in page.inner_text("#viewer")
    for key, frame in ((".", 1), ("ArrowRight", 2), (",", 1), ("End", NUM_FRAMES - 1), (".", NUM_FRAMES - 1)):
        page.keyboard.press(key)
        wait_for_frame(page, frame)
    page.wait_for_function(
        "text => document.querySelector('#at-frame').textContent.startsWith(text)", arg="frame 16 of 16"
    )
    page.keyboard.press("Home")
    wait_for_frame(page, 0)
    page.click("text=Frame ▸")
    wait_for_frame(page, 1)
    page.fill("#frame", "7")
    wait_for_frame(page, 7)
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('#viewer').open")
    assert page.locator("#panes video").count() == 0


def test_each_step_shows_the_next_frame(browser: Any, folder: Path) -> None:
    """The shades of the frames, read back, against those that were written."""
    from pipeline.video import read_frames

    written = [int(frame.mean()) for frame in read_frames(folder / "video" / "0.mp4")]
    html = (folder / "report.html").read_text()
    assert "default-src 'none'" in html
    with http_run(folder) as address, opened(browser, address) as page:
        page.click("text=Pause all")
        page.click(".card[data-row='0'] >> text=Enlarge")
        shades = []
        for frame in range(NUM_FRAMES):
            wait_for_frame(page, frame)
            shades.append(shade(page, 0))
            page.keyboard.press(".")
    assert all(abs(seen - sent) <= 4 for seen, sent in zip(shades, written, strict=True)), (shades, written)


@contextmanager
def http_run(folder: Path) -> Iterator[str]:
    """The folder's page by a server that knows ranges, without which no player seeks."""
    import shutil

    from pipeline.storage.local import LocalStorage
    from pipeline.upkeep.serve import RunServer

    out, name = folder / "served", "00000000-0123456789abcdef-e1a1.mp4"
    (out / "video" / "00000").mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "video" / "0.mp4", out / "video" / "00000" / name)
    write_report([ok(0, uri=str(out / "video" / "00000" / name))], {}, out)
    server = RunServer(LocalStorage(out), out)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server.address
    server.shutdown()
    server.server_close()


def test_two_videos_side_by_side_stay_together(page: Any) -> None:
    page.click(".card[data-row='0'] >> text=Compare")
    assert "row 0" in page.inner_text("#pairing")
    page.click("text=Cancel")
    assert not page.is_visible("#pairing")
    page.click(".card[data-row='0'] >> text=Compare")
    page.click(".card[data-row='1'] >> text=Compare")
    wait_for_frame(page, 0, 2)
    left, right = page.locator("#panes video").all()
    assert left.bounding_box()["y"] == right.bounding_box()["y"]
    assert left.bounding_box()["x"] < right.bounding_box()["x"]
    for _ in range(3):
        page.keyboard.press(".")
    wait_for_frame(page, 3, 2)
    page.click("#run")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#panes video')].every(v => !v.paused && v.currentTime > 0.6)"
    )
    page.click("#run")
    page.wait_for_function("() => [...document.querySelectorAll('#panes video')].every(v => v.paused && !v.seeking)")
    times = page.eval_on_selector_all("#panes video", "all => all.map(v => v.currentTime)")
    assert times[0] == pytest.approx(times[1], abs=1e-3)


def test_a_row_has_an_address_of_its_own(browser: Any, folder: Path, page: Any) -> None:
    page.click(".card[data-row='1'] .at")
    page.wait_for_function("() => document.querySelector('#viewer').open")
    assert page.evaluate("location.hash") == "#row=1"
    page.keyboard.press("n")
    page.wait_for_function("() => location.hash === '#row=2'")
    page.click("#close")
    page.wait_for_function("() => location.hash === '#'  || location.hash === ''")
    with opened(browser, f"{(folder / 'report.html').as_uri()}#row=2") as other:
        other.wait_for_selector("#panes .pane[data-row='2'] video")
    with opened(browser, f"{(folder / 'report.html').as_uri()}#row=3") as other:
        assert "BadRowError" in other.inner_text("#panes .pane[data-row='3']")
    with opened(browser, f"{(folder / 'report.html').as_uri()}#row=77") as other:
        assert other.inner_text("#busy") == "There is no row 77 on this page."


def test_the_table_has_the_same_rows(page: Any) -> None:
    page.check("input[value=table]", force=True)
    assert page.evaluate("location.hash") == "#view=table"
    assert page.eval_on_selector_all("#table tbody tr", "all => all.map(r => r.dataset.row)") == ["0", "1", "2", "3"]
    cells = page.eval_on_selector("#table tbody tr", "r => [...r.cells].map(c => c.textContent)")
    assert cells[0] == "0"
    assert {"ok", "a red circle, number 0", "17", "0.7000", "1.00 kB"} <= set(cells)
    assert page.locator(".card").count() == 0
    page.check("input[value=failed]", force=True)
    assert page.locator("#table tbody tr").count() == 1
    page.check("input[value=cards]", force=True)
    assert page.locator(".card").count() == 1


def saved(page: Any) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.click("#csv")
    text = Path(download.value.path()).read_bytes().decode()
    assert download.value.suggested_filename == "rows.csv"
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_csv_is_of_the_filter_and_harmless(page: Any) -> None:
    rows = saved(page)
    assert [row["row"] for row in rows] == ["0", "1", "2", "3"]
    assert rows[2]["prompt"] == '\'@a "quoted" prompt,\nof two lines\nthen another'
    assert rows[3]["prompt"] == "'=1+3"
    assert (rows[0]["mean_consistency"], rows[0]["num_frames"], rows[0]["seed"]) == ("0.7", "17", "0")
    page.fill("input[type=search]", "number")
    page.wait_for_function("() => location.hash.includes('q=')")
    assert [row["row"] for row in saved(page)] == ["0", "1"]


def test_cells_of_the_page_and_of_an_export_are_made_harmless_alike(browser: Any, tmp_path: Path) -> None:
    from pipeline.upkeep.export import _harmless

    nasty = [
        "=1",
        "+1",
        "-1",
        "@x",
        "\t=1",
        "\r1",
        "\n1",
        "'=1",
        "''+2",
        "\uff1d1",
        "\uff0b",
        "\uff0d",
        "\uff20",
        "a=1",
        "'a",
        " =1",
        "",
    ]
    write_report([ok(row, id=text) for row, text in enumerate(nasty)], {}, tmp_path)
    with opened(browser, (tmp_path / "report.html").as_uri()) as page:
        assert [row["id"] for row in saved(page)] == [_harmless(text) for text in nasty]


def test_small_frames_are_not_blurred(page: Any) -> None:
    def rendering(row: int) -> str:
        return page.eval_on_selector(f".card[data-row='{row}'] video", "v => getComputedStyle(v).imageRendering")

    assert [rendering(row) for row in range(3)] == ["pixelated", "pixelated", "auto"]


def test_the_prompt_is_the_headline_and_no_digest_is_long(page: Any) -> None:
    assert page.inner_text(".card[data-row='0'] h2") == "a red circle, number 0"
    assert page.inner_text(".card[data-row='2'] h2") == "2 prompts in turn"
    assert "ab" * 32 not in page.inner_text(".top")
    assert page.inner_text(".facts b[title]") == f"sha256:{'ab' * 6}…+lora:0123"
    assert page.get_attribute(".facts b[title]", "title") == REVISION


def test_all_cards_share_one_scale(page: Any) -> None:
    def axis(row: int) -> list[str]:
        return page.eval_on_selector_all(f".card[data-row='{row}'] .trace text", "all => all.map(t => t.textContent)")

    assert axis(0) == axis(1)
    dots = [float(y) for row in (0, 1) for y in page.eval_on_selector_all(
        f".card[data-row='{row}'] .dot", "all => all.map(dot => dot.getAttribute('cy'))")]  # fmt: skip
    low, high = dots[1], dots[0]  # of 0.5 and 0.9
    assert dots[2] == pytest.approx(high + (0.9 - 0.88) / 0.4 * (low - high), abs=0.01)
    assert "0.5 to 0.9" in page.text_content("#legend")
    assert "mean cosine" in page.text_content("#legend")


def test_searches_are_not_spoken_of_where_there_were_none(browser: Any, tmp_path: Path, page: Any) -> None:
    assert "search" not in page.text_content("#legend")
    searched = {"consistency": [0.9, 0.5], "searched_at": [1], "corrected_at": [1]}
    write_report([ok(0, **searched), ok(1, **searched | {"corrected_at": []})], {}, tmp_path / "searched")
    with opened(browser, (tmp_path / "searched" / "report.html").as_uri()) as other:
        assert "search" in other.text_content("#legend")
        tiles = other.inner_text(".tiles")
        assert "Searches that helped\n50.0%\n25.0% of all that was judged was replaced" in tiles
        assert "R_succ" not in tiles
    write_report([ok(0)], {}, tmp_path / "plain")
    with opened(browser, (tmp_path / "plain" / "report.html").as_uri()) as other:
        assert "Corrections" not in other.inner_text(".tiles")
        assert "consistency" not in other.text_content("#legend").lower()


def test_a_phone_s_first_screen_shows_a_video(browser: Any, folder: Path) -> None:
    with opened(browser, (folder / "report.html").as_uri(), 360, 740) as page:
        assert page.eval_on_selector("#legend", "legend => [legend.open, legend.clientHeight < 40]") == [False, True]
        assert page.locator(".card video").first.bounding_box()["y"] < 700
        page.click(".card[data-row='0'] >> text=Enlarge")
        wait_for_frame_or_play(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.eval_on_selector("#viewer", "v => v.scrollWidth <= v.clientWidth")


def wait_for_frame_or_play(page: Any) -> None:
    page.wait_for_function("() => document.querySelector('#panes video')?.readyState >= 2")


# ---- many rows ----


def score(row: int) -> float:
    return round(0.5 + (row * 7919 % 4001) / 10_000, 4)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Row numbers have gaps; every seventh row failed."""
    folder = tmp_path_factory.mktemp("many")
    rows = [failed(3 * n) if n % 7 == 3 else ok(3 * n, final_consistency=[score(n)]) for n in range(NUM_MANY)]
    write_report(rows, {}, folder)
    return folder


@pytest.fixture(params=["file", pytest.param("http", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, many: Path) -> Iterator[str]:
    if request.param == "file":
        yield (many / "report.html").as_uri()
    else:
        with serving(many) as server:
            yield f"{server}/report.html"


def rows_shown(page: Any) -> list[int]:
    return [int(row) for row in page.eval_on_selector_all(".card", "all => all.map(card => card.dataset.row)")]


NUM_FAILED = sum(n % 7 == 3 for n in range(NUM_MANY))


def test_many_rows_are_loaded_as_they_are_asked_for(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        assert f"This run has {NUM_MANY:,} rows." in page.inner_text("#first")
        assert f"of the {NUM_FAILED:,} rows that failed" in page.inner_text("#first")
        assert page.inner_text("[data-count=failed]") == f"{NUM_FAILED:,}"
        assert rows_shown(page)[:3] == [9, 30, 51], "failed ones come first"
        assert not [url for url in page.asked if url.endswith(".js")], "and nothing was loaded for them"

        page.select_option("select[name=sort]", "consistency")
        page.wait_for_function("() => document.querySelector('#first').hidden && document.querySelector('.card')")
        worst = sorted((score(n), n) for n in range(NUM_MANY) if n % 7 != 3)
        assert rows_shown(page)[:24] == [3 * n for _, n in worst[:24]]
        page.click("#direction")
        best = sorted((-score(n), n) for n in range(NUM_MANY) if n % 7 != 3)
        page.wait_for_function("row => document.querySelector('.card')?.dataset.row === row", arg=str(3 * best[0][1]))
        assert rows_shown(page)[:24] == [3 * n for _, n in best[:24]]

        page.fill("input[type=search]", f"number {3 * (NUM_MANY - 2)}")
        page.wait_for_function("() => document.querySelectorAll('.card').length === 1")
        assert rows_shown(page) == [3 * (NUM_MANY - 2)]
        assert page.inner_text("#shown") == f"1 of {NUM_MANY:,} rows"

        page.fill("input[type=search]", "")
        page.check("input[value=failed]", force=True)
        page.wait_for_function(
            "text => document.querySelector('#shown').textContent.startsWith(text)", arg=f"{NUM_FAILED:,}"
        )


def test_all_of_many_rows(browser: Any, address: str) -> None:
    with opened(browser, address) as page:
        page.click("text=Show all rows")
        page.wait_for_function("() => document.querySelector('.card')?.dataset.row === '0'")
        assert page.inner_text("#shown") == f"{NUM_MANY:,} rows"
        page.reload()
        page.wait_for_function("() => document.querySelector('.card')?.dataset.row === '0'")
        rows = saved(page)
        assert [int(row["row"]) for row in rows] == [3 * n for n in range(NUM_MANY)]
        assert [row["prompt"] for row in rows[:4]] == [*(f"a red circle, number {3 * n}" for n in range(3)), "'=1+9"]
        assert float(rows[-1]["mean_consistency"]) == score(NUM_MANY - 1)


@pytest.mark.slow
def test_a_link_to_one_of_many_rows(browser: Any, address: str) -> None:
    row = 3 * (NUM_MANY - 1)
    with opened(browser, f"{address}#row={row}") as page:
        page.wait_for_selector(f"#panes .pane[data-row='{row}']")
        assert f"a red circle, number {row}" in page.inner_text("#panes")


@pytest.mark.slow
def test_pieces_that_are_not_beside_the_page_are_named(browser: Any, many: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes((many / "report.html").read_bytes())
    with opened(browser, (tmp_path / "report.html").as_uri()) as page:
        assert page.locator(".card").count() > 0
        page.click("text=Show all rows")
        page.wait_for_function("() => document.querySelector('#busy').textContent.includes('cannot be loaded')")
        assert "index.js" in page.inner_text("#busy")
        page.wrong.clear()
