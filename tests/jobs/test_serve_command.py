"""`miga serve` and `miga report`: as processes, in a browser, with an OUT in a bucket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.local import LocalStorage
from tests.cli import run
from tests.made_run import MadeRun, make_run
from tests.pace import paced


@pytest.fixture
def made(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 4, failed=(2,))


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process, and the address that it says."""
    command = [sys.executable, "-m", "jobs.cli", "serve", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().removeprefix("page: ").strip()
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_cleanly(made: MadeRun, stop: signal.Signals, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    before = sorted(made.storage.list())
    with serving(made.storage.root) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=paced(30)) as answer:
            assert b"<html" in answer.read()
        process.send_signal(stop)
        _, err = process.communicate(timeout=paced(30))
    assert process.returncode == 0
    assert err.endswith("stopped\n")
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "tmp") == []
    assert sorted(made.storage.list()) == before


def test_wrong_arguments_are_said(capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path) -> None:
    for arguments, message in (
        (("serve", tmp_path / "none"), "holds no run"),
        (("serve", made.storage.root, "--port", 70000), "no port"),
        (("serve", made.storage.root, "--strips", -1), "--strips"),
        (("report", made.storage.root, "--presign", "1d"), "is a folder"),
        (("report", made.storage.root, "--strips", -1), "--strips"),
        (("report", made.storage.root, "--to", "s3://bucket/page"), "no folder of this machine"),
        (("report", made.storage.root, "--to", made.prompts), "is a file"),
        (("report", made.storage.root, "--to", ""), "no folder of this machine"),
    ):
        status, _, err = run(capsys, *arguments)
        assert (status, message in err, "hint:" in err) == (2, True, True), err


@pytest.mark.parametrize("time", ["", "1", "8d", "0h", "1w", "-1d", "1.5h", "9999999d", "x", "１h"])
def test_times_that_no_link_is_valid_for(capsys: pytest.CaptureFixture[str], made: MadeRun, time: str) -> None:
    status, _, err = run(capsys, "report", made.storage.root, f"--presign={time}")
    assert (status, "30m, 12h or 7d" in err) == (2, True)


# ---- in a browser ----


@contextmanager
def opened(browser: Any, address: str) -> Iterator[tuple[Any, list[str]]]:
    """A page, and what it asks for; nothing may go wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector(".card")
    yield page, asked
    context.close()
    assert wrong == []


def plays(page: Any, row: int) -> None:
    video = f".card[data-row='{row}'] video"
    page.locator(video).scroll_into_view_if_needed()
    page.wait_for_function(
        "v => { const e = document.querySelector(v); return e.readyState >= 2 && e.currentTime > 0.05 }", arg=video
    )
    assert page.eval_on_selector(video, "v => [v.error, v.videoWidth]") == [None, 16]


@pytest.mark.browser
@pytest.mark.parametrize("where", ["page", "out/inner", "deep/er/page"])
def test_a_page_elsewhere_finds_the_videos(
    browser: Any, capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path, where: str
) -> None:
    status, out, _ = run(capsys, "report", made.storage.root, "--to", tmp_path / where, "--json")
    assert status == 0
    page_path = Path(json.loads(out)["page"])
    assert page_path == tmp_path / where / "report.html"
    with opened(browser, page_path.as_uri()) as (page, asked):
        for row in (0, 1, 3):
            plays(page, row)
    assert all(url.startswith(tmp_path.as_uri()) for url in asked)


@pytest.mark.browser
def test_page_and_run_may_be_moved_together(
    browser: Any, capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path
) -> None:
    assert run(capsys, "report", made.storage.root, "--to", tmp_path / "page")[0] == 0
    (tmp_path / "moved").mkdir()
    for name in ("out", "page"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    with opened(browser, (tmp_path / "moved" / "page" / "report.html").as_uri()) as (page, _):
        plays(page, 0)


@pytest.mark.browser
def test_a_page_behind_a_link_finds_the_videos(
    browser: Any, capsys: pytest.CaptureFixture[str], made: MadeRun, tmp_path: Path
) -> None:
    (tmp_path / "disk" / "pages").mkdir(parents=True)
    (tmp_path / "pages").symlink_to(tmp_path / "disk" / "pages")
    assert run(capsys, "report", made.storage.root, "--to", tmp_path / "pages")[0] == 0
    for folder in (tmp_path / "pages", tmp_path / "disk" / "pages"):
        with opened(browser, (folder / "report.html").as_uri()) as (page, _):
            plays(page, 0)


@pytest.fixture
def in_bucket(s3_root: str, tmp_path: Path) -> MadeRun:
    from pipeline.storage.open import open_storage

    return make_run(open_storage(s3_root), tmp_path, 4, failed=(2,))


@pytest.mark.browser
@pytest.mark.s3
def test_of_a_bucket_there_are_frames_in_the_page(
    browser: Any, capsys: pytest.CaptureFixture[str], in_bucket: MadeRun, tmp_path: Path
) -> None:
    in_bucket.storage.delete(in_bucket.video(3))
    assert "--to FOLDER" in run(capsys, "report", in_bucket.storage.root)[2]
    status, _, err = run(capsys, "report", in_bucket.storage.root, "--to", tmp_path / "page")
    assert status == 0
    assert "1 videos could not be read" in err
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["report.html"]
    with opened(browser, (tmp_path / "page" / "report.html").as_uri()) as (page, asked):
        pictures = page.locator(".card[data-row='1'] img.strip")
        size = pictures.evaluate("image => [image.complete, image.naturalWidth, image.naturalHeight]")
        assert size == [True, 6 * 16, 16]
        shade = pictures.evaluate(
            """image => {
                const canvas = document.createElement('canvas'), draw = canvas.getContext('2d')
                draw.drawImage(image, 0, 0)
                return draw.getImageData(90, 8, 1, 1).data[0]
            }"""
        )
        assert abs(shade - 1) <= 3, "row 1 is of shade 1"
        assert page.locator(".card[data-row='1'] .poster img").count() == 1
        assert "miga serve OUT" in page.inner_text(".card[data-row='1']")
        assert page.locator(".card[data-row='3'] img").count() == 0
    assert all(url.startswith(("file://", "data:image/jpeg")) for url in asked)


@pytest.mark.browser
@pytest.mark.s3
@pytest.mark.slow
def test_signed_links_play(
    browser: Any, capsys: pytest.CaptureFixture[str], in_bucket: MadeRun, s3_server: dict[str, str], tmp_path: Path
) -> None:
    status, _, _ = run(capsys, "report", in_bucket.storage.root, "--to", tmp_path / "page", "--presign", "1d")
    assert status == 0
    with opened(browser, (tmp_path / "page" / "report.html").as_uri()) as (page, asked):
        plays(page, 0)
        assert "valid until" in page.inner_text(".said")
    server = s3_server["AWS_ENDPOINT_URL"]
    assert all(url.startswith(("file://", server)) for url in asked)
    signed = [url for url in asked if url.startswith(server)]
    assert signed
    assert all("Signature=" in url for url in signed)


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", pytest.param("s3", marks=pytest.mark.s3)])
def test_a_served_run_plays_and_seeks(browser: Any, request: pytest.FixtureRequest, place: str) -> None:
    run = request.getfixturevalue("made" if place == "local" else "in_bucket")
    with serving(run.storage.root) as (_, address), opened(browser, address) as (page, asked):
        plays(page, 0)
        page.click("text=Pause all")
        video = ".card[data-row='0'] video"
        page.eval_on_selector(video, "v => { v.currentTime = 0.5 }")
        page.wait_for_function(
            "v => { const e = document.querySelector(v); return !e.seeking && e.readyState >= 2 }", arg=video
        )
        assert page.eval_on_selector(video, "v => [v.currentTime, v.seekable.length]") == [0.5, 1]
        assert all(url.startswith(address) for url in asked)
