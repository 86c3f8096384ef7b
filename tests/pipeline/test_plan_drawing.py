"""The drawn plan against the plan: every latent once, windows that keep the queue, the same bytes each time."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from jobs.cli import main
from miga.backbones.registry import load_spec
from miga.base_clip import PART
from miga.plan import plan_video
from miga.profiles import resolve_config
from pipeline.plan_drawing import draw_plan, to_page, to_svg

SVG = "{http://www.w3.org/2000/svg}"
SPEC = load_spec("sprites")


@pytest.mark.sampled(4)
@pytest.mark.parametrize("profile", ["paper", "swift", "released", "fifo", "scalingnoise", "stage-2-only"])
def test_every_latent_of_a_pass_is_drawn_once_at_its_level(profile: str) -> None:
    drawing = draw_plan(SPEC, resolve_config(profile, SPEC), SPEC.num_latents(61))
    rows = [*drawing.first, *drawing.last]
    groups = [group for group in ET.fromstring(to_svg([drawing])).iter(f"{SVG}g") if "data-part" in group.attrib]
    assert len(groups) == len(rows)
    for group, row in zip(groups, rows, strict=True):
        squares = [square for square in group.iter(f"{SVG}rect") if "data-latent" in square.attrib]
        assert [int(square.attrib["data-latent"]) for square in squares] == list(row.places)
        assert tuple(int(square.attrib["data-level"]) for square in squares) == row.planned.levels
        kept = [window for window in group.iter(f"{SVG}g") if "data-kept" in window.attrib]
        ranges = [tuple(map(int, window.attrib["data-kept"].split(":"))) for window in kept]
        first = row.planned.first
        assert ranges == [(first + window.keep_start, first + window.keep_stop) for window in row.planned.windows]


@pytest.mark.parametrize("kind", ["base", "first"])
def test_where_guidance_comes_from_is_drawn(kind: str) -> None:
    """The anchors that a window shows by their places, hollow; its other guidance latents as dots."""
    sampler = {
        "num_steps": 10,
        "handoff_level": 3,
        "guidance_from": "anchors:1,head:1,nearest",
        "guidance_anchors": kind,
    }
    drawing = draw_plan(SPEC, resolve_config("swift", SPEC, sampler), 90)
    rows = [*drawing.first, *drawing.last]
    shown = [
        (row.planned.first, tuple(row.planned.anchors[number] for number in window.anchors), window)
        for row in rows
        for window in row.planned.windows
    ]
    assert any(anchors for _, anchors, _ in shown)
    groups = [each for each in ET.fromstring(to_svg([drawing])).iter(f"{SVG}g") if "data-kept" in each.attrib]
    for group, (first, anchors, window) in zip(groups, shown, strict=True):
        assert tuple(map(int, group.attrib.get("data-anchors", "").split())) == anchors
        circles = list(group.iter(f"{SVG}circle"))
        assert [each.attrib["fill"] == "#fff" for each in circles] == [False] * len(window.guidance) + [True] * len(
            anchors
        )
        cells = [float(each.attrib["cx"]) for each in circles[: len(window.guidance)]]
        assert cells == sorted(cells)
        if window.guidance:
            assert cells[0] - cells[-1] == 8 * (window.guidance[0] - window.guidance[-1])
        assert first >= 0
    assert "anchors: finished latents" in to_svg([drawing])
    assert "anchors: finished latents" not in to_svg([draw_plan(SPEC, resolve_config("swift", SPEC), 20)])


@pytest.mark.parametrize("profile", ["paper", "released", "fifo", "stage-2-only"])
def test_what_is_not_drawn_is_said(profile: str) -> None:
    """Every pass of the plan is a row, or counted among those left out."""
    config = resolve_config(profile, SPEC)
    drawing = draw_plan(SPEC, config, SPEC.num_latents(133))
    text = to_svg([drawing])
    numbers = {row.number for row in (*drawing.first, *drawing.last)}
    num_base = sum(any(one.part == PART for one in each.passes) for each in plan_video(config, drawing.num_latents))
    assert drawing.num_base_left_out == max(0, num_base - 2)
    assert (f"{drawing.num_base_left_out} more passes of the base clip" in text) == (num_base > 2)
    assert (f"{drawing.num_left_out} rows like these" in text) == (drawing.num_left_out > 0)
    if not drawing.num_left_out:
        assert max(numbers) == len(numbers) + drawing.num_base_left_out


def test_the_same_plan_gives_the_same_bytes_and_texts_are_escaped() -> None:
    drawings = [draw_plan(SPEC, resolve_config(profile, SPEC), SPEC.num_latents(133)) for profile in ("paper", "fifo")]
    assert to_svg(drawings) == to_svg(drawings)
    assert "<b>bad" not in to_page(drawings, "<b>bad</b>")


def test_windows_under_guidance_are_those_that_are_counted() -> None:
    config = resolve_config("paper", SPEC, {"guidance_low_level": 12, "guidance_high_level": 25})
    drawing = draw_plan(SPEC, config, 7)
    assert (drawing.num_left_out, drawing.last) == (0, ())
    drawn = sum(int(each.attrib.get("data-guided", 0)) for each in ET.fromstring(to_svg([drawing])).iter(f"{SVG}g"))
    base_levels = range(1, config.num_steps - 1)  # of the passes left out, which are one window each
    assert drawing.num_base_left_out == len(base_levels)
    assert drawn + sum(12 <= level <= 25 for level in base_levels) == drawing.count.num_guided


@pytest.mark.parametrize(
    ("profile", "settings"), [("paper", {}), ("released", {"judged_group": 2}), ("fifo", {}), ("stage-2-only", {})]
)
def test_every_latent_leaves_each_part_once_with_its_last_step_there(profile: str, settings: dict[str, int]) -> None:
    num_latents = 9
    drawing = draw_plan(SPEC, resolve_config(profile, SPEC, {"num_steps": 14, **settings}), num_latents)
    left: dict[str, list[int]] = {}
    for group in ET.fromstring(to_svg([drawing])).iter(f"{SVG}g"):
        part = group.attrib.get("data-part")
        for each in group.iter(f"{SVG}g") if part else ():
            left.setdefault(str(part), []).extend(map(int, each.attrib.get("data-leaving", "").split()))
    assert drawing.num_left_out == 0
    left.pop(PART, None)  # of which not all is drawn
    assert left
    last = [row for row in drawing.first if row.finished][-1].planned.part
    for part, places in left.items():
        assert len(places) == len(set(places)), part
        assert set(range(num_latents)) <= set(places), part
    assert sorted(left[last]) == list(range(num_latents)) or profile == "released", "which makes more, and drops them"


def test_every_evaluation_is_drawn() -> None:
    drawing = draw_plan(SPEC, resolve_config("paper", SPEC, {"num_steps": 20}), 13)
    groups = ET.fromstring(to_svg([drawing])).iter(f"{SVG}g")
    assert drawing.num_left_out == 0
    assert sum(each.attrib.get("class") == "evaluation" for each in groups) == drawing.count.num_evaluations > 1


def test_plans_on_one_page_share_no_colours() -> None:
    """A page's styles are those of all pictures on it, and a level's colour depends on how many there are."""
    drawings = [draw_plan(SPEC, resolve_config("paper", SPEC, {"num_steps": steps}), 7) for steps in (20, 30)]
    page = to_page(drawings, "sprites")
    selectors = re.findall(r"\.(n\d+-\d+)\{", page)
    assert len(selectors) == len(set(selectors)) == 21 + 31
    assert set(re.findall(r'class="(n\d+-\d+)', page)) <= set(selectors)


def test_the_pictures_of_the_documentation_are_drawn_as_it_says(tmp_path: Path) -> None:
    docs = Path(__file__).parents[2] / "docs"
    commands = re.findall(r"^ +miga (plan .*) --out docs/(\S+)$", (docs / "methods.md").read_text(), re.MULTILINE)
    assert {name for _, name in commands} == {f"methods/{file.name}" for file in (docs / "methods").iterdir()}
    for number, (options, name) in enumerate(commands):
        drawn = tmp_path / f"{number}.svg"
        assert main([*options.split(), "--out", str(drawn)]) == 0
        assert drawn.read_bytes() == (docs / name).read_bytes(), name


@pytest.mark.parametrize("suffix", [".html", ".svg"])
def test_the_command_draws_profiles_side_by_side(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"plan{suffix}"
    assert main(["plan", "--against", "fifo", "--num-frames", "61", "--out", str(out)]) == 0
    assert "fifo" in out.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    twice = tmp_path / f"twice{suffix}"
    assert main(["plan", "--profile", "paper", "--profile", "fifo", "--num-frames", "61", "--out", str(twice)]) == 0
    assert twice.read_text() == out.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "plan.pdf"], "no .html or .svg"),
        (["--out", "x.svg", "--profile", "papre"], "papre"),
        (["--out", "x.svg", "--num-frames", "60"], "num_frames 60"),
        (["--out", "x.svg", "--num-frames", "1000001"], "too long"),
        (["--out", "missing/x.svg"], "cannot be written"),
    ],
)
def test_what_cannot_be_drawn(
    options: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *options]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
