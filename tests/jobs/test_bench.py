"""The benchmarks' own arithmetic: intervals, verdicts, what is measured of a video, lines that are made once."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.benches.device_clock import process_memory_bytes
from jobs.benches.drift import draw_drift, drift_table
from jobs.benches.line_file import LineFile
from jobs.benches.making import settings_digest
from jobs.benches.memory import MemoryMark, bench_memory
from jobs.benches.quality import KEY_NAMES, compare
from jobs.benches.run_share import ModuleClock
from jobs.benches.video_score import MEASURES, caption_of, measure, omitted, scenes_in_turn
from jobs.cli import main
from jobs.profiles.choice import parse_profile
from jobs.shared.table import format_table
from miga.backbones.registry import load_spec
from miga.backbones.sprites.identity import ALL, ATTRIBUTES, PAN
from miga.backbones.sprites.world import OMISSIBLE, Placement, Scene, held_out_scenes, parse_caption, render
from miga.errors import ConfigError, InputError, UsageError
from miga.evaluation.totals import QUALITY
from miga.profiles import resolve_config
from pipeline.evaluation.paired import Interval, mean_interval, paired_difference, verdict
from tests.pace import paced

SCENE = Scene("red", "circle", "grey", "horizontal")


@pytest.fixture(autouse=True)
def threads_as_they_were() -> Iterator[None]:
    """A bench sets how many threads the network has."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


# ---- profiles ----


def test_a_profile_takes_overrides_as_json() -> None:
    spec = load_spec("sprites")
    assert parse_profile("paper", spec) == resolve_config("paper", spec)
    chosen = parse_profile("paper:num_guidance_latents=0,reflection_threshold=0.5,self_reflection=true", spec)
    assert chosen == resolve_config(
        "paper", spec, {"num_guidance_latents": 0, "reflection_threshold": 0.5, "self_reflection": True}
    )
    with_list = parse_profile("no-reflection:solver=renoise,timesteps=[1000,900,800,700,600,500,400,300,200,100]", spec)
    assert with_list.solver == "renoise"
    assert with_list.num_steps == 10


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("papper", ConfigError, "papper"),
        ("paper:stride", UsageError, "FIELD=VALUE"),
        ("paper:strid=3", ConfigError, "strid"),
        ("paper:stride=99", ConfigError, "stride"),
        ("paper:", UsageError, "FIELD=VALUE"),
    ],
)
def test_profiles_that_cannot_be_are_refused(text: str, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        parse_profile(text, load_spec("sprites"))


# ---- intervals ----


def test_the_interval_is_the_students_where_values_are_normal() -> None:
    """Many prompts, one video each: mean and mean +- 1.96 standard errors."""
    drawn = np.random.default_rng(3).normal(2.0, 1.0, size=400)
    interval = mean_interval({(prompt, 0): float(value) for prompt, value in enumerate(drawn)})
    error = drawn.std(ddof=1) / math.sqrt(len(drawn))
    assert interval.mean == pytest.approx(drawn.mean())
    assert interval.low == pytest.approx(drawn.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(drawn.mean() + 1.96 * error, abs=0.1 * error)


def test_videos_of_one_prompt_are_resampled_together() -> None:
    """Twin videos add nothing: the interval is that of the prompts, not one narrower by the root of two."""
    drawn = np.random.default_rng(4).normal(size=60)
    once = mean_interval({(prompt, 0): float(value) for prompt, value in enumerate(drawn)})
    twice = mean_interval({(prompt, seed): float(value) for prompt, value in enumerate(drawn) for seed in (0, 1)})
    assert (twice.mean, twice.low, twice.high) == pytest.approx((once.mean, once.low, once.high))


def test_videos_that_are_not_judged_are_left_out() -> None:
    interval = mean_interval({(0, 0): 1.0, (0, 1): math.nan, (1, 0): 3.0, (2, 0): math.nan})
    assert interval.mean == 2.0
    assert (interval.low, interval.high) == (1.0, 3.0)
    assert math.isnan(mean_interval({(0, 0): math.nan}).mean)


def test_one_prompt_says_nothing_of_others() -> None:
    alone = mean_interval({(0, 0): 0.5, (0, 1): 1.0})
    assert alone.mean == 0.75
    assert math.isnan(alone.low)
    assert verdict(alone, higher_is_better=True) == "unknown"


def test_differences_are_taken_video_by_video() -> None:
    """Prompts differ widely, the profiles by a constant: only pairs see it, and only videos that both have count."""
    easy = {(prompt, seed): 10.0 * prompt + seed for prompt in range(8) for seed in (0, 1)}
    harder = {key: value - 0.5 for key, value in easy.items()} | {(99, 0): 1000.0}
    difference = paired_difference(harder, easy)
    assert (difference.mean, difference.low, difference.high) == pytest.approx((-0.5, -0.5, -0.5))


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "expected"),
    [
        (0.1, 0.3, True, "better"),
        (0.1, 0.3, False, "worse"),
        (-0.3, -0.1, True, "worse"),
        (-0.3, -0.1, False, "better"),
        (-0.1, 0.3, True, "not worse"),
        (0.0, 0.3, True, "not worse"),
        (0.0, 0.0, False, "not worse"),
    ],
)
def test_verdicts(low: float, high: float, higher_is_better: bool, expected: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high), higher_is_better) == expected


# ---- what is measured ----


def drawn(*parts: tuple[Scene, int]) -> np.ndarray:
    """Frames of scenes one after the other, each from the start of its cycle."""
    return np.concatenate([render(scene, Placement(), num_frames) for scene, num_frames in parts])


@pytest.mark.slow
def test_a_video_of_the_world_itself_is_right_and_stays_the_same() -> None:
    values = measure(drawn((SCENE, 144)), SCENE)
    assert list(values) == list(MEASURES)
    assert values.pop("residual") < 0.02
    drift = {name: values.pop(name) for name in (*ATTRIBUTES, ALL)}
    assert max(drift.values()) < 0.005
    assert math.isnan(values.pop(PAN))  # a plain ground does not show it
    vbench = {name: values.pop(name) for name in ("S.C.", "B.C.", "M.S.", "T.F.", "O.S.")}
    later = [values.pop(f"{name} later") for name in ("S.C.", "B.C.", "O.S.")]
    assert values == dict.fromkeys(values, 1.0)
    assert min(*vbench.values(), *later) > 0.99  # a subject that moves flickers a little at its edges
    assert vbench["O.S."] == pytest.approx(sum(value for name, value in vbench.items() if name != "O.S.") / 4)


@pytest.mark.slow
def test_drift_is_held_against_the_first_clip() -> None:
    """A third of the video in another colour: a third of the frames is neither right nor the same."""
    other = Scene("blue", "circle", "grey", "horizontal")
    values = measure(drawn((SCENE, 96), (other, 48)), SCENE)
    assert values["colour"] == values["same colour"] == pytest.approx(2 / 3)
    assert values["all right"] == values["all same"] == pytest.approx(2 / 3)
    assert values["same shape"] == values["same ground"] == values["same motion"] == 1.0
    wrong_all_along = measure(drawn((other, 144)), SCENE)
    assert wrong_all_along["colour"] == 0.0
    assert wrong_all_along["same colour"] == 1.0


@pytest.mark.slow
def test_the_first_clip_is_what_most_of_its_frames_show() -> None:
    other = Scene("blue", "circle", "grey", "horizontal")
    values = measure(drawn((other, 10), (SCENE, 134)), SCENE, num_first=45)
    assert values["same colour"] == pytest.approx(134 / 144)


@pytest.mark.slow
def test_motion_is_held_against_the_first_cycle() -> None:
    """Cycles start every 24 frames; of the five, the one across the change shows neither motion, one the other."""
    still = Scene("red", "circle", "grey", "still")
    values = measure(drawn((SCENE, 96), (still, 48)), SCENE)
    assert values["same motion"] == pytest.approx(4 / 5)  # half a cycle side to side, half still: still side to side
    assert values["motion"] == pytest.approx(4 / 5)


@pytest.mark.slow
def test_what_a_caption_leaves_open_is_only_held_against_the_beginning() -> None:
    values = measure(drawn((SCENE, 96)), Scene("red", "circle", "pink", "still"), open_names=("ground", "motion"))
    judged = {name for name, value in values.items() if not math.isnan(value)}
    vbench = {"S.C.", "B.C.", "M.S.", "T.F.", "O.S.", "S.C. later", "B.C. later", "O.S. later", *ATTRIBUTES, ALL}
    assert judged == {"colour", "shape", "all right", "residual", "same ground", "all same", "same motion"} | vbench
    assert values["all right"] == values["same ground"] == values["same motion"] == 1.0


@pytest.mark.slow
def test_prompts_in_turn_are_judged_by_what_neither_changes() -> None:
    """Half the video in another colour, as asked: everything named is right, and the rest is as it was."""
    scene, other = scenes_in_turn("turns", SCENE, prompt=4)
    assert sum(a != b for a, b in zip(asdict(scene).values(), asdict(other).values(), strict=True)) == 1
    assert scenes_in_turn("full", SCENE, prompt=4) == [SCENE]
    blue = Scene("blue", "circle", "grey", "horizontal")
    values = measure(drawn((SCENE, 96), (blue, 48)), [SCENE] * 96 + [blue] * 48)
    assert values["all right"] == values["colour"] == values["motion"] == 1.0
    assert values["all same"] == values["same shape"] == values["same ground"] == 1.0
    assert math.isnan(values["same colour"])
    assert math.isnan(values["subject tint"])
    assert values["identity"] < 0.005


def test_captions_name_what_is_not_left_open() -> None:
    words = {"colour": "red", "ground": "grey ground", "motion": "side to side", "shape": "circle"}
    left_open = set()
    for prompt in range(40):
        assert omitted("full", prompt) == ()
        assert caption_of(SCENE, prompt, "empty") == ""
        names = omitted("partial", prompt)
        assert names
        assert names == omitted("partial", prompt)
        assert set(names) <= set(OMISSIBLE)
        caption = caption_of(SCENE, prompt, "partial")
        assert {name for name, word in words.items() if word not in caption} == set(names)
        left_open.add(names)
    assert len(left_open) == 2 ** len(OMISSIBLE) - 1


# ---- lines ----


@pytest.mark.parametrize("profile", ["swift", "fifo", "paper"])
def test_a_line_outlives_settings_that_came_later(profile: str) -> None:
    """Committed lines are of versions that did not know them."""
    config = parse_profile(profile, load_spec("sprites"))
    later = {name for name in config.to_dict() if name not in config.noted()}
    assert later, "else this shows nothing"
    earlier = {name: value for name, value in config.to_dict().items() if name not in later}
    expected = hashlib.sha256(json.dumps(earlier, sort_keys=True).encode()).hexdigest()[:12]
    assert settings_digest(config) == expected
    changed = parse_profile(f"{profile}:num_steps=20", load_spec("sprites"))
    assert settings_digest(changed) != expected


def test_a_line_is_made_once(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "sub" / "lines.jsonl", ["name"])
    assert file.read() == {}
    assert file.make({"name": "a"}, lambda: {"value": 1})
    assert not file.make({"name": "a"}, lambda: {"value": 2})
    assert not LineFile(file.path, ["name"]).make({"name": "a"}, lambda: {"value": 3})
    assert file.make({"name": "b"}, lambda: {"value": 4})
    assert [line["value"] for line in file.read().values()] == [1, 4]


def test_a_failure_leaves_no_line_and_no_lock(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines.jsonl", ["name"])

    def fail() -> dict[str, Any]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        file.make({"name": "a"}, fail)
    assert file.make({"name": "a"}, lambda: {"value": 1})


def test_a_line_cut_off_by_a_kill_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"name": "a", "value": 1}\n{"name": "b", "val')
    file = LineFile(path, ["name"])
    assert len(file.read()) == 1
    assert file.make({"name": "b"}, lambda: {"value": 2})
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("line", ["not json", '{"value": 1}', "[1]"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"name": "a"}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2"):
        LineFile(path, ["name"]).read()


def fill(path: Path, log: Path) -> None:
    file = LineFile(path, ["number"])
    for number in range(60):

        def make(number: int = number) -> dict[str, Any]:
            with log.open("a") as made:
                made.write(f"{number} {os.getpid()}\n")
            return {"text": "x" * 5000}

        file.make({"number": number}, make)


def test_processes_share_the_lines(tmp_path: Path) -> None:
    path, log = tmp_path / "lines.jsonl", tmp_path / "log"
    workers = [multiprocessing.get_context("fork").Process(target=fill, args=(path, log)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=paced(60))
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    made = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert sorted(made) == list(range(60)), "each made once"
    assert len(LineFile(path, ["number"]).read()) == 60


def test_a_line_that_another_process_is_making_is_left_to_it(tmp_path: Path) -> None:
    """And is free again once that process is killed."""
    path = tmp_path / "lines.jsonl"
    program = (
        "import sys, time; from pathlib import Path; from jobs.benches.line_file import LineFile\n"
        f"file = LineFile(Path({str(path)!r}), ['name'])\n"
        "file.make({'name': 'a'}, lambda: print('making', flush=True) or time.sleep(60))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "making\n"
        file = LineFile(path, ["name"])
        assert not file.make({"name": "a"}, lambda: {"value": 1})
        assert file.make({"name": "b"}, lambda: {"value": 2})
        other.kill()
        other.wait()
        assert file.make({"name": "a"}, lambda: {"value": 3})


# ---- the table of `quality` ----


def line(profile: str, prompt: int, **values: float | None) -> dict[str, Any]:
    key = dict(zip(KEY_NAMES, (profile, "", "", "float32", "full", 96, prompt, 0), strict=True))
    costs = {"calls": 100, "searches": 0, "corrections": 0, "cpu s": 1.0}
    return {**key, **dict.fromkeys(MEASURES, 1.0), **costs, **values}


def test_profiles_are_compared_measure_by_measure() -> None:
    rows = [line("paper", prompt, residual=0.04, motion=None) for prompt in range(6)]
    rows += [line("fifo", prompt, residual=0.05 + 0.001 * (prompt % 2), motion=None) for prompt in range(6)]
    means, differences = compare(rows, ["fifo", "paper"], "paper", num_missing=3).values()
    by_name = {row["measure"]: row for row in differences}
    assert list(by_name["residual"]) == ["measure", "fifo"]
    assert by_name["residual"]["fifo"].startswith("+0.0105 [")
    assert by_name["residual"]["fifo"].endswith(" worse")
    assert by_name["colour"]["fifo"].endswith(" not worse")
    assert "motion" not in by_name, "no video was judged by it"
    assert "cpu s" not in by_name
    assert {row["measure"]: row for row in means}["calls"]["paper (6)"].startswith("100.0000")
    assert "3 videos are not made yet" in next(iter(compare(rows, ["fifo", "paper"], "paper", 3)))


def test_captions_name_details_too_where_they_are_asked_to() -> None:
    captions = [caption_of(SCENE, prompt, "details") for prompt in range(6)]
    assert [word for word in ("striped", "dotted", "shaded") if any(word in caption for caption in captions)] == [
        "striped", "dotted", "shaded"
    ]  # fmt: skip
    assert ["small" in caption for caption in captions] == [False, True] * 3
    assert {parse_caption(caption) for caption in captions} == {SCENE}
    assert not any("small red" in caption for caption in captions)


def test_every_pair_is_compared_once_and_measures_an_older_line_lacks_are_left_out() -> None:
    rows = [line(profile, prompt) for profile in ("fifo", "paper", "swift") for prompt in range(3)]
    for row in rows:
        del row["identity"]
    tables = compare(rows, ["fifo", "paper", "swift"], "paper", every_pair=True)
    _, from_paper, from_fifo = tables.values()
    assert [list(table[0]) for table in (from_paper, from_fifo)] == [["measure", "fifo", "swift"], ["measure", "swift"]]
    assert "identity" not in {row["measure"] for row in from_paper}


@pytest.mark.slow
def test_drift_is_told_in_four_parts_and_drawn(tmp_path: Path) -> None:
    """Seven cycles: parts of two, two, two and one; a prompt's own rise is the mean's where it is alone."""
    key = dict(zip(KEY_NAMES, ("swift", "", "", "bfloat16", "partial", 96, 0, 0), strict=True))
    rows = [{**key, "first frames": 45, "identity": [0.0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.8], "residual": [0.03] * 7}]
    (table,) = drift_table(rows, ["swift"]).values()
    assert [cell.split(" ")[0] for cell in list(table[0].values())[1:]] == ["0.1000", "0.3000", "0.5000", "0.8000"]
    draw_drift(rows, ["swift", "fifo"], tmp_path / "plots" / "drift.png")
    assert (tmp_path / "plots" / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_tables_hold_every_column() -> None:
    table = format_table([{"a": 1, "b": 0.5}, {"a": 20, "c": math.nan}])
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()] == [
        ["a", "b", "c"],
        ["--", "------", "-"],
        ["1", "0.5000", ""],
        ["20", "", "-"],
    ]


# ---- memory, clocks, command line ----

COUNTER_BYTES = 1 << 20
"""The kernel counts pages per processor and adds them up now and then."""


def test_memory_is_what_the_process_holds() -> None:
    before, peak_before = process_memory_bytes()
    block = mmap.mmap(-1, 64 << 20)  # an array may lie in what the process holds already
    np.frombuffer(block, np.uint8)[:] = 1
    during, peak_during = process_memory_bytes()
    assert during - before > 60 << 20
    assert peak_during > during - COUNTER_BYTES
    block.close()
    after, peak_after = process_memory_bytes()
    assert after < during - (60 << 20)
    assert peak_after > max(peak_during, peak_before) - COUNTER_BYTES


def test_memory_is_printed_as_the_papers_table(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [MemoryMark(500, 1000 << 20, 1010 << 20), MemoryMark(2000, 1001 << 20, 1010 << 20)]

    def run(command: list[str], **_: Any) -> Any:
        assert command[-2:] == ["500", "2000"]
        return subprocess.CompletedProcess(command, 0, "".join(json.dumps(mark.__dict__) + "\n" for mark in marks))

    monkeypatch.setattr("jobs.benches.memory.subprocess.run", run)
    ((resident, peak),) = bench_memory(["paper"], [500, 2000], 1).values()
    assert resident["2000"] == "1001.00 (+0.100%)"
    assert peak["2000"] == "1010.00 (+0.000%)"
    for frames in ([500], [500, 500], [2000, 500]):
        with pytest.raises(UsageError, match="rise"):
            bench_memory(["paper"], frames, 1)


def test_the_clock_of_a_module_counts_its_forwards_alone() -> None:
    class Slow(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(200):
                x = x @ x
            return x

    module, x = Slow(), torch.eye(64)
    clock = ModuleClock(module)
    module(x)
    once = clock.seconds
    for _ in range(200):
        x = x @ x
    assert (clock.num_calls, clock.seconds) == (1, once)
    module(x)
    assert clock.num_calls == 2
    assert clock.seconds > once > 0.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["quality", "--prompts", "0"], "--prompts 0"),
        (["quality", "--prompts", "1000000"], "held-out scenes"),
        (["quality", "--profiles", "papper"], "papper"),
        (["quality", "--profiles", "fifo", "no-reflection"], "--against paper"),
        (["quality", "--read-only", "--profiles", "paper"], "--read-only"),
        (["memory", "--frames", "2000", "500"], "rise"),
        (["memory", "--profiles", "paper:strid=3"], "strid"),
        (["sampler", "--frames", "100"], "97 or 101"),
    ],
)
def test_benches_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    assert main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert named in message
    assert "hint: " in message


def test_the_command_line_starts_without_torch() -> None:
    program = "import sys; from jobs.cli import build_parser; build_parser(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert out == "False\n"


@pytest.mark.slow
def test_quality_makes_videos_once_and_reads_them_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network apart: its place is taken by the world's own drawing of the scene."""
    made = []

    def make(self: Any, job: Any) -> dict[str, Any]:
        made.append((job.profile, job.prompt, job.seed))
        scene = held_out_scenes(job.prompt + 1, seed=1)[job.prompt]
        measured = measure(drawn((scene, 96)), scene)
        values = {name: None if math.isnan(value) else value for name, value in measured.items()}
        return {**values, "calls": 1, "searches": 0, "corrections": 0, "cpu s": 0.0}

    monkeypatch.setattr("jobs.benches.quality.VideoMaker.__init__", lambda self, model, dtype: None)
    monkeypatch.setattr("jobs.benches.quality.VideoMaker.make", make)
    out = tmp_path / "quality.jsonl"
    arguments = ["bench", "quality", "--prompts", "2", "--seeds", "1", "--processes", "1", "--out", str(out), "--json"]
    assert main([*arguments, "--profiles", "fifo"]) == 0
    assert main([*arguments, "--profiles", "fifo", "paper"]) == 0
    assert made == [("fifo", 0, 0), ("fifo", 1, 0), ("paper", 0, 0), ("paper", 1, 0)]
    capsys.readouterr()
    assert main([*arguments, "--profiles", "fifo", "paper", "--read-only", "--dtype", "float32"]) == 0
    assert len(made) == 4
    means, differences = json.loads(capsys.readouterr().out).values()
    assert means[0] == {
        "measure": "colour",
        "fifo (2)": "1.0000 [1.0000, 1.0000]",
        "paper (2)": "1.0000 [1.0000, 1.0000]",
    }
    assert {row["fifo"].rpartition("] ")[2] for row in differences} == {"not worse"}
    assert main([*arguments, "--profiles", "fifo", "--read-only", "--dtype", "bfloat16"]) == 2


def test_the_bench_of_the_page_writes_one_of_so_many_rows(tmp_path: Path) -> None:
    from jobs.benches.report_page import make_rows
    from pipeline.records.manifest import Manifest
    from pipeline.storage.local import LocalStorage

    storage = LocalStorage(tmp_path / "out")
    make_rows(storage, 1203)
    rows = list(Manifest(storage, 1000).read_rows())
    assert [row.row for row in rows] == list(range(1203))
    assert {row.status for row in rows} == {"ok", "failed"}
    assert len({row.key for row in rows}) == 1203
    assert len(rows[0].prompts[0].split()) == 60


@pytest.mark.slow
def test_evaluation_takes_less_than_two_hundredths_of_making_the_video(capsys: pytest.CaptureFixture[str]) -> None:
    """Counted at the published sizes; decoding counts with the seconds that it may take at most."""
    from jobs.benches.evaluation import bench_evaluate, share_rows

    metrics, shares = bench_evaluate(480, 832, "cpu", is_timed=False).values()
    assert [row["metric"] for row in metrics] == list(QUALITY)
    dino = next(row["GFLOP a frame"] for row in metrics if row["metric"] == "subject_consistency")
    assert dino == pytest.approx(62, rel=0.05)  # 31 G multiply-adds
    assert len(shares) == 5
    for row in share_rows(decoding_fps=100.0):
        assert float(row["share with decoding"].rstrip("%")) <= 2.0
        assert float(row["share"].rstrip("%")) < float(row["share with decoding"].rstrip("%"))


@pytest.mark.slow
def test_speeds_of_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "evaluate", "--height", "112", "--width", "128", "--device", "cpu", "--json"]) == 0
    metrics, shares = json.loads(capsys.readouterr().out).values()
    speeds = {row["metric"]: row["frames a core-second"] for row in metrics}
    assert list(speeds) == ["decoding", *QUALITY]
    assert speeds["decoding"] > 0
    assert speeds["subject_consistency"] > 0
    assert "needs sides of 113 pixels" in speeds["motion_smoothness"]
    assert "share with decoding" not in shares[0]  # it was not timed at the published size
