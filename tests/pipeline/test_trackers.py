"""A run as a tracker shows it: TensorBoard's files read back by TensorBoard itself, the others by what they are told.

wandb and trackio stand in as a module that takes what they take (`_Run`, `_Module`) and nothing else; where one of them
is installed, its signatures are compared with these.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from miga.errors import ConfigError
from pipeline.config import LogsConfig
from pipeline.storage.local import LocalStorage
from pipeline.trackers import open as trackers
from pipeline.trackers.base import SampleVideo, TrackedRun
from pipeline.trackers.open import check_tracker, open_tracker
from pipeline.trackers.run_log import RunLog, settled_before
from pipeline.video import STRIP_TILES
from tests.made_run import MadeRun, make_run
from tests.pace import paced
from tests.tensorboard_files import read_back

RUN = TrackedRun(name="out", id="0123456789abcdef", hyperparameters={"model": "m", "sampler": {"num_steps": 8}})
FIGURES = {"videos_per_hour": 36.0, "left_s": 100.0, "gpus": 2, "calls_done": 600, "calls": 800, "doing": []}


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Told:
    """A tracker that remembers."""

    where = "here"

    def __init__(self, fails_at: int | None = None) -> None:
        self.entries: list[tuple[Any, ...]] = []
        self._fails_at = fails_at

    def _take(self, *entry: Any) -> None:
        if len(self.entries) == self._fails_at:
            raise ConnectionError("the server\nis gone")
        self.entries.append(entry)

    def scalars(self, values: Any, step: int) -> None:
        self._take("scalars", dict(values), step)

    def text(self, name: str, text: str, step: int) -> None:
        self._take("text", name, text, step)

    def video(self, video: SampleVideo, step: int) -> None:
        assert video.file.read_bytes(), "it is there for the time of the call"
        self._take("video", video.caption, step)

    def close(self) -> None:
        self._take("close")


def no_word(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def run(tmp_path: Path) -> MadeRun:
    return make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,))


def log_rows(run: MadeRun, tracker: Any, indices: range, before: tuple[int, int] = (0, 0), **logs: Any) -> None:
    log = RunLog(tracker, LogsConfig(tracker="tensorboard", **logs), run.storage, *before, clock=Clock())
    for index in indices:
        log.row_settled(run.row(index, "failed" if index == 4 else "ok"))
    log.close(no_word)


# ---- what a run tells ----


def test_every_row_is_told_once_at_its_step_and_some_videos_are_shown(run: MadeRun) -> None:
    told = Told()
    log_rows(run, told, range(8), first_videos=2, every_videos=3)
    scalars = [(entry[1]["video/row"], entry[2]) for entry in told.entries if entry[0] == "scalars"]
    assert scalars == [(row, row + 1) for row in (0, 1, 2, 3, 5, 6, 7)]
    assert [entry[1:] for entry in told.entries if entry[0] == "text"] == [
        ("failed rows", "row 4 (id-4): NonFiniteError: NaN", 5)
    ]
    shown = [(entry[1], entry[2]) for entry in told.entries if entry[0] == "video"]
    assert shown == [(f"row {row} (id-{row}): a cat \U0001f408 number {row}", row + 1) for row in (0, 1, 2, 6)], (
        "the first two, then each third that was made"
    )
    assert told.entries[-1] == ("close",)


def test_scores_are_those_of_the_manifests_row(run: MadeRun) -> None:
    told = Told()
    row = replace(
        run.row(3), consistency=(0.1, 0.2), final_consistency=(0.5, float("nan"), 0.7), num_searches=2, gpu_s=3.5
    )
    log = RunLog(told, LogsConfig(tracker="wandb", first_videos=0), run.storage)
    log.row_settled(row)
    log.row_settled(replace(row, final_consistency=()))
    log.row_settled(replace(row, final_consistency=(), consistency=()))
    log.close(no_word)
    values = [entry[1] for entry in told.entries[:3]]
    assert [each.get("video/consistency") for each in values] == pytest.approx([0.6, 0.15, None])
    assert (values[0]["video/num_searches"], values[0]["video/gpu_s"], values[0]["video/num_frames"]) == (2, 3.5, 5)
    assert all("video/denoise_s" not in each for each in values), "what is not known is not written"


def test_figures_are_the_drivers_and_rates_are_those_since_the_last_look(run: MadeRun) -> None:
    told, clock = Told(), Clock()
    log = RunLog(told, LogsConfig(tracker="wandb", every_s=10), run.storage, 3, 1, clock=clock)
    assert not log.is_due
    clock.now_s = 10.0
    assert log.is_due
    log.look(FIGURES, 100, 15.0, no_word)
    assert not log.is_due
    clock.now_s = 30.0
    log.look(FIGURES | {"left_s": None}, 120, 25.0, no_word)
    log.close(no_word)
    (_, first, step), (_, second, _), _ = told.entries
    assert step == 4
    assert first == {
        "run/videos_done": 3, "run/videos_failed": 1, "run/videos_per_hour": 36.0, "run/left_s": 100.0, "run/gpus": 2.0,
        "run/calls_done": 600.0, "run/calls": 800.0,
        "run/seconds_per_call": pytest.approx(0.15), "run/gpus_busy_share": pytest.approx(0.75),
    }  # fmt: skip
    assert (second["run/seconds_per_call"], second["run/gpus_busy_share"]) == pytest.approx((0.5, 0.25))
    assert "run/left_s" not in second


def test_rows_of_earlier_sessions_are_counted_from_the_manifest(tmp_path: Path) -> None:
    run = make_run(LocalStorage(tmp_path / "out"), tmp_path, 8, failed=(4,), unsettled=(6, 7))
    assert settled_before(run.manifest, retry_failed=False) == (5, 1)
    assert settled_before(run.manifest, retry_failed=True) == (5, 0)


# ---- what fails ----


def test_a_tracker_that_fails_is_said_once_and_told_nothing_more(run: MadeRun) -> None:
    told, said = Told(fails_at=1), list[str]()
    log = RunLog(told, LogsConfig(tracker="wandb", first_videos=0), run.storage)
    for index in range(4):
        log.row_settled(run.row(index))
    log.close(said.append)
    log.look(FIGURES, 1, 1.0, said.append)
    assert len(told.entries) == 1
    assert said == ["the log in wandb ends here, the run goes on: ConnectionError: the server; is gone"]


def test_a_tracker_that_never_returns_keeps_nobody(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.trackers.run_log.MAX_WAITING", 3)
    hold, said = threading.Event(), list[str]()
    told = Told()
    monkeypatch.setattr(told, "scalars", lambda *_: hold.wait(paced(60)))
    log = RunLog(told, LogsConfig(tracker="trackio", first_videos=0), run.storage)
    for _ in range(10):
        log.row_settled(run.row(0))
    log.close(said.append, patience_s=0.05)
    assert said == ["the log in trackio ends here, the run goes on: it does not keep up: 3 entries wait for it"]
    hold.set()


def test_a_slow_end_is_said(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, said, told = threading.Event(), list[str](), Told()
    monkeypatch.setattr(told, "close", lambda: hold.wait(paced(60)))
    log = RunLog(told, LogsConfig(tracker="wandb"), run.storage)
    log.close(said.append, patience_s=0.05)
    hold.set()
    assert said == [
        "the log in wandb ends here, the run goes on: it has not written everything within 0.05 s of the run's end"
    ]


def test_a_video_that_cannot_be_fetched_is_no_fault_of_the_tracker(run: MadeRun) -> None:
    told = Told()
    (Path(run.storage.root) / run.video(0)).unlink()
    log_rows(run, told, range(2), first_videos=2)
    assert [entry[0] for entry in told.entries] == ["scalars", "text", "scalars", "video", "close"]
    assert told.entries[1][1] == "not shown"


# ---- which tracker, and whether it can be used ----


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    tracker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"needs the package {tracker}, which is not installed") as raised:
        check_tracker(LogsConfig(tracker=tracker), str(tmp_path / "out"))
    assert raised.value.hint.startswith(f"{sys.executable} -m pip install {tracker}")
    assert not (tmp_path / "out").exists()
    check_tracker(LogsConfig(), str(tmp_path / "out"))  # without a tracker nothing is needed


@pytest.mark.parametrize("folder", [None, "s3://bucket/logs"])
def test_tensorboard_needs_a_local_folder(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match="a local folder") as raised:
        check_tracker(LogsConfig(tracker="tensorboard", folder=folder), "s3://bucket/run")
    assert "--set logs.folder=" in raised.value.hint
    check_tracker(LogsConfig(tracker="tensorboard", folder="/tmp/logs"), "s3://bucket/run")
    check_tracker(LogsConfig(tracker="wandb"), "s3://bucket/run")


def test_a_link_in_out_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: True)
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "logs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is a link"):
        check_tracker(LogsConfig(tracker="tensorboard"), str(tmp_path / "out"))


# ---- TensorBoard ----


def test_tensorboard_reads_what_was_written_also_by_a_run_that_was_gone_on_with(run: MadeRun, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "logs"
    for session, before in ((range(3), (0, 0)), (range(3, 8), (3, 0))):
        tracker = open_tracker(LogsConfig(tracker="tensorboard"), run.storage, RUN)
        assert tracker is not None
        assert tracker.where == f"tensorboard --logdir {folder}"
        log_rows(run, tracker, session, before, first_videos=1, every_videos=4)
    assert len(list(folder.iterdir())) == 2
    events = read_back(folder)
    rows = [(event.step, event.tensor_proto.float_val[0]) for event in events["video/row"]]
    assert rows == [(row + 1, row) for row in (0, 1, 2, 3, 5, 6, 7)], "each once, at the rows that are settled"
    consistency = [event.tensor_proto.float_val[0] for event in events["video/consistency"]]
    assert consistency == pytest.approx([0.6 + row / 100 for row in (0, 1, 2, 3, 5, 6, 7)])
    assert [event.tensor_proto.string_val[0].decode() for event in events["failed rows"]] == [
        "row 4 (id-4): NonFiniteError: NaN"
    ]
    assert len(events["config"]) == 1, "once, however often it is gone on with"
    assert '"num_steps": 8' in events["config"][0].tensor_proto.string_val[0].decode()
    assert {tag for tag in events if tag.startswith("videos/")} == {"videos/row 0", "videos/row 3"}
    (strip,) = events["videos/row 3"]
    width, height, jpeg = strip.tensor_proto.string_val
    assert (width, height) == (str(16 * STRIP_TILES).encode(), b"16")
    assert jpeg.startswith(b"\xff\xd8\xff")
    assert jpeg.endswith(b"\xff\xd9")


def test_tensorboard_knows_the_runs_hyperparameters(run: MadeRun) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    tracker = open_tracker(LogsConfig(tracker="tensorboard"), run.storage, RUN)
    assert tracker is not None
    tracker.close()
    found = EventAccumulator(str(Path(run.storage.root) / "logs"))
    found.Reload()
    contents = found.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["sampler.num_steps"].number_value == 8
    assert start.hparams["model"].string_value == "m"


def test_a_full_disk_ends_the_log_alone(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full refuses what is written to it, as a full disk does."""
    tracker: Any = open_tracker(LogsConfig(tracker="tensorboard"), run.storage, RUN)
    full = open("/dev/full", "wb")  # noqa: SIM115
    monkeypatch.setattr(tracker._records, "_writer", full)
    log, said = RunLog(tracker, LogsConfig(tracker="tensorboard"), run.storage), list[str]()
    for index in range(3):
        log.row_settled(run.row(index))
    log.close(said.append)
    assert said == ["the log in tensorboard ends here, the run goes on: OSError: [Errno 28] No space left on device"]
    full.raw.close()


def test_a_folder_that_cannot_be_written_is_refused(run: MadeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the log in tensorboard cannot be begun"):
        open_tracker(LogsConfig(tracker="tensorboard", folder=str(tmp_path / "file")), run.storage, RUN)


# ---- wandb and trackio ----


class _Run:
    """What both packages call a run; it takes what theirs takes."""

    offline = True
    dir = "wandb/run-1/files"

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.is_finished = False

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.logged.append(metrics)

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics[name] = step_metric

    def finish(self) -> None:
        print("* Run finished")  # as trackio does
        self.is_finished = True


class _Module(ModuleType):
    """wandb or trackio."""

    TAKES = {  # noqa: RUF012
        "wandb": {"project", "name", "id", "resume", "config", "allow_val_change", "settings"},
        "trackio": {"project", "name", "resume", "config", "embed"},
    }
    VIDEO = ("caption", "format")

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.runs: list[tuple[dict[str, Any], _Run]] = []

    def init(self, **options: Any) -> _Run:
        assert options.keys() <= self.TAKES[self.__name__]
        print("* Created new run")
        self.runs.append((options, _Run()))
        return self.runs[-1][1]

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802
        return options

    def Video(self, path: str, caption: str, format: str) -> tuple[bytes, str, str]:  # noqa: N802
        return Path(path).read_bytes(), caption, format


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_wandb_and_trackio_are_told_what_they_take(
    package: Any, run: MadeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = _Module(package)
    monkeypatch.setitem(sys.modules, package, module)
    for session, before in ((range(3), (0, 0)), (range(3, 6), (3, 0))):
        tracker = open_tracker(LogsConfig(tracker=package, project="mine"), run.storage, RUN)
        log_rows(run, tracker, session, before, first_videos=1, every_videos=100)
    assert tracker is not None
    assert tracker.where == ("wandb sync wandb/run-1" if package == "wandb" else "trackio show --project mine")
    ((options, first), (again, second)) = module.runs
    assert options == again, "the same log is gone on with"
    assert (options["project"], options["resume"]) == ("mine", "allow")
    assert options["config"] == RUN.hyperparameters
    assert options["name"] == ("out" if package == "wandb" else "out-01234567")
    if package == "wandb":
        assert options["id"] == RUN.id
        assert options["settings"] == {"console": "off"}, "the terminal stays the run's own"
        assert first.metrics == {"videos": None, "run/*": "videos", "video/*": "videos"}
    logged = first.logged + second.logged
    assert [(entry["video/row"], entry["videos"]) for entry in logged if "video/row" in entry] == [
        (row, row + 1) for row in (0, 1, 2, 3, 5)
    ]
    (shown,) = [entry for entry in logged if "sample" in entry]
    assert shown["sample"] == (
        (Path(run.storage.root) / run.video(0)).read_bytes(), "row 0 (id-0): a cat \U0001f408 number 0", "mp4"
    )  # fmt: skip
    assert {"failed rows": "row 4 (id-4): NonFiniteError: NaN", "videos": 5} in logged
    assert first.is_finished
    assert second.is_finished
    assert capsys.readouterr().out == "", "standard output is for the summary"


def test_what_a_package_raises_at_the_start_is_said(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _Module("wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)

    def refuse(**options: Any) -> _Run:
        raise RuntimeError("No API key configured. Use `wandb login` to log in.\nmore")

    monkeypatch.setattr(module, "init", refuse)
    with pytest.raises(ConfigError, match=r"the log in wandb cannot be begun: No API key") as raised:
        open_tracker(LogsConfig(tracker="wandb"), run.storage, RUN)
    assert "more" not in raised.value.message


def test_at_a_terminal_wandb_is_not_let_ask(run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = _Module("wandb")
    module.login = lambda prompt: prompt
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with pytest.raises(ConfigError, match="nobody is logged in") as raised:
        open_tracker(LogsConfig(tracker="wandb"), run.storage, RUN)
    assert "WANDB_MODE=offline" in raised.value.hint
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert open_tracker(LogsConfig(tracker="wandb"), run.storage, RUN) is not None


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_the_packages_take_what_the_module_here_takes(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra {package} is not installed")
    module = importlib.import_module(package)
    assert inspect.signature(module.init).parameters.keys() >= _Module.TAKES[package]
    assert inspect.signature(module.Video).parameters.keys() >= set(_Module.VIDEO)
    run: Any = module.Run if package == "trackio" else importlib.import_module("wandb.sdk.wandb_run").Run
    assert list(inspect.signature(run.log).parameters)[2] == "step"
    assert callable(run.finish)
    if package == "wandb":
        assert {"name", "step_metric"} <= inspect.signature(run.define_metric).parameters.keys()
        assert "prompt" in inspect.signature(module.login).parameters
        assert all(isinstance(getattr(run, name), property) for name in ("offline", "url", "dir"))
        assert "console" in module.Settings.model_fields


def test_hyperparameters_are_those_of_run_json(run: MadeRun) -> None:
    from jobs.run.make import tracked_run

    named = tracked_run(run.record, run.storage)
    assert named == tracked_run(run.record, run.storage), "the same whenever the run is gone on with"
    assert named.name == "out"
    assert named.hyperparameters["sampler"] == {"num_steps": 8}
    assert named.hyperparameters["num_frames"] == 5
    assert json.dumps(named.hyperparameters)
    assert tracked_run(replace(run.record, created_at="2025-01-01T00:00:00+00:00"), run.storage).id != named.id
