"""Runs compared pair by pair: scores, differences, and the page in a real Chromium."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from miga.errors import OutputError
from pipeline.evaluation.comparison import compare_systems
from pipeline.evaluation.pairs import open_systems, pair_up
from pipeline.evaluation.row_scores import RESULTS_PATH, better, scores_of
from pipeline.storage.open import open_storage
from tests.cli import run
from tests.pace import paced

PROMPTS = [f"a cat, {number}" for number in range(12)]


def noisy(row: int) -> tuple[float, ...]:
    """What a prompt does to both systems is much larger than what the system does."""
    return (0.5 + 0.03 * row, 0.6 + 0.03 * row)


@pytest.fixture
def outs(tmp_path: Path, make_run: Any) -> list[str]:
    a = make_run(tmp_path / "fifo", 10, PROMPTS, scores=noisy)
    b = make_run(tmp_path / "miga", 90, PROMPTS, scores=lambda row: tuple(x + 0.01 for x in noisy(row)))
    return [a, b]


def write_results(out: str, lines: list[dict[str, Any]], name: str = RESULTS_PATH) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(lines), sink)
    open_storage(out).write_bytes(name, bytes(sink.getvalue().to_pybytes()))


def test_differences_are_within_pairs(outs: list[str]) -> None:
    systems = open_systems(outs)
    compared = compare_systems(systems, pair_up(systems))
    by_metric = {found.metric: found for found in compared.differences}
    found = by_metric["final_consistency"]
    assert (found.num_pairs, found.system, found.verdict) == (12, "miga", "better")
    for value in (found.difference.mean, found.difference.low, found.difference.high):
        assert value == pytest.approx(0.01, abs=1e-12)
    assert found.means[0].high - found.means[0].low > 0.1  # each by itself is wide
    assert found.means[0].mean == pytest.approx(np.mean([noisy(row) for row in range(12)]), abs=1e-12)
    assert by_metric["lowest_consistency"].means[1].mean == pytest.approx(np.mean([0.51 + 0.03 * r for r in range(12)]))


def test_results_of_evaluate_are_read(outs: list[str], tmp_path: Path, make_run: Any) -> None:
    make_run(tmp_path / "judged", 50, PROMPTS[:3], sha256="aa")
    out = str(tmp_path / "judged")
    no_video: dict[str, Any] = {"start_end_contrast": None, "other": "broken"}
    lines: list[dict[str, Any]] = [
        {"row": 0, "sha256": "aa", "measure": "dynamic_degree", "value": 1.0, **no_video},
        {"row": 0, "sha256": "aa", "measure": "imaging_quality", "value": 61.5, "start_end_contrast": 2.5},
        {"row": 1, "sha256": "bb", "measure": "imaging_quality", "value": 60.0, "start_end_contrast": 1.0},
        {"row": 2, "sha256": "aa", "measure": None, "value": None, **no_video},
        {"row": 2, "sha256": "aa", "measure": "motion_smoothness", "value": None, **no_video},
        {"row": 9, "sha256": "aa", "measure": "imaging_quality", "value": 1.0},
    ]  # fmt: skip
    write_results(out, lines)
    [system, _] = open_systems([out, outs[0]])
    assert scores_of(system.storage, system.rows.values()) == {
        0: {"dynamic_degree": 1.0, "imaging_quality": 61.5, "imaging_quality, start-end contrast": 2.5},
        1: {},  # another video was judged than the one that is there now
        2: {},
    }


@pytest.mark.parametrize("broken", [b"no parquet", b"PAR1", None])
def test_broken_results_are_said(outs: list[str], broken: bytes | None) -> None:
    if broken is None:
        write_results(outs[0], [{"row": 1, "value": 2.0}])
    else:
        open_storage(outs[0]).write_bytes(RESULTS_PATH, broken)
    systems = open_systems(outs)
    with pytest.raises(OutputError, match=r"results\.parquet cannot be used"):
        compare_systems(systems, pair_up(systems))


def test_which_way_is_better() -> None:
    assert [better(name) for name in ("imaging_quality", "imaging_quality, start-end contrast", "residual", "foo")] == [
        "higher", "lower", "lower", "neither",
    ]  # fmt: skip


def test_a_metric_that_one_run_lacks_has_no_difference(outs: list[str]) -> None:
    write_results(outs[1], [{"row": 0, "sha256": None, "measure": "foo", "value": 2.0}])
    systems = open_systems(outs)
    [found] = compare_systems(systems, pair_up(systems), ["foo"]).differences
    assert found.num_pairs == 0
    assert math.isnan(found.difference.mean)
    assert found.verdict == "unknown"


@pytest.mark.slow
def test_the_command(outs: list[str], tmp_path: Path, make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    third = make_run(tmp_path / "third", 60, [*PROMPTS[:6], "another"], scores=noisy)
    status, text, said = run(capsys, "compare", *outs, third, "--to", tmp_path / "page", "--json")
    assert status == 0
    values = json.loads(text)
    assert (values["systems"], values["pairs"]) == (["fifo", "miga", "third"], 6)
    assert len(values["left_out"]) == 7
    found = {(each["metric"], each["system"]): each for each in values["differences"]}
    assert found["final_consistency", "third"]["verdict"] == "not worse"
    assert found["final_consistency", "miga"]["difference"][0] == pytest.approx(0.01, abs=1e-12)
    assert Path(values["plot"]).read_bytes()[:4] == b"\x89PNG"
    assert Path(values["page"]) == tmp_path / "page" / "compare.html"
    status, text, said = run(capsys, "compare", *outs, third, "--to", tmp_path / "page")
    assert "| final_consistency  | miga   | 6" in text
    assert "left out: another (seed 6) of third: fifo does not have that prompt" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--metrics", "beauty"], "no video of these runs has beauty"), (["--to", "s3://b/page"], "no folder of this"),
        (["--presign", "1y"], "--presign '1y'"),
    ],
)  # fmt: skip
def test_refusals(
    outs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    place = [] if "--to" in arguments else ["--to", tmp_path / "page"]
    status, _, message = run(capsys, "compare", *outs, *place, *arguments)
    assert status == 2
    assert said in message
    assert not (tmp_path / "page").exists()


def test_nothing_in_common(tmp_path: Path, make_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    outs = [make_run(tmp_path / name, 10, [name]) for name in ("a", "b")]
    status, _, message = run(capsys, "compare", *outs, "--to", tmp_path / "page")
    assert status == 2
    assert "no videos of the same prompt" in message


@pytest.mark.browser
@pytest.mark.slow
def test_the_page(browser: Any, outs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Opened from disk: both videos of a pair play, a pair can be stopped and sought, and ordered by metric."""
    run(capsys, "compare", *outs, "--to", tmp_path / "page")
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(paced(30_000))
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto((tmp_path / "page" / "compare.html").as_uri())
    assert page.inner_text("h1") == "fifo beside miga"
    assert page.evaluate("document.querySelector('img').naturalWidth") > 100
    assert page.inner_text("#shown") == "12 of 12 pairs shown"
    page.wait_for_function("[...document.querySelectorAll('.pair:first-child video')].every(v => v.currentTime > 0.1)")
    page.click(".pair:first-child button")
    assert page.inner_text(".pair:first-child button") == "Play"
    slider = page.locator(".pair:first-child input")
    slider.evaluate("node => { node.value = '0.5'; node.dispatchEvent(new Event('input')) }")
    times = page.evaluate(
        "[...document.querySelectorAll('.pair:first-child video')].map(v => v.currentTime / v.duration)"
    )
    assert times == pytest.approx([0.5, 0.5], abs=0.01)
    assert page.evaluate("document.querySelectorAll('.pair video').length") == 24
    page.select_option("#order", label="final_consistency: miga less than fifo")
    page.wait_for_function("document.querySelectorAll('.pair').length === 12")
    context.close()
    assert wrong == []
