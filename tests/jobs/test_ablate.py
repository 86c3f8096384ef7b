"""`miga ablate`: what it refuses, what it costs, and one whole ablation of two settings on the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.ablate import cost_table
from jobs.ablation_plots import draw_plot
from jobs.cli import main
from jobs.held_out_prompts import held_out_lines
from miga.backbones.registry import load_spec
from miga.backbones.sprites.world import parse_caption
from miga.config import resolve_config
from miga.cost import count_calls
from pipeline.ablation import Plot, Row, ScoredVideo, Table, fill_table
from pipeline.video import read_frames

ROOT = Path(__file__).parents[2]
GRID = """
[settings.plain]
profile = "no-reflection"
[settings.wide]
profile = "no-reflection"
sampler = { zigzag_width = 4, num_guidance_latents = 0 }
[settings.again]
profile = "paper"
sampler = { self_reflection = false }

[[tables]]
name = "width"
title = "the width"
header = ["L_zig"]
columns = ["sc", "bc", "ms", "tf", "os", "motion", "calls"]
rows = [
    { cells = ["2"], setting = "plain", x = 2.0 },
    { cells = ["4"], setting = "wide", x = 4.0 },
    { cells = ["2 again"], setting = "again" },
]
plot = { file = "fig-width", x_label = "L_zig", left = ["os"], right = ["calls"] }

[[tables]]
name = "bad"
title = "a width that does not divide the window"
header = ["L_zig"]
columns = ["os"]
rows = [{ cells = ["2"], setting = "plain" }, { cells = ["3"], setting = "odd" }]
[settings.odd]
profile = "paper"
sampler = { zigzag_width = 3 }
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Prompt file, grid, and where to."""
    prompts, grid = tmp_path / "prompts.txt", tmp_path / "grid.toml"
    prompts.write_text("a red ball\na boat rolls\n")
    grid.write_text(GRID)
    return prompts, grid, tmp_path / "out"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["ablate", *(str(argument) for argument in arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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
    status, stdout, _ = run(capsys, prompts, out, *options, "--json")
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
    status, text, _ = run(capsys, prompts, out, *options)
    assert f"{costs['network_calls']:,}" in text
    assert "plain: also again" in text
    assert text.strip() == cost_table(costs).strip()


def test_the_grid_that_comes_along_fits_the_embedded_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts = ROOT / "examples" / "held_out.jsonl"
    status, stdout, message = run(capsys, prompts, tmp_path / "out", "--dry-run", "--json", "--num-frames", 177)
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
    status, _, message = run(capsys, prompts, out, "--model", tiny_model, *own_grid, *options)
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
    status, _, message = run(capsys, prompts, out, *options)
    assert status == 2
    assert "row 1" in message
    prompts.write_text("a red ball\n")
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    status, _, message = run(capsys, prompts, out, *options)
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


@pytest.mark.ray
def test_an_ablation_makes_scores_and_tables_every_setting_once(
    capsys: pytest.CaptureFixture[str], files: tuple[Path, Path, Path], tiny_model: Path
) -> None:
    prompts, grid, out = files
    options = ["--grid", grid, "--model", tiny_model, "--tables", "width", "--num-frames", 29, "--json", "--quiet"]
    command = [sys.executable, "-m", "jobs.cli", "ablate", *map(str, [prompts, out, *options])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    summary = json.loads(done.stdout)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["plain", "wide"]
    videos = sorted(out.rglob("*.mp4"))
    assert len(videos) == 4
    (table,) = summary["tables"]
    assert table["columns"] == ["sc", "bc", "ms", "tf", "os", "calls"], "no motion: not of the sprite world"
    plain, wide, again = table["rows"]
    assert plain["figures"] == again["figures"]
    assert again["against_first_row"]["os"] == {"value": 0.0, "low": 0.0, "high": 0.0, "num_videos": 2}
    calls = count_calls(resolve_config("no-reflection", load_spec(str(tiny_model))), 8).total
    assert plain["figures"]["calls"]["value"] == pytest.approx(calls / 29)
    flicker = [
        1 - np.abs(np.diff(np.stack(list(read_frames(file))).astype(float), axis=0)).mean() / 255
        for file in videos
        if "wide" in file.parts
    ]
    assert wide["figures"]["tf"]["value"] == pytest.approx(np.mean(flicker), abs=1e-6)
    assert wide["figures"]["tf"]["num_videos"] == 2
    page = (out / "ablation.md").read_text()
    assert "2 again" in page
    assert "![the width](fig-width.png)" in page
    assert (out / "fig-width.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "ablation.json").read_text())["tables"] == summary["tables"]

    # Again: nothing is made or scored anew (nor Ray started), not even where OUT has been moved; the page is the same.
    moved = out.with_name("moved")
    out.rename(moved)
    kept = written(moved)
    (moved / "ablation.md").unlink()
    status, stdout, message = run(capsys, prompts, moved, *options)
    assert status == 0, message
    assert json.loads(stdout)["tables"] == summary["tables"]
    assert (moved / "ablation.md").read_text() == page
    assert written(moved) == kept

    # Other prompts do not mix with these.
    status, _, message = run(capsys, prompts, moved, *options, "--seeds", 2)
    assert status == 2
    assert "other prompts" in message


def written(out: Path) -> dict[Path, int]:
    """When the files of runs and scores were written."""
    return {file: file.stat().st_mtime_ns for name in ("runs", "scores") for file in (out / name).rglob("*.*")}
