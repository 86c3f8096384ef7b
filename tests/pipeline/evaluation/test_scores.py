"""Scores of one video: kept features, portions, bad input, memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from miga.errors import BadVideoError
from miga.evaluation import formulas
from miga.evaluation.measures import MEASURES, VideoForm
from miga.evaluation.observers import Noted
from miga.outside_data import OutsideDataError
from pipeline.evaluation import scores
from pipeline.evaluation.features import FeatureFile, FeatureWriter
from pipeline.evaluation.scores import Looking, Result, score_video
from pipeline.evaluation.videos import look_at_video
from pipeline.video import read_frames
from tests.miga.evaluation.filled import texture, unit
from tests.pipeline.evaluation.videos import make_video, rotated


class _Tower(torch.nn.Module):
    """Stands for DINO, CLIP and MUSIQ: means over places and channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(frames, (4, 4)).flatten(1)
        return pooled[:, : self.width] if self.width > 1 else pooled.mean(dim=1)


class _Head(torch.nn.Linear):
    pass


class _Middle(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> object:
        class Found:
            frame_NCHW = (first + second) / 2

        return Found()


class _Flow(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return first, (second - first)[:, :2]


def networks(name: str) -> torch.nn.Module:
    if name == "aesthetic-head":
        head = torch.nn.Linear(48, 1)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(unit("head", 48)).float())
            head.bias.zero_()
        return head
    return {"amt": _Middle(), "raft": _Flow(), "musiq": _Tower(1)}.get(name, _Tower(48))


ALL = [MEASURES[name] for name in MEASURES]
LOOKING = Looking(networks=networks, device=torch.device("cpu"), batch=4)


def score(
    path: Path, form: VideoForm, scratch: Path, measures: list = ALL, kept: dict | None = None
) -> tuple[dict[str, Result], dict[str, Path]]:
    scratch.mkdir()
    return score_video(
        path, form, measures, LOOKING, kept=kept or {}, scratch=scratch, made_of=lambda measure: measure.name
    )


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", size="144x128", frames=24, rate=8)


FORM = VideoForm(24, 8.0, 128, 144)


def test_all_seven_of_a_video(video: Path, tmp_path: Path) -> None:
    """Values against the formulas on all frames at once; the two clips of 16 frames overlap."""
    results, _ = score(video, FORM, tmp_path / "scratch")
    frames = np.stack(list(read_frames(video)))
    spans = [(0, 16), (8, 24)]
    assert FORM.clips == spans
    flicker = results["temporal_flickering"]
    assert flicker.value == pytest.approx(formulas.temporal_flickering(frames), abs=1e-9)
    wanted = [formulas.temporal_flickering(frames[start:stop]) for start, stop in spans]
    assert flicker.clips == pytest.approx(wanted, abs=1e-9)
    assert flicker.long == pytest.approx(np.mean(wanted))

    def smooth(part: np.ndarray) -> float:
        drawn = ((part[0:-2:2].astype(np.float32) + part[2::2]) / 2).astype(np.uint8)
        pairs = zip(part[1:-1:2], drawn, strict=True)
        return formulas.likeness(np.array([formulas.difference(*pair) for pair in pairs]), "")

    even = results["motion_smoothness"]
    # the network's halves are of the [0, 1] range: a rounding may go the other way now and then
    assert even.value == pytest.approx(smooth(frames[:23]), abs=1e-4)
    assert even.clips == pytest.approx([smooth(frames[a : b - 1]) for a, b in spans], abs=1e-4)
    for name in ("subject_consistency", "background_consistency", "aesthetic_quality", "imaging_quality"):
        assert results[name].value is not None
        assert len(results[name].clips) == 2
    assert results["dynamic_degree"].value in (0.0, 1.0)
    still = results["temporal_flickering_static"]
    assert still.value is None
    assert still.clips == (None, None)
    assert "static filter" in still.error
    long = results["subject_consistency_long"]
    assert long.clip_to_clip is not None
    assert long.long == pytest.approx(long.value)
    assert [name for name, result in results.items() if result.error] == ["temporal_flickering_static"]


def test_flicker_of_what_stands_still_by_the_formula(tmp_path: Path) -> None:
    """A video whose second half moves: the filter is asked of each clip, and of the whole."""
    halves = "color=gray:size=144x128:rate=8:duration=3[a];testsrc=size=144x128:rate=8:duration=2[b];[a][b]concat"
    path = make_video(tmp_path / "half.mp4", source=halves, frames=40)
    form = VideoForm(40, 8.0, 128, 144)
    results, _ = score(path, form, tmp_path / "scratch", [MEASURES["temporal_flickering_static"]])
    frames = np.stack(list(read_frames(path)))
    padded = frames.astype(np.float32).transpose(0, 3, 1, 2)

    def is_static(start: int, stop: int) -> bool:
        part = padded[start:stop]
        pairs = [*itertools.pairwise(part), (part[0], part[-1]), (part[-1], part[0])]
        motions = [formulas.strongest_motion((b - a)[:2], formulas.STATIC_SHARE) for a, b in pairs]
        return formulas.is_static(motions, stop - start, 128, 144)

    wanted = [formulas.temporal_flickering(frames[a:b]) if is_static(a, b) else None for a, b in form.clips]
    assert wanted[0] is not None
    assert None in wanted
    found = results["temporal_flickering_static"]
    assert list(found.clips) == [None if value is None else pytest.approx(value, abs=1e-9) for value in wanted]
    assert found.long == pytest.approx(np.mean([value for value in wanted if value is not None]))
    assert (found.value is None) == (not is_static(0, 40))


@pytest.mark.parametrize(
    "portion", [7, pytest.param(1, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.slow)]
)
def test_portions_do_not_matter(video: Path, tmp_path: Path, portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = score(video, FORM, tmp_path / "whole")
    portions_of = scores.portions_of
    monkeypatch.setattr(scores, "portions_of", lambda path: portions_of(path, portion))
    assert score(video, FORM, tmp_path / "parts")[0] == whole


def test_a_further_measure_decodes_nothing_where_all_is_kept(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, kept = score(video, FORM, tmp_path / "first")
    monkeypatch.setattr(scores, "read_frames", lambda path: pytest.fail("it was decoded again"))
    again, fresh = score(video, FORM, tmp_path / "again", kept=kept)
    assert again == whole
    assert not fresh


def test_a_further_measure_looks_for_what_is_missing_alone(video: Path, tmp_path: Path) -> None:
    _, kept = score(video, FORM, tmp_path / "first", [MEASURES["subject_consistency"]])
    assert set(kept) == {"dino"}
    _, fresh = score(video, FORM, tmp_path / "more", kept=kept, measures=[MEASURES["subject_consistency_long"]])
    assert set(fresh) == {"dinov2"}


def test_small_frames_are_refused_by_the_networks_name(tmp_path: Path) -> None:
    path = make_video(tmp_path / "small.mp4", size="112x120")
    results, _ = score(path, VideoForm(24, 8.0, 120, 112), tmp_path / "scratch")
    assert "needs sides of 113 pixels at least for its network (amt)" in results["motion_smoothness"].error
    assert "needs sides of 121 pixels at least for its network (raft)" in results["dynamic_degree"].error
    assert results["temporal_flickering"].value is not None
    assert results["motion_smoothness"].value is None


def test_one_frame_has_no_consistency_and_a_quality(tmp_path: Path) -> None:
    path = make_video(tmp_path / "one.mp4", size="144x128", frames=1)
    results, _ = score(path, VideoForm(1, 8.0, 128, 144), tmp_path / "scratch")
    for name in ("subject_consistency", "background_consistency", "temporal_flickering"):
        assert results[name].value is None
        assert "needs 2 frames, and the video has 1" in results[name].error
    assert "needs 3 frames" in results["motion_smoothness"].error
    assert results["imaging_quality"].value is not None
    assert results["dynamic_degree"].value == 0.0


def test_black_frames_have_scores(tmp_path: Path) -> None:
    path = make_video(tmp_path / "black.mp4", source="color=black:size=144x128:rate=8")
    results, _ = score(path, VideoForm(24, 8.0, 128, 144), tmp_path / "scratch")
    assert results["temporal_flickering"].value == 1.0
    assert results["motion_smoothness"].value == 1.0
    assert results["dynamic_degree"].value == 0.0
    assert all(result.value is not None for result in results.values())


def test_a_network_that_returns_no_number_is_named(video: Path, tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return torch.full((len(frames),), float("nan"))

    (tmp_path / "scratch").mkdir()
    looking = Looking(networks=lambda name: Broken(), device=torch.device("cpu"))
    results, _ = score_video(
        video,
        FORM,
        [MEASURES["imaging_quality"], MEASURES["temporal_flickering"]],
        looking,
        kept={},
        scratch=tmp_path / "scratch",
        made_of=lambda measure: "",
    )
    assert results["imaging_quality"].value is None
    assert "no number" in results["imaging_quality"].error
    assert results["temporal_flickering"].value is not None


@pytest.mark.parametrize("kind", ["cut off", "cut off at its front", "text", "empty", "too few", "other size"])
def test_bad_videos_are_refused(video: Path, tmp_path: Path, kind: str) -> None:
    path, content, form = tmp_path / "bad.mp4", video.read_bytes(), FORM
    if kind == "cut off":
        content = make_video(tmp_path / "f.mp4", "-movflags", "+faststart", size="144x128", frames=24).read_bytes()
        content = content[: len(content) * 2 // 3]
    elif kind == "cut off at its front":
        content = content[: len(content) // 2]
    elif kind == "text":
        content = b"#EXTM3U\n/etc/passwd\n"
    elif kind == "empty":
        content = b""
    elif kind == "too few":
        form = VideoForm(25, 8.0, 128, 144)
    else:
        form = VideoForm(24, 8.0, 144, 128)
    path.write_bytes(content)
    with pytest.raises(BadVideoError, match=r"bad\.mp4"):
        score(path, form, tmp_path / "scratch", [MEASURES["temporal_flickering"]])
    if form == FORM:
        with pytest.raises(BadVideoError, match=r"bad\.mp4"):
            look_at_video(path)


def test_what_a_video_is(tmp_path: Path) -> None:
    plain = make_video(tmp_path / "plain.mp4")
    assert look_at_video(plain) == (VideoForm(24, 8.0, 48, 64), "")
    assert look_at_video(rotated(plain, tmp_path / "turned.mp4")) == (VideoForm(24, 8.0, 64, 48), "")
    ten_bit = make_video(tmp_path / "ten.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le")
    assert look_at_video(ten_bit) == (VideoForm(24, 8.0, 48, 64), "")
    pauses = ["-vf", "select='not(between(n,5,14))'", "-fps_mode", "vfr"]
    form, note = look_at_video(make_video(tmp_path / "varying.mp4", *pauses))
    assert form.num_frames == 24
    assert "its frame rate varies" in note


@pytest.mark.parametrize("kind", ["turned", "ten-bit", "varying"])
def test_odd_videos_are_scored_like_their_frames(tmp_path: Path, kind: str) -> None:
    plain = make_video(tmp_path / "plain.mp4")
    path = {
        "turned": lambda: rotated(plain, tmp_path / "odd.mp4"),
        "ten-bit": lambda: make_video(tmp_path / "odd.mp4", "-c:v", "libx264", "-pix_fmt", "yuv420p10le"),
        "varying": lambda: make_video(tmp_path / "odd.mp4", "-vf", "select='not(between(n,5,14))'", "-fps_mode", "vfr"),
    }[kind]()
    form, _ = look_at_video(path)
    results, _ = score(path, form, tmp_path / "scratch", [MEASURES["temporal_flickering"]])
    frames = np.stack(list(read_frames(path)))
    assert results["temporal_flickering"].value == pytest.approx(formulas.temporal_flickering(frames), abs=1e-9)


def _memory_of(num_frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The most that scoring a video of so many frames takes, in bytes."""
    frame = texture(1, 16, 24, "memory")[0]

    def frames(path: Path) -> Iterator[np.ndarray]:
        for index in range(num_frames):
            yield np.roll(frame, index, axis=1)

    monkeypatch.setattr(scores, "read_frames", frames)
    measures = [MEASURES[name] for name in ("subject_consistency", "temporal_flickering", "imaging_quality")]
    tracemalloc.start()
    score(tmp_path / "none.mp4", VideoForm(num_frames, 8.0, 16, 24), tmp_path / str(num_frames), measures)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a number a frame of each measure, which results are made of: 100 bytes each here."""
    _memory_of(50, tmp_path, monkeypatch)
    short, long = (_memory_of(frames, tmp_path, monkeypatch) for frames in (500, 5000))
    assert long - short < 4500 * 3 * 250


def test_features_are_read_back(tmp_path: Path) -> None:
    values = unit("kept", 60).reshape(20, 3).astype(np.float32)
    writer = FeatureWriter(tmp_path / "a.safetensors")
    for start in range(0, 20, 6):
        index = np.arange(start, min(start + 6, 20), dtype=np.int64)
        writer.add(Noted(index, values[index]))
    writer.close()
    file = FeatureFile(tmp_path / "a.safetensors")
    assert np.array_equal(file.rows(5, 13), values[5:13])
    with pytest.raises(OutsideDataError, match="of the frames 15 to 25"):
        file.rows(15, 25)
    from safetensors.numpy import load_file

    assert np.array_equal(load_file(tmp_path / "a.safetensors")["values"], values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("cut", [0, 4, 60, 300])
def test_broken_features_are_no_features(tmp_path: Path, cut: int) -> None:
    writer = FeatureWriter(tmp_path / "a.safetensors")
    writer.add(Noted(np.arange(20, dtype=np.int64), unit("kept", 60).reshape(20, 3)))
    writer.close()
    content = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:cut])
    with pytest.raises(OutsideDataError):
        FeatureFile(tmp_path / "a.safetensors")
