"""Which rows a page of many holds, and the pieces beside it, read from their files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import page as page_module
from pipeline.report import pieces
from pipeline.report.page import render_report, write_report
from pipeline.report.pieces import MOST_EMBEDDED, MOST_FAILED, MOST_SAMPLED, MOST_WORST, ROWS_A_PIECE, ROWS_OF_WORDS

NUM_ROWS = MOST_EMBEDDED + 2 * ROWS_OF_WORDS + 17


def row(number: int, **changes: Any) -> dict[str, Any]:
    if number % 5 == 2:
        return {"row": number, "status": "failed", "error_type": "BadRowError", "error": f"wrong {number}"} | changes
    made = {"row": number, "id": f"id-{number}", "status": "ok", "prompts": [f"number {number} </script>"]}
    return made | {"final_consistency": [score(number)], "uri": f"s3://b/{number}.mp4", "bytes": number} | changes


def score(number: int) -> float:
    return round((number * 7919 % 10_007) / 10_007, 5)


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def called(path: Path) -> Any:
    """What a piece calls the page with."""
    text = path.read_text()
    assert text.isascii()
    assert not set(text) & set("<>&")
    found = re.fullmatch(r'migaReport\("([a-z0-9-]+)",(.*)\);\n', text, re.DOTALL)
    assert found
    assert f"{found[1]}.js" == path.name
    return json.loads(found[2])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report((row(n) for n in range(NUM_ROWS)), {}, tmp_path_factory.mktemp("many"))


@pytest.mark.slow
def test_the_page_holds_failures_the_worst_and_a_sample(page: Path) -> None:
    data = data_of(page)
    positions = data["positions"]
    assert [card["row"] for card in data["cards"]] == positions
    assert len(set(positions)) == len(positions) <= MOST_FAILED + MOST_WORST + MOST_SAMPLED
    failures = [n for n in range(NUM_ROWS) if n % 5 == 2]
    worst = sorted((n for n in range(NUM_ROWS) if n % 5 != 2), key=lambda n: (score(n), n))
    assert positions[:MOST_FAILED] == failures[:MOST_FAILED]
    assert positions[MOST_FAILED : MOST_FAILED + MOST_WORST] == worst[:MOST_WORST]
    sample = positions[MOST_FAILED + MOST_WORST :]
    assert len(sample) > MOST_SAMPLED / 4
    gaps = {after - before for before, after in itertools.pairwise(sample)}
    assert max(gaps) <= 4 * NUM_ROWS / MOST_SAMPLED, "no stretch of the run is left out"
    assert (data["total"], data["failed"]) == (NUM_ROWS, len(failures))


@pytest.mark.slow
def test_the_pieces_hold_every_row_once(page: Path) -> None:
    folder = page.parent / data_of(page)["pieces"]["folder"]
    rows = [card for path in sorted(folder.glob("rows-*.js")) for card in called(path)]
    assert [card["row"] for card in rows] == list(range(NUM_ROWS))
    assert all(len(called(path)) == ROWS_A_PIECE for path in sorted(folder.glob("rows-*.js"))[:-1])
    assert rows[1]["prompts"] == ["number 1 </script>"]
    words = [text for path in sorted(folder.glob("words-*.js")) for text in called(path)]
    assert len(words) == NUM_ROWS
    assert words[1] == "id-1\nnumber 1 </script>"
    assert words[2] == "BadRowError\nwrong 2"
    assert len(list(folder.glob("words-*.js"))) == -(-NUM_ROWS // ROWS_OF_WORDS)
    keys = called(folder / "index.js")
    assert keys["row"] == list(range(NUM_ROWS))
    assert keys["ok"] == [int(n % 5 != 2) for n in range(NUM_ROWS)]
    assert keys["consistency"][:4] == [score(0), score(1), None, score(3)]
    assert set(map(len, keys.values())) == {NUM_ROWS}


def test_a_page_of_few_rows_stands_alone(tmp_path: Path) -> None:
    page = write_report((row(n) for n in range(MOST_EMBEDDED)), {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert data_of(page)["pieces"] is None
    assert len(data_of(page)["cards"]) == MOST_EMBEDDED
    assert "script-src 'sha256-" in page.read_text()
    assert "file:;" not in page.read_text().split("script-src")[1].split("base-uri")[0]


def test_rows_of_many_bytes_are_not_all_held(tmp_path: Path) -> None:
    """Prompts of 40 kB: the page stays one that opens at once."""
    page = write_report((row(n, prompts=["word " * 8000]) for n in range(300)), {}, tmp_path)
    assert page.stat().st_size < 5_000_000
    data = data_of(page)
    assert 10 < len(data["cards"]) < 300
    assert data["total"] == 300


def test_a_page_that_is_made_anew_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    many = [row(n) for n in range(MOST_EMBEDDED + 1)]
    write_report(many, {}, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert len(before) == 2
    write_report(many, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before, "the same rows give the same names"
    write_report([*many, row(len(many))], {}, tmp_path)
    assert len(after := sorted(path.name for path in tmp_path.iterdir())) == 2
    assert after != before
    write_report(many[:3], {}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_page_that_is_not_finished_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report([row(n) for n in range(MOST_EMBEDDED + 1)], {}, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def rows() -> Any:
        yield from (row(n) for n in range(MOST_EMBEDDED + 900))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(rows(), {}, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_page_asked_to_hold_all_holds_all() -> None:
    page = render_report([row(n) for n in range(MOST_EMBEDDED + 5)], {}, out_uri="/out")
    assert len(re.findall(r'"row":\d+,', page)) == MOST_EMBEDDED + 5


def test_strips_stand_in_the_page_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "_MOST_STRIP_BYTES", 25)
    page = write_report([row(n) for n in (0, 1, 3)], {}, tmp_path, strips=lambda cards: {0: b"x" * 10, 2: b"y" * 20})
    sources = data_of(page)["strips"]
    assert sources["0"] == "data:image/jpeg;base64,eHh4eHh4eHh4eA=="
    assert (tmp_path / sources["2"]).read_bytes() == b"y" * 20


def test_the_scale_is_of_all_rows(tmp_path: Path) -> None:
    page = write_report([row(n, consistency=[0.25 if n == 2001 else 0.5]) for n in range(2100)], {}, tmp_path)
    scores = [score(n) for n in range(2100) if n % 5 != 2]
    assert data_of(page)["scale"] == [min(0.25, *scores), max(0.5, *scores)]
    assert pieces.MOST_EMBEDDED < 2100
