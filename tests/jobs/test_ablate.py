"""`miga ablate`: what it refuses, what it costs, and the figures of its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.ablation.estimate import cost_table
from jobs.ablation.plots import draw_plot
from jobs.held_out_prompts import held_out_lines
from miga.backbones.registry import load_spec
from miga.backbones.sprites.world import parse_caption
from miga.cost import count_calls
from miga.profiles import resolve_config
from pipeline.ablation import Plot, Row, ScoredVideo, Table, fill_table
from tests.ablation_grid import GRID
from tests.cli import run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Prompt file, grid, and where to."""
    prompts, grid = tmp_path / "prompts.txt", tmp_path / "grid.toml"
    prompts.write_text("a red ball\na boat rolls\n")
    grid.write_text(GRID)
    return prompts, grid, tmp_path / "out"


def test_a_dry_run_counts_every_setting_once_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tiny_model: Path
) -> None:
    prompts, grid, out = files
    options = [
        "--grid",
        grid,
        "--model",
        tiny_model,
        "--num-frames",
        29,
        "--seeds",
        3,
        "--tables",
        "width",
        "--dry-run",
    ]
    status, stdout, _ = run(capsys, "ablate", prompts, out, *options, "--json")
    assert status == 0
    assert not out.exists()
    costs = json.loads(stdout)
    spec = load_spec(str(tiny_model))
    narrow = count_calls(resolve_config("no-reflection", spec), 8).total
    wide = resolve_config("no-reflection", spec, {"zigzag_width": 4, "num_guidance_latents": 0})
    assert costs["videos_per_setting"] == 6
    assert costs["videos"] == 12
    assert costs["network_calls"] == 6 * (narrow + count_calls(wide, 8).total)
    assert costs["settings"]["plain"]["network_calls"] == 6 * narrow
    assert costs["settings"]["plain"]["shared_by"] == ["again"]
    assert costs["features"] == "frames"
    status, text, _ = run(capsys, "ablate", prompts, out, *options)
    assert f"{costs['network_calls']:,}" in text
    assert "plain: also again" in text
    assert text.strip() == cost_table(costs).strip()


@pytest.mark.slow
def test_the_grid_that_comes_along_fits_the_embedded_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = ROOT / "examples" / "held_out.jsonl"
    status, stdout, message = run(
        capsys, "ablate", prompts, tmp_path / "out", "--dry-run", "--json", "--num-frames", 177
    )
    assert status == 0, message
    costs = json.loads(stdout)
    assert costs["videos_per_setting"] == 32
    assert costs["features"] == "sprites"
    assert costs["settings"]["fifo"]["seconds_per_call"] == pytest.approx(0.043, abs=0.005)


def test_the_held_out_prompts_are_what_the_command_prints() -> None:
    lines = (ROOT / "examples" / "held_out.jsonl").read_text().splitlines()
    assert lines == held_out_lines(32, seed=1)
    scenes = [parse_caption(json.loads(line)["prompt"]) for line in lines]
    assert len(set(scenes)) == 32
    assert all(scene.held_out for scene in scenes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tables", "bad"], "setting 'odd': sampler.zigzag_width = 3"),
        (["--tables", "no-such"], "no table 'no-such'"),
        (["--grid", "no-such.toml"], "no-such.toml"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--num-frames", "30"], "29 or 33"),
        (["--features", "no-such-model", "--tables", "width"], "no-such-model"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tiny_model: Path, options: list[str], named: str
) -> None:
    prompts, grid, out = files
    own_grid = [] if "--grid" in options else ["--grid", str(grid)]
    status, _, message = run(capsys, "ablate", prompts, out, "--model", tiny_model, *own_grid, *options)
    assert status == 2
    assert named in message
    assert "hint: " in message
    assert not out.exists()


def test_rows_that_cannot_be_made_and_foreign_folders_are_refused(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tiny_model: Path
) -> None:
    prompts, grid, out = files
    options = ["--model", tiny_model, "--grid", grid, "--tables", "width", "--dry-run"]
    prompts.write_text("a red ball\n \na boat\n")
    status, _, message = run(capsys, "ablate", prompts, out, *options)
    assert status == 2
    assert "row 1" in message
    prompts.write_text("a red ball\n")
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    status, _, message = run(capsys, "ablate", prompts, out, *options)
    assert status == 2
    assert "thesis.tex" in message


def test_a_plot_shows_points_and_lines_across() -> None:
    table = Table(
        name="A1",
        title="steps",
        header=("steps",),
        columns=("os",),
        rows=(
            Row(cells=("0",), setting="a"),
            Row(cells=("3",), setting="a", x=3.0),
            Row(cells=("6",), setting="b", x=6.0),
        ),
        plot=Plot(file="fig6", x_label="steps", left=("os",)),
    )
    videos = {
        name: [ScoredVideo(prompt=str(n), seed=0, values={"overall": score + n / 100}) for n in range(4)]
        for name, score in (("a", 0.8), ("b", 0.9))
    }
    data = draw_plot(fill_table(table, videos))
    assert data is not None
    assert data.startswith(b"\x89PNG")
    assert draw_plot(fill_table(table, {"a": [], "b": []})) is None
